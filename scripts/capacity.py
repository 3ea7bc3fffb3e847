"""Plan workers, queues and machines from measured figures, by the M/M/c queue.

Requests come at random (Poisson) to the one queue of a server's workers. Its service times are
taken to vary as much as their mean (exponentially); a classification's vary less, so that the
plan is on the safe side.
"""

import argparse
import math
import sys
from dataclasses import dataclass

TIMEOUT_MS = 30_000.0
WORKERS = (1, 10, 1000)
UTILISATIONS = (0.5, 0.7, 0.8, 0.9, 0.95)


def erlang_c(workers: int, erlangs: float) -> float:
    """Return the probability that a request finds every worker busy.

    Args:
        workers: their number, from 1.
        erlangs: the load, the rate times the service time; from the number of workers on, every
            request waits.
    """
    if erlangs >= workers:
        return 1.0
    blocked = 1.0
    for count in range(1, workers + 1):
        blocked = erlangs * blocked / (count + erlangs * blocked)
    return blocked / (1 - erlangs / workers * (1 - blocked))


@dataclass(frozen=True)
class Server:
    """The workers of one queue, under load.

    Attributes:
        service_ms: mean time that a worker takes for a request, in milliseconds.
        workers: number of workers.
        rate: requests per second.
    """

    service_ms: float
    workers: int
    rate: float

    @property
    def utilisation(self) -> float:
        """The busy part of the workers' time; from 1 on, the queue grows without end."""
        return self.rate * self.service_ms / 1000 / self.workers

    @property
    def waiting(self) -> float:
        """The probability that a request waits."""
        return erlang_c(self.workers, self.utilisation * self.workers)

    @property
    def mean_wait_ms(self) -> float:
        """The mean wait of all requests, in milliseconds; infinite in overload."""
        return self.waiting * self._excess_ms

    @property
    def p99_wait_ms(self) -> float:
        """The wait that one request in a hundred exceeds, in milliseconds; infinite in overload."""
        return max(0.0, math.log(100 * self.waiting)) * self._excess_ms if self.waiting else 0.0

    @property
    def p99_ms(self) -> float:
        """The answer's time that one request in a hundred exceeds: its wait, then the service."""
        return self.p99_wait_ms + self.service_ms

    @property
    def _excess_ms(self) -> float:
        """The mean wait of those that wait."""
        idle = self.workers * (1 - self.utilisation)
        return self.service_ms / idle if idle > 0 else math.inf


def queue_size(service_ms: float, workers: int, timeout_ms: float = TIMEOUT_MS) -> int:
    """Return the longest queue whose last request is answered before nginx gives up.

    That is the most that `jobQueueSize` should say.
    """
    return max(0, math.floor((timeout_ms - service_ms) * workers / service_ms))


def machines(service_ms: float, workers: int, rate: float, p99_ms: float) -> int:
    """Return the number of machines, each with a queue of its own and an equal part of the rate.

    Args:
        service_ms: as in `Server`.
        workers: of one machine.
        rate: of all requests, per second.
        p99_ms: time in which 99 % of the requests are to be answered.

    Raises:
        ValueError: a request takes longer even where it does not wait.
    """
    if p99_ms < service_ms:
        raise ValueError(
            f"No number of machines answers in {p99_ms:g} ms what takes {service_ms:g} ms."
        )
    count = max(1, math.ceil(rate * service_ms / 1000 / workers))
    while Server(service_ms, workers, rate / count).p99_ms > p99_ms:
        count += 1
    return count


def table(servers: list[Server]) -> str:
    """Return one line a server, under a heading, as a Markdown table."""
    lines = [
        "| workers | requests/s | busy | wait at all | mean wait | p99 wait | longest queue |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for server in servers:
        cells = (
            f"{server.workers:,}",
            f"{server.rate:,.1f}",
            f"{server.utilisation:.0%}",
            f"{server.waiting:.1%}",
            _time(server.mean_wait_ms),
            _time(server.p99_wait_ms),
            f"{queue_size(server.service_ms, server.workers):,}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _time(milliseconds: float) -> str:
    return "without end" if math.isinf(milliseconds) else f"{milliseconds:,.1f} ms"


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m scripts.capacity", description=__doc__)
    parser.add_argument(
        "--service-time-ms",
        type=float,
        required=True,
        help="a request's time in one worker: 1000 / (images per second of a worker or a GPU)",
    )
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS, help="of one queue")
    parser.add_argument("--rate", type=float, help="requests per second of all clients")
    parser.add_argument("--p99-ms", type=float, default=500, help="time for 99 %% of the answers")
    args = parser.parse_args()
    if min(args.service_time_ms, *args.workers, args.p99_ms, args.rate or 1) <= 0:
        parser.error("every figure must be above zero")
    if args.rate is None:
        capacities = {workers: 1000 * workers / args.service_time_ms for workers in args.workers}
        servers = [
            Server(args.service_time_ms, workers, share * capacity)
            for workers, capacity in capacities.items()
            for share in UTILISATIONS
        ]
        print(table(servers))
        return 0
    print(table([Server(args.service_time_ms, workers, args.rate) for workers in args.workers]))
    for workers in args.workers:
        try:
            count = machines(args.service_time_ms, workers, args.rate, args.p99_ms)
        except ValueError as error:
            print(error, file=sys.stderr)
            return 1
        print(f"Machines of {workers:,} workers that answer 99 % in {args.p99_ms:g} ms: {count:,}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
