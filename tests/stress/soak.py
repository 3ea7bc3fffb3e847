"""Load a server for a long time, and judge whether its memory and open files grow."""

import math
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import linear_regression, median, median_low
from typing import Any

from tests.drawn import draw
from tests.stress.clients import RETRIES, Load, Sent, large, mixed, plain
from tests.stress.watch import PATIENCE, WORKERS, Reading, Watch, exit_code, watched
from visionserve_tools.arguments import Parser, real
from visionserve_tools.report.tables import table

WARM_UP = 1 / 3
MB_PER_10_000 = 1.0
ONE_SHAPE = 300
EVERY_KIND = 2000
RATIO = 1.3
MODEL = "resnet18"
# What the `server` profile's BF16 may be off, where the processor has it.
APART = 0.005
# TorchServe's frontend gives requests that do not overlap to its workers in turn.
TURNS = 2 * WORKERS
COLUMNS = (
    *("process", "one shape:", "every kind:", "ratio:", "at first:", "at last:"),
    *("MB per 10,000 requests:", "files:", "more files:"),
)


def slope(readings: Sequence[Reading]) -> float:
    """Return the growth of memory in MB per 10,000 requests, from a linear regression."""
    requests = [reading.requests for reading in readings]
    megabytes = [reading.megabytes for reading in readings]
    return linear_regression(requests, megabytes).slope * 10_000


def held(readings: Sequence[Reading]) -> float:
    """Return the median memory after 2,000 requests of every kind, in MB.

    If there were fewer requests, it is the median of the second half of the readings.
    """
    after = [reading for reading in readings if reading.requests >= EVERY_KIND]
    return median(r.megabytes for r in after or readings[len(readings) // 2 :])


def more_files(readings: Sequence[Reading]) -> int:
    """Return how much the median number of open files rose from the first to the last quarter."""
    files = [reading.files for reading in readings]
    quarter = math.ceil(len(files) / 4)
    return max(0, median_low(files[-quarter:]) - median_low(files[:quarter]))


def soak(minutes: float, interval: float) -> bool:
    """Load a ResNet-18 with four clients, and tell whether memory and open files stay constant.

    The clients first send photographs of one shape. Then they send all shapes, formats, TTA modes
    and lengths of lists, and images that are refused. They wait for each reading, so that it has
    what the processes keep, without the pixels and activations of an image at work.

    A worker's median memory after 2,000 of the latter is compared with its memory after the
    photographs of one shape. It depends on the last image by a fifth, because a worker keeps the
    activations of small passes for the next one. Growth is therefore judged by second readings,
    each after an image that is so large that the worker gives them back, and only after the first
    third of the time, in which the Java heap reaches its size.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        watched(
            {"size_mb": 16},
            model=MODEL,
            weights=(weights := draw(Path(folder) / "drawn.pt", MODEL)),
        ) as server,
    ):
        load_of = partial(Load, server.state, model=MODEL, apart=APART, weights=weights)
        kept, settled = Watch(server, MODEL), Watch(server, MODEL)
        with load_of(plain()).steady(2 * WORKERS, RETRIES, PATIENCE) as first:
            while len(first) < ONE_SHAPE:
                time.sleep(0.1)
        kept.read(0)
        load, giving_back = load_of(mixed()), load_of([large()])
        end = time.monotonic() + 60 * minutes
        account: list[Sent] = []
        while time.monotonic() < end:
            with load.steady(2 * WORKERS, RETRIES, PATIENCE) as sent:
                time.sleep(interval)
            account += sent
            kept.read(len(account))
            account += [giving_back.ask(server.client, 0, time.monotonic()) for _ in range(TURNS)]
            settled.read(len(account))
    verdicts = Counter(sent.verdict for sent in [*first, *account])
    print(
        f"{len(first):,} requests of one shape, then {len(account):,} of every kind in "
        f"{minutes:g} minutes: {_listed(verdicts)}.\n"
    )
    rows = []
    met = set(verdicts) == {"right"}
    for name, (one_shape, *readings) in kept.readings.items():
        after = held(readings)
        ratio = after / one_shape.megabytes
        judged = settled.readings[name][int(len(readings) * WARM_UP) :]
        growth, files = slope(judged), more_files(judged)
        met &= growth <= MB_PER_10_000 and files == 0
        met &= ratio <= RATIO or name == "frontend"
        memory = (one_shape.megabytes, after, judged[0].megabytes, judged[-1].megabytes)
        one, every, first_mb, last_mb = (f"{megabytes:.1f} MB" for megabytes in memory)
        change = (f"{growth:+.2f}", judged[-1].files, files)
        rows.append([name, one, every, f"{ratio:.2f}", first_mb, last_mb, *change])
    print(table(COLUMNS, rows))
    if len(account) < EVERY_KIND:
        print(f"Every kind was judged after {len(account):,} requests, not {EVERY_KIND:,}.")
    return met


def _listed(counts: Counter[Any]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.most_common())


def main() -> int:
    """Run the soak; `make soak`."""
    parser = Parser(prog="python -m tests.stress.soak", description=__doc__)
    parser.add_argument("--minutes", type=real(0.01, 1e5), default=30)
    parser.add_argument(
        "--interval", type=real(0.1, 3600), default=10, help="seconds between two readings"
    )
    args = parser.parse_args()
    return exit_code(soak(args.minutes, args.interval))


if __name__ == "__main__":
    sys.exit(main())
