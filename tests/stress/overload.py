"""Overload a server, and judge how many requests it refuses and how quick it stays."""

import math
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import quantiles

from tests.stress.clients import RETRIES, Load, Sent, plain
from tests.stress.watch import PATIENCE, WORKERS, Reading, Watch, exit_code, watched
from visionserve_tools.arguments import Parser, real

FLAT = 1.1
RECOVERY = 5.0
QUEUE = 50
UNEVEN = 1.5
READINGS = 5


@dataclass(frozen=True)
class Overload:
    """The requests of an overload, and what became of them.

    Attributes:
        account: the requests of the load, sent at a fixed rate and each once.
        patient: the requests of a client that retries.
        probed: the requests of a client that does not retry, which continues until it gets an
            answer after the load's end.
        end: when the load ended, by `time.monotonic`.
    """

    account: Sequence[Sent]
    patient: Sequence[Sent]
    probed: Sequence[Sent]
    end: float

    @property
    def answered(self) -> list[Sent]:
        """The requests of the load that were answered."""
        return [sent for sent in self.account if sent.verdict == "right"]

    @property
    def shed(self) -> int:
        """The number of requests of the load that were refused with a 503."""
        return sum(sent.setbacks == ("503",) for sent in self.account)

    @property
    def failed(self) -> int:
        """The number of requests that failed.

        In the load, these got neither an answer nor a 503. Of the client that retries, they got no
        right answer in spite of all retries.
        """
        unanswered = sum(sent.verdict != "right" for sent in self.patient)
        return len(self.account) - len(self.answered) - self.shed + unanswered

    @property
    def p99(self) -> float:
        """The time that one answer of the load in a hundred exceeds, in seconds."""
        return quantiles((sent.seconds for sent in self.answered), n=100)[98]

    @property
    def service(self) -> float:
        """The mean time that a worker took for a request while all were busy, in seconds."""
        answers = [s for s in [*self.account, *self.patient, *self.probed] if s.verdict == "right"]
        busy = max(sent.ended for sent in self.answered) - self.account[0].began
        return WORKERS * busy / len(answers)

    @property
    def bound(self) -> float:
        """The time in which the workers complete a full queue, in seconds."""
        return (QUEUE + WORKERS) * self.service / WORKERS

    @property
    def recovery(self) -> float:
        """The time from the load's end to the first answer to a later request, in seconds."""
        after = (s.ended for s in self.probed if s.began > self.end and s.verdict == "right")
        return min(after, default=math.inf) - self.end


def least(readings: Sequence[Reading]) -> list[float]:
    """Return the least memory of each second of readings, in MB.

    The least is used because a reading may be taken during a forward pass, and then includes the
    activations.
    """
    starts = range(0, len(readings), READINGS)
    return [min(r.megabytes for r in readings[start : start + READINGS]) for start in starts]


def overload(times: float, seconds: float) -> bool:
    """Overload a server, and tell whether it refuses the excess with 503 and stays quick.

    All requests use the TTA mode `dense`, the profile's default. During the load a further client
    retries as `Client` does, and has to get an answer to each of its requests.
    """
    with watched({"size_mb": 0}, jobQueueSize=QUEUE) as server:
        load, watch = Load(server.state, plain("dense"), top_k=3), Watch(server)
        capacity = _capacity(load)
        print(f"Capacity {capacity:.1f} requests/s; {WORKERS} workers, a queue of {QUEUE}.")
        seen = _overload(load, watch, times * capacity, seconds)
    lines = (
        f"Sent {len(seen.account):,} in {seconds:g} s, {times:g} times the capacity:",
        f"{len(seen.answered):,} answered, {seen.shed:,} shed with 503, {seen.failed} failed.",
        f"99 % of the answers came within {seen.p99:.1f} s; a full queue takes {seen.bound:.1f} s,",
        f"at {1000 * seen.service:.0f} ms a request.",
        f"A client that retries: {len(seen.patient)} requests, the slowest "
        f"{max(sent.seconds for sent in seen.patient):.1f} s.",
        f"The first answer after the load: {seen.recovery:.1f} s after its end.",
    )
    print("\n".join(lines))
    held = {name: least(readings) for name, readings in watch.readings.items()}
    for name, megabytes in held.items():
        memory = " → ".join(f"{one:.1f}" for one in megabytes)
        print(f"{name}: {memory} MB (at the start, amid, at the end)")
    flat = all(end <= FLAT * amid for _, amid, end in held.values())
    quick = seen.p99 <= UNEVEN * seen.bound and seen.recovery <= RECOVERY
    return seen.failed == 0 and quick and flat


def _overload(load: Load, watch: Watch, rate: float, seconds: float) -> Overload:
    with (
        load.steady(1, RETRIES, PATIENCE) as patient,
        load.steady(1, pause=0.05) as probed,
        ThreadPoolExecutor(1) as pool,
    ):
        running = pool.submit(load.at_rate, rate, seconds, 2 * (QUEUE + WORKERS))
        began = time.monotonic()
        for moment in (0, seconds / 2, seconds - 1):
            time.sleep(max(0, began + moment - time.monotonic()))
            for _ in range(READINGS):
                watch.read(0)
                time.sleep(1 / READINGS)
        end = time.monotonic()
        while time.monotonic() < end + PATIENCE:
            if any(sent.began > end and sent.verdict == "right" for sent in probed):
                break
            time.sleep(0.05)
        return Overload(running.result(), patient, probed, end)


def _capacity(load: Load, seconds: float = 10) -> float:
    """Return the right answers per second under a load of two clients for each worker."""
    start = time.monotonic()
    with load.steady(2 * WORKERS) as account:
        time.sleep(seconds)
    return sum(sent.verdict == "right" for sent in account) / (time.monotonic() - start)


def main() -> int:
    """Run the overload; `make overload`."""
    parser = Parser(prog="python -m tests.stress.overload", description=__doc__)
    parser.add_argument("--times", type=real(0.1, 1000), default=5, help="multiple of the capacity")
    parser.add_argument("--seconds", type=real(1, 1e6), default=120)
    args = parser.parse_args()
    return exit_code(overload(args.times, args.seconds))


if __name__ == "__main__":
    sys.exit(main())
