"""The probability below which a name is not worth showing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionserve.config import TTA
from visionserve_tools.report.tables import table

NAMES = 3
KEPT_PERCENT = 95

Probabilities = NDArray[np.floating[Any]]


def fit(probabilities: Probabilities, labels: NDArray[np.int64]) -> float:
    """Find the largest threshold that 95 % of the answers' true classes reach.

    This is the threshold of the least ambiguous sets of classes (Sadinle et al., 2019), fitted
    without a promise of coverage: a picture that is damaged, or of nothing that the model knows,
    keeps its true class less often.

    Args:
        probabilities: float of shape (answers, classes), tempered.
        labels: int of shape (answers,).

    Returns:
        A probability with six digits, as answers have it.
    """
    right = np.sort(probabilities[np.arange(len(labels)), labels].astype(float).round(6))
    return float(right[len(right) * (100 - KEPT_PERCENT) // 100])


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
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :NAMES]
    values = np.take_along_axis(probabilities, best, axis=1).astype(float).round(6)
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
    heading = f"Names worth showing: {KEPT_PERCENT}% of the true classes are as probable as this"
    columns = ["TTA", "probability", "names", "answers with the right one, of these / of three"]
    return f"{heading}\n\n{table(columns, rows)}"
