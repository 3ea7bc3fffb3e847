"""Whether a picture is like those of the model's classes.

A classifier names one of its classes for every picture, and is often sure of it. Pooled features
tell more: an unfamiliar picture excites a few channels strongly, or lies far from every photograph.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from visionserve.config import TTA
from visionserve.metadata import KNOWN, Familiarity
from visionserve.runtimes import Linear, Runtime

NEAREST = 3

Features = NDArray[np.float32]
Score = Callable[[Features], float]


class Rounded(NamedTuple):
    """A last layer in INT8, in a quarter of its memory: its weight is `weight` * `step`.

    Attributes:
        weight: int8 of shape (channels, classes).
        step: float32 of shape (classes,).
        bias: float32 of shape (classes,).
    """

    weight: NDArray[np.int8]
    step: NDArray[np.float32]
    bias: NDArray[np.float32]

    @classmethod
    def of(cls, last: Linear) -> "Rounded | Linear":
        """Return a layer in INT8, or the layer itself where that would change its weight."""
        step = np.abs(last.weight).max(axis=0) / np.float32(127)
        weight = np.rint(last.weight / np.maximum(step, np.finfo(np.float32).tiny))
        if not np.allclose(weight * step, last.weight, rtol=1e-6, atol=0):
            return last
        return cls(weight.astype(np.int8), step, last.bias)


@dataclass(frozen=True)
class Energy:
    """The energy of the logits that an image's strongest features give, each of them clipped.

    ReAct (Sun et al., NeurIPS 2021) clips each feature. ASH-S (Djurisic et al., ICLR 2023) removes
    the weaker ones, and scales the others up by how much that takes away. The energy of the logits
    that these give (Liu et al., NeurIPS 2020) is higher for a familiar picture.

    Attributes:
        last: the network's last layer.
        clip: the largest value of a feature.
        kept: the share of the channels whose features are not removed, 0 to 1.
    """

    last: Linear | Rounded
    clip: float
    kept: float

    def __call__(self, features: Features) -> float:
        """Score features of shape (channels,)."""
        count = round(self.kept * len(features))
        strongest = np.argpartition(-features, count - 1)[:count]
        clipped = np.minimum(features, self.clip)
        left = clipped[strongest]
        scale = np.exp(clipped.sum() / max(left.sum(), np.finfo(np.float32).tiny))
        logits = self._weighted(strongest, scale * left) + self.last.bias
        highest = logits.max()
        return float(highest + np.log(np.exp(logits - highest).sum()))

    def _weighted(self, channels: NDArray[np.intp], values: Features) -> NDArray[np.float32]:
        """Weight the features of some channels, where the others are 0."""
        if isinstance(self.last, Rounded):
            rows = self.last.weight[channels].astype(np.float32)
            return np.asarray(values @ rows * self.last.step)
        # Zeros, and not a part of the weight, which would be copied for each image.
        features = np.zeros(len(self.last.weight), np.float32)
        features[channels] = values
        return np.asarray(features @ self.last.weight)


class Neighbours:
    """The cosine of an image's features and those of the third nearest photograph.

    This is the distance to the k-th nearest neighbour (Sun et al., ICML 2022), of features less
    their mean.

    Args:
        known: float of shape (photographs, channels), features of photographs of the classes.
    """

    def __init__(self, known: NDArray[np.floating]) -> None:
        self._mean = known.astype(np.float32).mean(axis=0)
        self._known = self._directions(known)

    def __call__(self, features: Features) -> float:
        """Score features of shape (channels,)."""
        return float(nearest(self._known @ self._directions(features)))

    def among(self, features: Features) -> NDArray[np.float32]:
        """Score the known photographs by their own features, each without itself.

        Args:
            features: float of shape (photographs, channels); of other views, say.
        """
        cosines = self._directions(features) @ self._known.T
        np.fill_diagonal(cosines, -np.inf)
        return nearest(cosines)

    def _directions(self, features: NDArray[np.floating]) -> NDArray[np.float32]:
        centred = features.astype(np.float32) - self._mean
        lengths = np.linalg.norm(centred, axis=-1, keepdims=True)
        found: NDArray[np.float32] = centred / np.maximum(lengths, np.finfo(np.float32).tiny)
        return found


def nearest(cosines: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the third largest of the last axis, or the least if there are fewer."""
    count = min(NEAREST, cosines.shape[-1])
    found: NDArray[np.float32] = np.partition(cosines, -count, axis=-1)[..., -count]
    return found


def load(
    directory: Path, familiarity: Familiarity, runtime: Runtime
) -> dict[TTA, Callable[[Features], bool]]:
    """Load what tells unfamiliar pictures, for each TTA mode that has a threshold.

    Args:
        directory: where the archive's files are.
        familiarity: the method, and its thresholds.
        runtime: has the network's last layer.

    Returns:
        For a mode, a function that tells whether features of shape (channels,) are unfamiliar.
    """
    scores: dict[TTA, Score]
    if familiarity.method == "neighbours":
        known = Neighbours(np.load(directory / KNOWN))
        scores = dict.fromkeys(familiarity.thresholds, known)
    else:
        last = Rounded.of(runtime.linear())
        scores = {
            mode: Energy(last, threshold.clip or math.inf, familiarity.kept)
            for mode, threshold in familiarity.thresholds.items()
        }
    return {mode: _below(scores[mode], t.score) for mode, t in familiarity.thresholds.items()}


def _below(score: Score, least: float) -> Callable[[Features], bool]:
    return lambda features: score(features) < least
