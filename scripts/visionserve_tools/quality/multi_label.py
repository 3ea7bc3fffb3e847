"""Evaluate a multi-label archive as it is served, on its owner's photographs."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, precision_recall_fscore_support
from tqdm import tqdm

from visionserve.config import TTA
from visionserve_tools.batch.formats import record
from visionserve_tools.batch.rows import name
from visionserve_tools.quality import thresholds
from visionserve_tools.quality.models import Archived, gather_multi_label
from visionserve_tools.quality.statistics import reliability
from visionserve_tools.report import circumstances
from visionserve_tools.report.tables import percent, table

FIGURES = ("precision", "recall", "f1")


@dataclass(frozen=True)
class Answers:
    """What a multi-label model says of labelled photographs.

    Attributes:
        probabilities: float of shape (photographs, classes).
        truth: bool of the same shape.
        thresholds: of each class.
        categories: the labels, in class-index order.
    """

    probabilities: NDArray[np.floating[Any]]
    truth: NDArray[np.bool_]
    thresholds: Sequence[float]
    categories: Sequence[str]

    @property
    def found(self) -> NDArray[np.bool_]:
        """The labels that the photographs get: bool of shape (photographs, classes)."""
        found: NDArray[np.bool_] = np.round(self.probabilities, 6) >= np.array(self.thresholds)
        return found

    def by_class(self) -> list[dict[str, Any]]:
        """Return each label's figures, ready for JSON; None where there is nothing to judge."""
        rows = []
        for index, category in enumerate(self.categories):
            shown, given = self.truth[:, index], self.found[:, index]
            figures = precision_recall_fscore_support(
                shown, given, average="binary", zero_division=np.nan
            )
            column = self.probabilities[:, index]
            precise = average_precision_score(shown, column) if shown.any() else None
            rows.append(
                {
                    "label": category,
                    "support": int(shown.sum()),
                    "answers": int(given.sum()),
                    "threshold": self.thresholds[index],
                    **dict(zip(FIGURES, map(_number, figures[:3]), strict=True)),
                    "average precision": _number(precise),
                }
            )
        return rows

    def summary(self) -> dict[str, Any]:
        """Return the figures of all labels together, ready for JSON.

        F1 is micro, over all labels of all photographs alike, and macro, the mean of the labels'.
        `exact` is the share of photographs with all of their labels and no other. mAP and macro F1
        leave out labels that there is nothing to judge of.
        """
        rows = self.by_class()
        given, tempered = self.found, self.probabilities.astype(np.float64)
        return {
            "mAP": _mean(row["average precision"] for row in rows),
            "f1 micro": thresholds.f1(given, self.truth),
            "f1 macro": _mean(row["f1"] for row in rows),
            "exact": float((given == self.truth).all(axis=1).mean()),
            "nll": float(thresholds.log_losses(tempered, self.truth).mean()),
            "ece": reliability(tempered.ravel(), self.truth.ravel()).ece,
        }


def _number(value: Any) -> float | None:
    return None if value is None or np.isnan(value) else float(value)


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def evaluate(
    archived: Archived, args: argparse.Namespace, count: int | None, folder: Path
) -> tuple[dict[str, Any], list[Path]]:
    """Classify photographs, print the figures, and write those of single labels (`classes.csv`).

    Returns:
        All figures, for JSON, and the files' paths.

    Raises:
        ValueError, OSError: as `gather_multi_label`.
        RequestError: the model fails.
    """
    described = archived.metadata
    gathered = gather_multi_label(args, described.categories, archived.config, count)
    paths = [path for path, _ in gathered.photographs]
    labels = [own for _, own in gathered.photographs]
    truth = thresholds.hot(labels, len(described.categories))
    modes = archived.modes(args.modes or [described.suited(archived.config.defaults).tta])
    rows: dict[TTA, list[Any]] = {mode: [] for mode in modes}
    for path in tqdm(paths, desc="photographs", smoothing=0):
        for mode, probabilities in archived.classify(path, modes).items():
            rows[mode].append(probabilities)
    answered = {
        mode: Answers(np.stack(found), truth, described.thresholds, described.categories)
        for mode, found in rows.items()
    }
    asked = f"{len(paths)} photographs of {name(args.folder)}"
    about = f"{archived}, {asked} ({circumstances.here()})"
    first = next(iter(answered.values())).by_class()
    print(f"{about}\n\n{summary(answered)}\n\n{by_class(first)}\n")
    written = folder / "classes.csv"
    text = "".join(map(record, [first[0], *(row.values() for row in first)]))
    written.write_text(text, encoding="utf-8", newline="")
    return {
        "about": about,
        "archive": {"name": archived.name, "version": archived.version},
        "left out": [
            {"path": str(out.path), "error": f"{out.code}: {out.message}"} for out in gathered.left
        ],
        "figures": [{"tta": mode} | found.summary() for mode, found in answered.items()],
        "classes": first,
    }, [written]


def summary(answered: Mapping[TTA, Answers]) -> str:
    """Return a table of each mode's figures."""
    shares = ("mAP", "f1 micro", "f1 macro", "exact")
    rows = []
    for mode, found in answered.items():
        figures = found.summary()
        cells = [mode, *(percent(figures[share]) for share in shares)]
        rows.append([*cells, f"{figures['nll']:.3f}", f"{figures['ece']:.3f}"])
    columns = ("mAP:", "F1 micro:", "F1 macro:", "all labels right:", "NLL:", "ECE:")
    return table(["TTA", *columns], rows)


def by_class(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of the labels, those of least F1 first, twenty at most."""
    shown = sorted(rows, key=lambda row: row["f1"] or 0)[:20]
    cells = [
        [
            row["label"],
            row["support"],
            f"{row['threshold']:g}",
            *(percent(row[figure]) for figure in (*FIGURES, "average precision")),
        ]
        for row in shown
    ]
    more = f"\n\n{len(rows) - len(shown)} more in classes.csv" if len(rows) > len(shown) else ""
    columns = ("pictures:", "threshold:", "precision:", "recall:", "F1:", "AP:")
    return table(["label", *columns], cells) + more
