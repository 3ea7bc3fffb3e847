"""Measure accuracy on labelled photographs: runtimes, precisions and TTA modes side by side."""

import argparse
import itertools
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import stats
from tqdm import tqdm

from scripts import convert, photos
from scripts.build import FALLBACK
from scripts.weights import WeightsError, resolve
from visionserve import runtimes
from visionserve.config import TTA, HandlerConfig
from visionserve.metadata import Metadata
from visionserve.models import IMAGENET_CATEGORIES, MODELS
from visionserve.preprocessing import decode, to_views
from visionserve.runtimes import Runtime

VARIANTS = {
    "pytorch fp32": HandlerConfig(runtime="pytorch"),
    "openvino fp32": HandlerConfig(runtime="openvino"),
    "openvino int8": HandlerConfig(runtime="openvino", precision="int8"),
    "openvino int8, fast decode": HandlerConfig(
        runtime="openvino", precision="int8", decode="fast"
    ),
}
MODES: tuple[TTA, ...] = get_args(TTA)


@dataclass(frozen=True)
class Score:
    """Which images one way of classifying got right.

    Attributes:
        top1: bool of shape (images,).
        top5: the same, for the label among the five most probable.
    """

    top1: NDArray[np.bool_]
    top5: NDArray[np.bool_]


def label_of(path: Path) -> int:
    """Read a photograph's class index: the number that begins its name, or its folder's."""
    for name in (path.name, path.parent.name):
        digits = "".join(itertools.takewhile(str.isdigit, name))
        if digits:
            return int(digits)
    raise ValueError(f"{path}: neither the file's name nor its folder's begins with a class index.")


def interval(right: NDArray[np.bool_]) -> tuple[float, float]:
    """Return Wilson's 95 % confidence interval of a proportion (E. B. Wilson, 1927)."""
    found = stats.binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def paired_difference(
    ours: NDArray[np.bool_], reference: NDArray[np.bool_]
) -> tuple[float, float, float]:
    """Compare two ways on the same images.

    Returns:
        The difference of the proportions, the half-width of its 95 % confidence interval
        (normal approximation for paired proportions), and McNemar's exact p-value.
    """
    gained, lost = int((ours & ~reference).sum()), int((~ours & reference).sum())
    count = len(ours)
    spread = math.sqrt(gained + lost - (gained - lost) ** 2 / count) / count
    p = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    return (gained - lost) / count, 1.96 * spread, float(p)


def prepare(
    name: str, config: HandlerConfig, calibration: Sequence[Path], directory: Path
) -> tuple[Runtime, Metadata]:
    """Convert and load one variant of a model with its pretrained weights."""
    directory.mkdir()
    metadata = convert.convert(
        name, resolve(name), IMAGENET_CATEGORIES, config, calibration, directory
    )
    return runtimes.load(directory, metadata, config, None, threads=2), metadata


def score(
    runtime: Runtime,
    metadata: Metadata,
    config: HandlerConfig,
    paths: Sequence[Path],
    mode: TTA,
    show: Callable[[], object],
) -> Score:
    """Classify every photograph one way."""
    top1, top5 = [], []
    for path in paths:
        image = decode(Image.open(path), metadata.transforms, config.decode)
        views = to_views(image, metadata.transforms, config.decode, mode)
        best = (-runtime(views).mean(axis=0)).argsort()[:5]
        top1.append(best[0] == label_of(path))
        top5.append(label_of(path) in best)
        show()
    return Score(np.array(top1), np.array(top5))


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m scripts.evaluate", description=__doc__)
    parser.add_argument("folder", type=Path, help="photographs named or foldered by class index")
    parser.add_argument("--model", default=FALLBACK, choices=MODELS)
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--calibration", type=Path, help="a folder of photographs for INT8")
    args = parser.parse_args()
    try:
        paths = photos.folder(args.folder)
        calibration = photos.folder(args.calibration) if args.calibration else photos.packaged()
        scores = {}
        with tempfile.TemporaryDirectory() as scratch:
            for number, variant in enumerate(args.variants):
                config = VARIANTS[variant]
                runtime, metadata = prepare(
                    args.model, config, calibration, Path(scratch) / str(number)
                )
                for mode in args.modes:
                    with tqdm(paths, desc=f"{variant}, {mode}", leave=False) as bar:
                        scores[variant, mode] = score(
                            runtime, metadata, config, paths, mode, bar.update
                        )
    except (FileNotFoundError, ValueError, WeightsError) as error:
        print(error, file=sys.stderr)
        return 1
    report(args.model, len(paths), scores)
    return 0


def report(name: str, count: int, scores: dict[tuple[str, TTA], Score]) -> None:
    """Print a Markdown table; differences are to the first row, and to the same mode's first."""
    print(f"{name}, {count} photographs; percentages with 95 % confidence intervals\n")
    print("| runtime | TTA | Top-1 | Top-5 | Top-1 to first row | to first runtime, same TTA |")
    print("|---|---|---|---|---|---|")
    first = next(iter(scores.values()))
    for (variant, mode), found in scores.items():
        same = next(other for (_, other_mode), other in scores.items() if other_mode == mode)
        cells = [variant, mode, _percent(found.top1), _percent(found.top5)]
        cells += [_difference(found.top1, other.top1) for other in (first, same)]
        print("| " + " | ".join(cells) + " |")


def _percent(right: NDArray[np.bool_]) -> str:
    low, high = interval(right)
    return f"{right.mean():.1%} ({low:.1%} to {high:.1%})"


def _difference(ours: NDArray[np.bool_], reference: NDArray[np.bool_]) -> str:
    difference, width, p = paired_difference(ours, reference)
    return f"{100 * difference:+.1f} ± {100 * width:.1f} points (p = {p:.2f})"


if __name__ == "__main__":
    sys.exit(main())
