"""The work of `visionserve capacity`."""

import argparse
import math
import sys
from collections.abc import Iterable

from visionserve_tools.report.tables import table
from visionserve_tools.server.queues import Queue, machines, queue_size

P99_MS = 500.0
UTILISATIONS = (0.5, 0.7, 0.8, 0.9, 0.95)
COLUMNS = (
    *("workers:", "requests/s:", "busy:", "wait at all:", "mean wait:", "p99 wait:"),
    *("p99 answer:", "longest queue:"),
)


def run(args: argparse.Namespace) -> int:
    """Run `visionserve capacity`, and return its exit code."""
    service_ms, p99_ms = args.service_time_ms, args.p99_ms or P99_MS
    if args.rate is None:
        capacities = {workers: 1000 * workers / service_ms for workers in args.workers}
        queues = [
            Queue(service_ms, workers, share * capacity)
            for workers, capacity in capacities.items()
            for share in UTILISATIONS
        ]
        print(described(queues))
        return 0
    print(described(Queue(service_ms, workers, args.rate) for workers in args.workers))
    for workers in args.workers:
        try:
            count = machines(service_ms, workers, args.rate, p99_ms)
        except ValueError as error:
            print(error, file=sys.stderr)
            return 1
        print(f"Machines of {workers:,} workers that answer 99 % in {p99_ms:g} ms: {count:,}")
    return 0


def described(queues: Iterable[Queue]) -> str:
    """Return a table with a row for each queue."""
    return table(COLUMNS, map(_cells, queues))


def _cells(queue: Queue) -> list[str]:
    return [
        f"{queue.workers:,}",
        f"{queue.rate:,.1f}",
        f"{queue.utilisation:.0%}",
        f"{queue.waiting:.1%}",
        _time(queue.mean_wait_ms),
        _time(queue.p99_wait_ms),
        _time(queue.p99_ms),
        f"{queue_size(queue.service_ms, queue.workers):,}",
    ]


def _time(milliseconds: float) -> str:
    return "without end" if math.isinf(milliseconds) else f"{milliseconds:,.1f} ms"
