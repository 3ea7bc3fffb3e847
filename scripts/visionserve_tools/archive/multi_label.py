"""How close two multi-label models are: each class's probabilities, and the labels they give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

TIE = 0.01


@dataclass(frozen=True)
class Closeness:
    """How far probabilities are from those that are expected.

    Attributes:
        mean: mean of |p - p expected|, of the class whose mean is largest.
        largest: maximum of the same over all classes.
        agreement: share of the images, 0 to 1, with the labels that are expected. A label whose
            expected probability lies within `TIE` of its threshold is right either way.
    """

    mean: float
    largest: float
    agreement: float


def compare(
    found: NDArray[np.floating[Any]],
    expected: NDArray[np.floating[Any]],
    thresholds: Sequence[float],
) -> Closeness:
    """Compare probabilities, both of shape (images, classes).

    Args:
        found: of the model.
        expected: what they should be; NaN where nothing is expected.
        thresholds: of each class, from which it is a label.
    """
    known = ~np.isnan(expected)
    differences = np.where(known, np.abs(found - expected), 0)
    means = differences.sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    limits = np.array(thresholds)
    same = (found >= limits) == (expected >= limits)
    agreed = (same | (np.abs(expected - limits) <= TIE) | ~known).all(axis=1)
    return Closeness(float(means.max()), float(differences.max()), float(agreed.mean()))
