"""The work of `visionserve robustness`."""

import argparse
import dataclasses
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from visionserve import runtimes
from visionserve.config import TTA, HandlerConfig
from visionserve.metadata import Metadata
from visionserve_tools import paths
from visionserve_tools.quality import output
from visionserve_tools.quality.arguments import archive_of
from visionserve_tools.quality.corruptions import CORRUPTIONS, corrupt, scaled
from visionserve_tools.quality.models import Loaded, gather, opened
from visionserve_tools.quality.statistics import Interval, clustered, proportion
from visionserve_tools.quality.variants import MODES
from visionserve_tools.report import circumstances
from visionserve_tools.report.tables import table
from visionserve_tools.training.interrupts import held_back

SEVERITIES = ("mild", "severe")
CLEAN = ("clean", "")
CONDITIONS: dict[tuple[str, str], nn.Module] = {
    CLEAN: nn.Identity(),
    **{
        (name, severity): transform
        for name, forms in CORRUPTIONS.items()
        for severity, transform in zip(SEVERITIES, forms, strict=True)
    },
}
REFERENCE: TTA = "five_crop"
QUICK = 4
LEAST = 2

Found = NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """The measurements of one mode.

    Attributes:
        right: float of shape (photographs, conditions), in the order of `CONDITIONS`: 1 where the
            answer is right, 0 where it is wrong, NaN where the photograph was not asked.
        seconds: float of the same shape: processor time from the decoded image to its
            probabilities, which other work on the machine hardly changes.
    """

    right: NDArray[np.float64]
    seconds: NDArray[np.float64]

    def under(self, *names: str) -> NDArray[np.float64]:
        """Return the columns of some corruptions, in both severities."""
        chosen = [index for index, (name, _) in enumerate(CONDITIONS) if name in names]
        return self.right[:, chosen]

    @property
    def clean(self) -> Interval:
        """Top-1 of the photographs as they are."""
        return proportion(self.under("clean")[:, 0] > 0)

    @property
    def corrupted(self) -> Interval:
        """Top-1 under all corruptions, its interval clustered by photograph."""
        return clustered(self.under(*CORRUPTIONS))

    @property
    def milliseconds(self) -> float:
        """The mean processor time of an image."""
        return float(np.nanmean(self.seconds)) * 1000

    def over(self, other: "Measured") -> Interval:
        """Top-1 minus another mode's, on the same corrupted photographs."""
        return clustered(self.under(*CORRUPTIONS) - other.under(*CORRUPTIONS))


class Bench:
    """A process that classifies photographs under every condition in every mode.

    Args:
        directory: holds the converted model and its metadata.
        config: its runtime and precision.
        modes: in which to classify.
    """

    def __init__(self, directory: Path, config: HandlerConfig, modes: Sequence[TTA]) -> None:
        torch.set_num_threads(1)
        described = Metadata.load(directory)
        runtime = runtimes.load(directory, described, config, None, threads=1)
        self._loaded = Loaded(runtime, described, config)
        self._modes = modes

    def measure(self, path: Path, label: int, seed: int, every: int) -> Found:
        """Classify a photograph as it is, and under every so many corruptions.

        Returns:
            float of shape (modes, conditions, 2): whether it is right, and the seconds; NaN
            under the other conditions.
        """
        image = scaled(self._loaded.decode(path))
        found = np.full((len(self._modes), len(CONDITIONS), 2), np.nan)
        for column, (condition, transform) in enumerate(CONDITIONS.items()):
            if condition != CLEAN and (column + seed) % every:
                continue
            corrupted = corrupt(image, transform, seed)
            for row, mode in enumerate(self._modes):
                started = time.process_time()
                best = self._loaded.average(corrupted, mode).argmax()
                found[row, column] = best == label, time.process_time() - started
        return found


bench: Bench


def _start(*arguments: Any) -> None:
    global bench
    bench = Bench(*arguments)


def _measure(task: tuple[Path, int, int, int]) -> Found:
    return bench.measure(*task)


def measure(
    directory: Path,
    config: HandlerConfig,
    modes: Sequence[TTA],
    photographs: Sequence[tuple[Path, int]],
    every: int,
) -> dict[TTA, Measured]:
    """Classify photographs in a process of one thread for each core, until an interrupt.

    Args:
        directory: holds the converted model and its metadata.
        config: its runtime and precision.
        modes: in which to classify.
        photographs: with their labels; they are taken in a random order.
        every: 1 measures each photograph under each corruption, 4 under a quarter of them.

    Returns:
        What was measured of the photographs that are done.

    Raises:
        ValueError: fewer than two photographs are done.
    """
    tasks = [(path, label, seed, every) for seed, (path, label) in enumerate(photographs)]
    random.Random(0).shuffle(tasks)
    found: list[Found] = []
    spawn = multiprocessing.get_context("spawn")
    with held_back():
        pool = spawn.Pool(len(os.sched_getaffinity(0)), _start, (directory, config, modes))
    with pool:
        bar = tqdm(pool.imap_unordered(_measure, tasks), "photographs", len(tasks), smoothing=0)
        try:
            found.extend(bar)
        except KeyboardInterrupt:
            print(f"Interrupted after {len(found)} photographs.", file=sys.stderr)
    if len(found) < LEAST:
        raise ValueError(f"An interval takes {LEAST} photographs, and {len(found)} are done.")
    stacked = np.stack(found, axis=1)
    return {
        mode: Measured(right=figures[..., 0], seconds=figures[..., 1])
        for mode, figures in zip(modes, stacked, strict=True)
    }


def run(args: argparse.Namespace) -> int:
    """Do what `visionserve robustness` was asked, and return its exit code."""
    folder = f"{args.archive.stem}-robustness" if args.archive else ""
    output_folder = args.output or paths.MODEL_STORE / folder
    drawn = output_folder / "robustness.png"
    return output.write(output_folder / "robustness.json", lambda: corrupted(args, drawn), [drawn])


def corrupted(args: argparse.Namespace, drawn: Path) -> tuple[dict[str, Any], list[Path]]:
    """Measure each TTA mode on the photographs and their corrupted forms, print, and draw.

    Returns:
        All figures, for JSON, and the drawing.

    Raises:
        ArchiveError, HashError, ProofError, RequestError, WeightsError, ValueError, OSError: the
            archive or a photograph cannot be used, or the model cannot be built.
    """
    here = circumstances.here()
    with opened(archive_of(args)) as archived:
        if archived.metadata.multi_label:
            raise ValueError(
                f"{archived} is multi-label, and has no Top-1 that damage could lower."
            )
        given = gather(args, archived.metadata.categories, archived.config, args.photographs)
        modes, every = archived.modes(args.modes or MODES), QUICK if args.quick else 1
        measured = measure(archived.directory, archived.config, modes, given.photographs, every)
    about = f"{archived}, {described_as(measured)} ({here})"
    print(f"{about}\n\n{summary(measured)}\n\n{by_corruption(measured)}\n")
    draw(measured, about, drawn)
    return {"about": about, "modes": record(measured)}, [drawn]


def described_as(measured: Mapping[TTA, Measured]) -> str:
    """Describe how many photographs were measured, and how many corrupted forms of them."""
    right = next(iter(measured.values())).under(*CORRUPTIONS)
    asked = np.count_nonzero(~np.isnan(right))
    return f"{len(right)} photographs, {asked:,} corrupted ones of them"


def record(measured: Mapping[TTA, Measured]) -> dict[TTA, Any]:
    """Return all figures, shares between 0 and 1, intervals of 95 %, ready for JSON."""
    return {
        mode: {
            "milliseconds": found.milliseconds,
            "clean": dataclasses.asdict(found.clean),
            "corrupted": dataclasses.asdict(found.corrupted),
            "over": {
                other: dataclasses.asdict(found.over(reference))
                for other, reference in measured.items()
                if other != mode
            },
            "conditions": {
                " ".join(condition).strip(): float(np.nanmean(right))
                for condition, right in zip(CONDITIONS, found.right.T, strict=True)
            },
        }
        for mode, found in measured.items()
    }


def summary(measured: Mapping[TTA, Measured]) -> str:
    """Return a table of each mode's time and accuracy."""
    reference = measured.get(REFERENCE)
    rows = []
    for mode, found in measured.items():
        milliseconds = f"{found.milliseconds:.1f}"
        cells = [mode, milliseconds, found.clean.percent, found.corrupted.percent]
        difference = found.over(reference) if reference and found is not reference else None
        rows.append([*cells, _points(difference) if difference else ""])
    heading = ["TTA", "ms", "Top-1, clean", "Top-1, corrupted", f"corrupted, to {REFERENCE}"]
    return table(heading, rows)


def by_corruption(measured: Mapping[TTA, Measured]) -> str:
    """Return a table of the Top-1 under each corruption, mild and severe."""
    rows = []
    for name in CORRUPTIONS:
        means = [np.nanmean(found.under(name), axis=0) for found in measured.values()]
        rows.append([name, *(" / ".join(f"{mean:.1%}" for mean in pair) for pair in means)])
    return table(["Top-1, mild / severe", *measured], rows)


def _points(found: Interval) -> str:
    value, low, high = (100 * figure for figure in (found.value, found.low, found.high))
    return f"{value:+.1f} points ({low:+.1f} to {high:+.1f})"


def draw(measured: Mapping[TTA, Measured], about: str, path: Path) -> None:
    """Draw the Top-1 of each mode under each corruption, both severities, as a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    first = next(iter(measured.values()))
    names = ["clean", *sorted(CORRUPTIONS, key=lambda name: -np.nanmean(first.under(name)))]
    rows: Iterator[tuple[str, tuple[str, ...]]] = iter(
        [(name, (name,)) for name in names] + [("all corruptions", tuple(CORRUPTIONS))]
    )
    figure, axes = pyplot.subplots(figsize=(9, 0.5 * (len(names) + 1) + 1.2), layout="constrained")
    labels = []
    for row, (label, chosen) in enumerate(rows):
        labels.append(label)
        for rank, (mode, found) in enumerate(measured.items()):
            interval = clustered(found.under(*chosen))
            axes.errorbar(
                100 * interval.value,
                row + 0.14 * (rank - (len(measured) - 1) / 2),
                xerr=[
                    [100 * (interval.value - interval.low)],
                    [100 * (interval.high - interval.value)],
                ],
                fmt="o",
                markersize=4,
                elinewidth=1,
                color=f"C{rank}",
                label=f"{mode}, {found.milliseconds:.0f} ms" if row == 0 else None,
            )
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("Top-1, %, with 95 % confidence intervals")
    axes.set_title(about, fontsize="small")
    figure.legend(loc="outside lower center", ncols=len(measured), fontsize="small")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
