"""The work of `visionserve evaluate`."""

import argparse
import dataclasses
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from visionserve.config import TTA, Options
from visionserve_tools import paths, photos
from visionserve_tools.archive.recipe import check_architecture
from visionserve_tools.quality import deletion, labelled, output
from visionserve_tools.quality.deletion import Deletion
from visionserve_tools.quality.models import Loaded, gather, load_variants
from visionserve_tools.quality.statistics import (
    Reliability,
    log_loss,
    paired_difference,
    proportion,
    reliability,
)
from visionserve_tools.quality.variants import VARIANTS
from visionserve_tools.report import circumstances
from visionserve_tools.report.tables import percent, table

THRESHOLD = Options().threshold or 0.0
QUICK = 100


class Judgement(NamedTuple):
    """An answer compared with the label and with a reference's answer.

    Attributes:
        right: whether the most probable class is the label.
        among_five: whether the label is among the five most probable.
        confidence: the probability of the most probable class.
        label_probability: the probability of the label.
        difference: of the probability of the reference's best class, from the reference's.
        same: whether the most probable class is the reference's.
    """

    right: bool
    among_five: bool
    confidence: float
    label_probability: float
    difference: float
    same: bool


def judge(
    probabilities: NDArray[np.floating[Any]], label: int, reference: NDArray[np.floating[Any]]
) -> Judgement:
    """Judge an answer by the label and by a reference's; both of shape (classes,)."""
    order = np.argsort(-probabilities, kind="stable")
    best, expected = order[0], np.argmax(reference)
    return Judgement(
        right=bool(best == label),
        among_five=label in order[:5],
        confidence=float(probabilities[best]),
        label_probability=float(probabilities[label]),
        difference=float(probabilities[expected]) - float(reference[expected]),
        same=bool(best == expected),
    )


class Judgements:
    """The judgements of one variant and mode, as arrays in the order of the photographs."""

    def __init__(self, judged: Sequence[Judgement], threshold: float = THRESHOLD) -> None:
        columns = dict(
            zip(Judgement._fields, map(np.array, zip(*judged, strict=True)), strict=True)
        )
        self.right: NDArray[np.bool_] = columns["right"]
        self.among_five: NDArray[np.bool_] = columns["among_five"]
        self.confidence: NDArray[np.float64] = columns["confidence"]
        self.label_probability: NDArray[np.float64] = columns["label_probability"]
        self.difference: NDArray[np.float64] = columns["difference"]
        self.same: NDArray[np.bool_] = columns["same"]
        self.confident: NDArray[np.bool_] = self.confidence >= threshold

    @property
    def reliability(self) -> Reliability:
        """How often answers of each confidence are right."""
        return reliability(self.confidence, self.right)

    def summary(self) -> dict[str, Any]:
        """Return all figures, shares between 0 and 1, intervals of 95 %, ready for JSON."""
        shares = {
            "top1": self.right,
            "top5": self.among_five,
            "confident": self.confident,
            "right where confident": self.right[self.confident],
            "warned where wrong": ~self.confident[~self.right],
        }
        found = {name: dataclasses.asdict(proportion(share)) for name, share in shares.items()}
        return found | {
            "nll": log_loss(self.label_probability),
            "ece": self.reliability.ece,
            "mean difference": float(np.abs(self.difference).mean()),
            "largest difference": float(np.abs(self.difference).max()),
            "same top1": float(self.same.mean()),
        }


def measure(
    variants: Mapping[str, Loaded], photographs: Iterable[tuple[Path, int]], modes: Sequence[TTA]
) -> dict[tuple[str, TTA], Judgements]:
    """Classify every photograph in every way; the first variant is the others' reference."""
    judged: dict[tuple[str, TTA], list[Judgement]] = {
        (variant, mode): [] for variant in variants for mode in modes
    }
    for path, label in photographs:
        found = {name: loaded.classify(path, modes) for name, loaded in variants.items()}
        reference = next(iter(found.values()))
        for (variant, mode), judgements in judged.items():
            judgements.append(judge(found[variant][mode], label, reference[mode]))
    return {way: Judgements(judgements) for way, judgements in judged.items()}


def run(args: argparse.Namespace) -> int:
    """Do what `visionserve evaluate` was asked of a model, and return its exit code."""
    folder = args.output or paths.MODEL_STORE
    return output.write(
        folder / "evaluation.json", lambda: evaluated(args, folder), [folder / "reliability.png"]
    )


def evaluated(args: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], list[Path]]:
    """Measure, print the tables, draw, and return all figures for JSON, and the drawing.

    Raises:
        ProofError, RequestError, WeightsError, ValueError, OSError: the model cannot be built, or
            a photograph cannot be used.
    """
    from visionserve.models import IMAGENET_CATEGORIES

    with tempfile.TemporaryDirectory() as scratch:
        check_architecture(args.model)
        count = QUICK if args.quick else None
        config = VARIANTS[args.variants[0]]
        photographs = gather(args, IMAGENET_CATEGORIES, config, count).photographs
        if args.enlarge:
            photographs = labelled.enlarge(photographs, args.enlarge, Path(scratch))
        calibration = photos.folder(args.calibration) if args.calibration else photos.packaged()
        variants = load_variants(args.model, args.variants, calibration, Path(scratch))
        modes = next(iter(variants.values())).modes(args.modes)
        ways = len(variants) * len(modes)
        bar = tqdm(photographs, desc=f"photographs, each {ways} times", smoothing=0)
        judged = measure(variants, bar, modes)
        deletions = delete(variants, photographs)
    enlarged = f", enlarged to {args.enlarge} px where smaller" if args.enlarge else ""
    about = f"{args.model}, {len(photographs)} photographs{enlarged} ({circumstances.here()})"
    print(f"{about}; 95 % confidence intervals\n\n{accuracy(judged)}\n\n{confidence(judged)}\n")
    figures = [
        {"runtime": variant, "tta": mode} | judgements.summary()
        for (variant, mode), judgements in judged.items()
    ]
    rows = [[variant, *found.row()] for variant, found in deletions.items()]
    if rows:
        print(f"{table(['runtime', *deletion.COLUMNS], rows)}\n")
    record = {
        "about": about,
        "figures": figures,
        "deletion": {variant: found.summary() for variant, found in deletions.items()},
    }
    drawn = folder / "reliability.png"
    draw(judged, drawn)
    return record, [drawn]


def delete(
    variants: Mapping[str, Loaded], photographs: Sequence[tuple[Path, int]]
) -> dict[str, Deletion]:
    """Run the deletion test on some photographs, for each variant that can be explained."""
    chosen = [path for path, _ in photographs[:: max(1, len(photographs) // QUICK)][:QUICK]]
    return {
        name: deletion.measure(loaded.runtime, map(loaded.crop, chosen), loaded.metadata.transforms)
        for name, loaded in variants.items()
        if loaded.metadata.explains and len(chosen) > 1
    }


def accuracy(judged: Mapping[tuple[str, TTA], Judgements]) -> str:
    """Return a table of accuracies, compared with the first row and the same mode's first row."""
    rows = []
    first = next(iter(judged.values()))
    for (variant, mode), found in judged.items():
        same = next(other for (_, other_mode), other in judged.items() if other_mode == mode)
        shares = [proportion(share).percent for share in (found.right, found.among_five)]
        differences = [_difference(found.right, other.right) for other in (first, same)]
        rows.append([variant, mode, *shares, *differences])
    columns = ("Top-1", "Top-5", "Top-1 to first row", "to first runtime, same TTA")
    return table(["runtime", "TTA", *columns], rows)


def confidence(judged: Mapping[tuple[str, TTA], Judgements]) -> str:
    """Return a table of confidence figures; Δp and Top-1 are compared in the same mode."""
    rows = []
    for (variant, mode), found in judged.items():
        figures = found.summary()
        shares = ("confident", "right where confident", "warned where wrong")
        cells = [variant, mode, f"{figures['nll']:.3f}", f"{figures['ece']:.3f}"]
        cells += [percent(figures[name]["value"]) for name in shares]
        cells.append(f"{figures['mean difference']:.3f} / {figures['largest difference']:.3f}")
        rows.append([*cells, f"{figures['same top1']:.1%}"])
    columns = ("NLL", "ECE", "confident", "of those right", "errors that carry the warning")
    return table(["runtime", "TTA", *columns, "Δp mean / largest", "same Top-1"], rows)


def _difference(ours: NDArray[np.bool_], reference: NDArray[np.bool_]) -> str:
    difference, width, p = paired_difference(ours, reference)
    return f"{100 * difference:+.1f} ± {100 * width:.1f} points (p = {p:.2f})"


def draw(judged: Mapping[tuple[str, TTA], Judgements], path: Path) -> None:
    """Draw reliability diagrams, one for each mode, as a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    modes = list(dict.fromkeys(mode for _, mode in judged))
    size = (3.2 * len(modes) + 0.6, 3.8)
    figure, axes = pyplot.subplots(
        1, len(modes), figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    for axis, mode in zip(axes[0], modes, strict=True):
        axis.plot([0, 1], [0, 1], color="grey", linestyle="dotted")
        for (variant, other), found in judged.items():
            if other == mode:
                bins = found.reliability
                label = f"{variant} (ECE {bins.ece:.3f})"
                filled = bins.counts > 0
                axis.plot(bins.confidence[filled], bins.accuracy[filled], marker=".", label=label)
        axis.set(title=mode, xlabel="confidence", xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axis.legend(fontsize="xx-small", loc="lower right")
    axes[0][0].set_ylabel("share that is right")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
