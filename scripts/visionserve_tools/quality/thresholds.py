"""Fit the threshold of each label of a multi-label model: the one of the best F1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionserve_tools.archive.thresholds import DEFAULT
from visionserve_tools.quality.statistics import EPSILON
from visionserve_tools.report.tables import table

Probabilities = NDArray[np.floating[Any]]
Truth = NDArray[np.bool_]


def fit(probabilities: Probabilities, truth: Truth) -> list[float]:
    """Return the threshold of each class, in class-index order.

    A class that all photographs show, or none, keeps `DEFAULT`.

    Args:
        probabilities: float of shape (photographs, classes), as answers have them.
        truth: bool of the same shape.
    """
    return [
        best(column, shown) if shown.any() and not shown.all() else DEFAULT
        for column, shown in zip(probabilities.T, truth.T, strict=True)
    ]


def best(probabilities: Probabilities, truth: Truth) -> float:
    """Return the threshold of the best F1 of one class, the highest where several are as good.

    It lies midway between two photographs' probabilities, rounded to four digits where that leaves
    it there.

    Args:
        probabilities: float of shape (photographs,).
        truth: bool of the same shape, which photographs show the class.
    """
    shown = np.round(probabilities.astype(np.float64), 6)
    order = np.argsort(-shown, kind="stable")
    sorted_, hits = np.append(shown[order], 0), np.cumsum(truth[order])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + truth.sum())
    f1[sorted_[:-1] == sorted_[1:]] = -1  # No threshold parts equal probabilities.
    cut = int(f1.argmax())
    upper, lower = float(sorted_[cut]), float(sorted_[cut + 1])
    middle = round((upper + lower) / 2, 4)
    return middle if lower < middle <= upper else upper


def log_losses(probabilities: Probabilities, truth: Truth) -> NDArray[np.float64]:
    """Return each photograph's negative log-likelihood, in nats, its mean over the labels.

    Args:
        probabilities: float of shape (photographs, classes).
        truth: bool of the same shape.
    """
    right = np.where(truth, probabilities, 1 - probabilities).astype(np.float64)
    lost: NDArray[np.float64] = -np.log(np.maximum(right, EPSILON)).mean(axis=1)
    return lost


def hot(labels: Sequence[Sequence[int]], classes: int) -> Truth:
    """Return photographs' class indices as bool of shape (photographs, classes)."""
    truth = np.zeros((len(labels), classes), bool)
    for row, found in zip(truth, labels, strict=True):
        row[list(found)] = True
    return truth


def summary(
    categories: Sequence[str],
    probabilities: Probabilities,
    truth: Truth,
    before: Sequence[float],
    after: Sequence[float],
) -> str:
    """Return a table of each label's thresholds, before and after, with the F1 of each.

    Args:
        categories: labels in class-index order.
        probabilities: float of shape (photographs, classes).
        truth: bool of the same shape.
        before: a threshold for each class.
        after: the same.
    """
    rows = []
    for index, (category, old, new) in enumerate(zip(categories, before, after, strict=True)):
        shown = truth[:, index]
        scores = [f1(probabilities[:, index] >= threshold, shown) for threshold in (old, new)]
        cells = [category, int(shown.sum()), f"{old:g} → {new:g}"]
        rows.append([*cells, f"{scores[0]:.1%} → {scores[1]:.1%}"])
    return table(["label", "pictures:", "threshold:", "F1:"], rows)


def f1(found: Truth, truth: Truth) -> float:
    """Return 2 × precision × recall / (precision + recall), 0 where nothing is right."""
    wanted = int(found.sum() + truth.sum())
    return 2 * int((found & truth).sum()) / wanted if wanted else 0.0
