"""Load a server for long, or far above what it can do, and watch its memory and its files."""

import argparse
import math
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import linear_regression, median, median_low, quantiles
from typing import Any

import psutil

from scripts.server.torchserve import TorchServe
from scripts.stress.clients import MODEL, Load, Sent, mixed, plain, serving

WORKERS = 2
RETRIES = 6
PATIENCE = 120
WARM_UP = 1 / 3
MB_PER_10_000 = 1.0
FLAT = 1.1
RECOVERY = 5.0
QUEUE = 50
UNEVEN = 1.5
ONE_SHAPE = 300
EVERY_KIND = 2000
RATIO = 1.3


@dataclass(frozen=True)
class Reading:
    """A process at one moment.

    Attributes:
        requests: sent to the server so far.
        megabytes: memory of the process alone (USS).
        files: open file descriptors.
    """

    requests: int
    megabytes: float
    files: int


class Watch:
    """The frontend and the workers of a server, read again and again."""

    def __init__(self, server: TorchServe) -> None:
        assert server.pid is not None
        workers = server.client.describe(MODEL)[0]["workers"]
        pids = {"frontend": server.pid} | {f"worker {w['id']}": w["pid"] for w in workers}
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self.readings: dict[str, list[Reading]] = {name: [] for name in pids}

    def read(self, requests: int) -> None:
        """Add a reading of each process.

        Raises:
            psutil.NoSuchProcess: one ended.
        """
        for name, process in self._processes.items():
            megabytes = process.memory_full_info().uss / 1e6
            self.readings[name].append(Reading(requests, megabytes, process.num_fds()))


def slope(readings: Sequence[Reading]) -> float:
    """Return the growth of memory in MB per 10,000 requests, by a straight line."""
    requests = [reading.requests for reading in readings]
    megabytes = [reading.megabytes for reading in readings]
    return linear_regression(requests, megabytes).slope * 10_000


def held(readings: Sequence[Reading]) -> float:
    """Return the median memory after requests of every kind, in MB; without them, of the last half.

    A single reading may fall amid a forward pass and count its activations.
    """
    after = [reading for reading in readings if reading.requests >= EVERY_KIND]
    return median(r.megabytes for r in after or readings[len(readings) // 2 :])


def more_files(readings: Sequence[Reading]) -> int:
    """Return by how many the median of open files has risen, from the first to the last quarter."""
    files = [reading.files for reading in readings]
    quarter = math.ceil(len(files) / 4)
    return max(0, median_low(files[-quarter:]) - median_low(files[:quarter]))


def soak(minutes: float, interval: float) -> bool:
    """Keep four clients asking, and tell whether memory and files stay as they are.

    First they send photographs of one shape, then all shapes, formats, views and lengths of
    lists. A worker's memory after 2,000 of these, in the median, is compared with that after the
    first ones. The
    first third of the time is not judged otherwise: the Java heap finds its size in it.
    """
    with _server({"size_mb": 16}) as server:
        watch = Watch(server)
        with Load(server.state, plain()).steady(2 * WORKERS, RETRIES, PATIENCE) as first:
            while len(first) < ONE_SHAPE:
                time.sleep(0.1)
            watch.read(0)
        load = Load(server.state, mixed())
        end = time.monotonic() + 60 * minutes
        with load.steady(2 * WORKERS, RETRIES, PATIENCE) as account:
            while time.monotonic() < end:
                time.sleep(interval)
                watch.read(len(account))
    outcomes = Counter(sent.outcome for sent in [*first, *account])
    print(
        f"{len(first):,} requests of one shape, then {len(account):,} of every kind in "
        f"{minutes:g} minutes: {_listed(outcomes)}.\n"
    )
    print(
        "| process | one shape | every kind | ratio | at first | at last | MB per 10,000 requests "
        "| files | more files |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    )
    met = set(outcomes) == {"right"}
    for name, (one_shape, *readings) in watch.readings.items():
        judged = readings[int(len(readings) * WARM_UP) :]
        growth, files = slope(judged), more_files(judged)
        after = held(readings)
        ratio = after / one_shape.megabytes
        met &= growth <= MB_PER_10_000 and files == 0
        met &= ratio <= RATIO or name == "frontend"
        print(
            f"| {name} | {one_shape.megabytes:.1f} MB | {after:.1f} MB | {ratio:.2f} "
            f"| {judged[0].megabytes:.1f} MB | {judged[-1].megabytes:.1f} MB "
            f"| {growth:+.2f} | {judged[-1].files} | {files} |"
        )
    if len(account) < EVERY_KIND:
        print(f"Every kind was judged after {len(account):,} requests, not {EVERY_KIND:,}.")
    return met


@dataclass(frozen=True)
class Overload:
    """What became of requests that were more than the server could answer.

    Attributes:
        account: those sent at a fixed rate, each once.
        patient: those of a client that retries.
        probed: those of one that does not, until an answer after the load's end.
        end: the load's end, by `time.monotonic`.
    """

    account: Sequence[Sent]
    patient: Sequence[Sent]
    probed: Sequence[Sent]
    end: float

    @property
    def answered(self) -> list[Sent]:
        """The answered ones of the load."""
        return [sent for sent in self.account if sent.outcome == "right"]

    @property
    def shed(self) -> int:
        """The number of 503 in the load."""
        return sum(sent.setbacks == ("503",) for sent in self.account)

    @property
    def failed(self) -> int:
        """The number that met neither, or retried in vain."""
        unanswered = sum(sent.outcome != "right" for sent in self.patient)
        return len(self.account) - len(self.answered) - self.shed + unanswered

    @property
    def p99(self) -> float:
        """The time of an answer that one in a hundred exceeds, in seconds."""
        return quantiles((sent.seconds for sent in self.answered), n=100)[98]

    @property
    def service(self) -> float:
        """The mean time that a request took in a worker, all being busy, in seconds."""
        answers = [s for s in [*self.account, *self.patient, *self.probed] if s.outcome == "right"]
        busy = max(sent.ended for sent in self.answered) - self.account[0].began
        return WORKERS * busy / len(answers)

    @property
    def bound(self) -> float:
        """The time in which a full queue is served, in seconds."""
        return (QUEUE + WORKERS) * self.service / WORKERS

    @property
    def recovery(self) -> float:
        """The time from the load's end to the first answer to a request after it, in seconds."""
        after = (s.ended for s in self.probed if s.began > self.end and s.outcome == "right")
        return min(after, default=math.inf) - self.end


def overload(times: float, seconds: float) -> bool:
    """Send more than the server can do, and tell whether it sheds the rest and stays quick.

    All ask for `dense`, the profile's default. A client that retries, as `Client` does, asks
    throughout and gets its answers.
    """
    with _server({"size_mb": 0}, jobQueueSize=QUEUE) as server:
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
    for name, readings in watch.readings.items():
        memory = " → ".join(f"{reading.megabytes:.1f}" for reading in readings)
        print(f"{name}: {memory} MB (before, amid, at the end)")
    flat = all(r[2].megabytes <= FLAT * r[1].megabytes for r in watch.readings.values())
    quick = seen.p99 <= UNEVEN * seen.bound and seen.recovery <= RECOVERY
    return seen.failed == 0 and quick and flat


def _overload(load: Load, watch: Watch, rate: float, seconds: float) -> Overload:
    with (
        load.steady(1, RETRIES, PATIENCE) as patient,
        load.steady(1, pause=0.05) as probed,
        ThreadPoolExecutor(1) as pool,
    ):
        running = pool.submit(load.at_rate, rate, seconds, 2 * (QUEUE + WORKERS))
        watch.read(0)
        for _ in range(2):
            time.sleep(seconds / 2)
            watch.read(0)
        end = time.monotonic()
        while time.monotonic() < end + PATIENCE:
            if any(sent.began > end and sent.outcome == "right" for sent in probed):
                break
            time.sleep(0.05)
        return Overload(running.result(), patient, probed, end)


def _capacity(load: Load, seconds: float = 10) -> float:
    """Measure the right answers per second of two clients for each worker."""
    start = time.monotonic()
    with load.steady(2 * WORKERS) as account:
        time.sleep(seconds)
    return sum(sent.outcome == "right" for sent in account) / (time.monotonic() - start)


@contextmanager
def _server(cache: dict[str, Any], **config: Any) -> Iterator[TorchServe]:
    with (
        tempfile.TemporaryDirectory(prefix="soak-") as folder,
        serving(Path(folder), {"cache": cache}, minWorkers=WORKERS, **config) as server,
    ):
        yield server


def _listed(counts: Counter[Any]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.most_common())


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="visionserve soak", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    steady = commands.add_parser("steady", help="four clients, for long")
    steady.add_argument("--minutes", type=float, default=30)
    steady.add_argument("--interval", type=float, default=5, help="seconds between two readings")
    above = commands.add_parser("overload", help="far more than the server can do")
    above.add_argument("--times", type=float, default=5, help="multiple of the capacity")
    above.add_argument("--seconds", type=float, default=120)
    args = parser.parse_args()
    if args.command == "steady":
        met = soak(args.minutes, args.interval)
    else:
        met = overload(args.times, args.seconds)
    if not met:
        print("Missed a target.", file=sys.stderr)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
