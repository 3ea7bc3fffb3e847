"""The probability below which a name is not worth showing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.report.tables import table
from visionserve.config import TTA

NAMES = 3
KEPT = 0.95

Probabilities = NDArray[np.floating[Any]]


def fit(probabilities: Probabilities, labels: NDArray[np.int64]) -> float:
    """Find the largest threshold at which 95 % of the right names are still shown.

    A right name is that of an answer's true class, if it is among the best three. This is an
    empirical quantile of its probability, not a promise of coverage: pictures that are damaged, or
    of nothing that the model knows, have right names below it.

    Args:
        probabilities: float of shape (answers, classes), tempered.
        labels: int of shape (answers,).

    Returns:
        A probability with six digits, as answers have it; 0 without a single right name.
    """
    right = np.sort(_right(probabilities, labels))
    return float(right[int((1 - KEPT) * len(right) + 1e-9)]) if len(right) else 0.0


def _ranked(probabilities: Probabilities) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the best classes of each answer and their probabilities as a client sees them."""
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :NAMES]
    return best, np.take_along_axis(probabilities, best, axis=1).astype(float).round(6)


def _right(probabilities: Probabilities, labels: NDArray[np.int64]) -> NDArray[np.float64]:
    best, shown = _ranked(probabilities)
    return shown[best == labels[:, None]]


@dataclass(frozen=True)
class Shown:
    """What a threshold leaves of the best three names.

    Attributes:
        names: how many names an answer shows, on average.
        right: share of the answers, 0 to 1, whose class is among the names shown.
        all_right: share whose class is among the best three.
    """

    names: float
    right: float
    all_right: float


def shown(probabilities: Probabilities, labels: NDArray[np.int64], threshold: float) -> Shown:
    """Judge a threshold; the best name is always shown."""
    best, values = _ranked(probabilities)
    are_shown = values >= threshold
    are_shown[:, 0] = True
    are_right = best == labels[:, None]
    return Shown(
        float(are_shown.sum(axis=1).mean()),
        float((are_shown & are_right).any(axis=1).mean()),
        float(are_right.any(axis=1).mean()),
    )


def summary(answers: Mapping[TTA, tuple[Probabilities, NDArray[np.int64]]]) -> str:
    """Return a table of each mode's threshold, and of what it leaves.

    Args:
        answers: TTA mode to tempered probabilities and labels; see `fit`.
    """
    rows = []
    for mode, (probabilities, labels) in answers.items():
        threshold = fit(probabilities, labels)
        left = shown(probabilities, labels, threshold)
        right = f"{left.right:.1%} / {left.all_right:.1%}"
        rows.append([mode, f"{threshold:.3f}", f"{left.names:.1f}", right])
    heading = f"Names worth showing: {KEPT:.0%} of the right ones are at least as probable"
    columns = ["TTA", "probability", "names", "answers with the right one, of these / of three"]
    return f"{heading}\n\n{table(columns, rows)}"
