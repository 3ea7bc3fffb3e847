"""Measure weights on the photographs that were held out, as they are and damaged."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from visionserve.metadata import Transforms
from visionserve.models import FullyConvolutional
from visionserve_tools.archive import convert
from visionserve_tools.archive.weights import load_state_dict, resolve
from visionserve_tools.quality.corruptions import CORRUPTIONS
from visionserve_tools.quality.statistics import Interval, clustered, proportion
from visionserve_tools.training import reading
from visionserve_tools.training.reading import Damage

SEVERE = 1
# Each photograph is damaged in every third of the ten ways, and no more photographs than these.
EVERY = 3
MOST = 100


@dataclass(frozen=True)
class Measured:
    """The answers of the written weights in FP32.

    Attributes:
        probabilities: float32 of shape (photographs, classes).
        labels: int of shape (photographs,).
        damaged: whether each severely damaged form is classified rightly: float of shape
            (photographs that were damaged, kinds of damage), NaN where there is no such form.
    """

    probabilities: NDArray[np.float32]
    labels: NDArray[np.int64]
    damaged: NDArray[np.float64]

    @property
    def top1(self) -> Interval:
        """The share of right answers, with Wilson's interval."""
        return proportion(self.probabilities.argmax(axis=1) == self.labels)

    @property
    def top1_damaged(self) -> Interval:
        """The share among damaged photographs, with a bootstrap interval over photographs."""
        return clustered(self.damaged)

    @property
    def confusion(self) -> NDArray[np.int64]:
        """How many photographs of each class, by row, got each answer, by column."""
        classes = self.probabilities.shape[1]
        pairs = self.labels * classes + self.probabilities.argmax(axis=1)
        return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def measure(
    architecture: str,
    weights: Path,
    photographs: Sequence[tuple[Path, int]],
    classes: int,
    transforms: Transforms,
) -> Measured:
    """Classify photographs by their centre crop, with the weights in a file.

    Args:
        architecture: a key of `MODELS`.
        weights: a state dict.
        photographs: with their class indices, all of which can be read.
        classes: how many there are.
        transforms: the preprocessing.
    """
    module = FullyConvolutional(architecture, classes, transforms).eval()
    module.network.load_state_dict(
        load_state_dict(resolve(architecture, weights), module.network.state_dict())
    )
    some = photographs[:: -(-len(photographs) // MOST)]
    damages = [
        (number, column)
        for number in range(len(some))
        for column in range(len(CORRUPTIONS))
        if (column + number) % EVERY == 0
    ]
    tasks: list[reading.Task] = [(path, None) for path, _ in photographs]
    kinds = tuple(CORRUPTIONS)
    tasks += [
        (some[number][0], Damage(kinds[column], SEVERE, number)) for number, column in damages
    ]
    with tempfile.TemporaryDirectory() as scratch:
        network = Path(scratch) / "network.xml"
        convert.save(convert.to_openvino(module, transforms.crop), network)
        seen = reading.read(tasks, transforms, network, "held-out photographs, and damaged ones")
    outputs = []
    for (path, _), one in zip(tasks, seen, strict=True):
        if isinstance(one, str) or one.output is None:
            raise ValueError(f"{path}: {one}")
        outputs.append(one.output)
    found = np.stack(outputs)
    labels = np.array([label for _, label in photographs])
    damaged = np.full((len(some), len(kinds)), np.nan)
    answers = found[len(photographs) :].argmax(axis=1)
    for (number, column), answer in zip(damages, answers, strict=True):
        damaged[number, column] = answer == some[number][1]
    return Measured(found[: len(photographs)], labels, damaged)
