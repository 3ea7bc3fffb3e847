"""The deletion test: does an explanation mark what the model relies on?

The hottest fifth of a view's map is painted over in the mean colour. For comparison, as many random
cells are painted over, and also the hottest cells' shape at a random place, because scattered cells
cut a photograph into more pieces than one shape does. The explanation is good if the probability of
the predicted class falls much further for the hottest cells than for the others. The test follows
the deletion metric of RISE (Petsiuk et al., BMVC 2018).
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionserve.metadata import Transforms
from visionserve.runtimes import Runtime
from visionserve_tools.quality.statistics import clustered, ratio_of_means

SHARE = 0.2
DRAWS = 8


@dataclass(frozen=True)
class Deletion:
    """How far the predicted class's probability fell for each photograph.

    Attributes:
        hottest: float of shape (photographs,), with the hottest cells painted over.
        cells: float of shape (photographs, draws), with as many cells at random.
        shape: float of shape (photographs, draws), with the hottest ones' shape elsewhere.
    """

    hottest: NDArray[np.float64]
    cells: NDArray[np.float64]
    shape: NDArray[np.float64]

    def summary(self) -> dict[str, Any]:
        """Return the mean falls, and the ratios of the hottest cells' to the others, for JSON."""
        others = {"random cells": self.cells, "same shape elsewhere": self.shape}
        ratios = {
            f"ratio to {name}": ratio_of_means(self.hottest, falls.mean(axis=1))
            for name, falls in others.items()
        }
        means = {name: clustered(falls) for name, falls in others.items()}
        found = {"hottest": clustered(self.hottest[:, np.newaxis])} | means | ratios
        intervals = {name: asdict(interval) for name, interval in found.items()}
        return {"photographs": len(self.hottest)} | intervals

    def row(self) -> list[str]:
        """Return the cells of a table, falls in points."""
        found = self.summary()
        return [
            f"{found[name]['value']:.2f} ({found[name]['low']:.2f} to {found[name]['high']:.2f})"
            if name.startswith("ratio")
            else f"{100 * found[name]['value']:.1f} points"
            for name in COLUMNS
        ]


COLUMNS = (
    *("hottest", "random cells", "ratio to random cells"),
    *("same shape elsewhere", "ratio to same shape elsewhere"),
)


def measure(
    runtime: Runtime, views: Iterable[NDArray[np.uint8]], transforms: Transforms
) -> Deletion:
    """Run the test.

    Args:
        runtime: the model, which can be explained.
        views: uint8 of shape (1, height, width, 3), one of each photograph.
        transforms: the model's; its mean is the colour of what is painted over.
    """
    dice = np.random.default_rng(0)
    colour = np.array(transforms.colour, np.uint8)
    falls = []
    for view in views:
        before = runtime(view)[0]
        best = int(before.argmax())
        grid = runtime.contributions(view)[0, ..., best]
        hottest = np.zeros(grid.shape, bool)
        hottest.flat[grid.argsort(axis=None)[-round(SHARE * grid.size) :]] = True
        masks = [hottest]
        masks += [dice.permutation(hottest.ravel()).reshape(grid.shape) for _ in range(DRAWS)]
        for _ in range(DRAWS):
            down, across = dice.integers(grid.shape)
            masks.append(np.roll(hottest, (down, across), axis=(0, 1)))
        after = runtime(np.concatenate([paint(view, mask, colour) for mask in masks]))[:, best]
        falls.append(before[best].astype(np.float64) - after)
    first, cells, shape = np.split(np.array(falls), [1, 1 + DRAWS], axis=1)
    return Deletion(first[:, 0], cells, shape)


def paint(
    view: NDArray[np.uint8], mask: NDArray[np.bool_], colour: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Paint cells over a view.

    Args:
        view: uint8 of shape (1, height, width, 3).
        mask: bool of shape (rows, columns), the cells of the map.
        colour: uint8 of shape (3,).

    Returns:
        A copy of the same shape.
    """
    sides = zip(view.shape[1:3], mask.shape, strict=True)
    rows, columns = (np.arange(length) * cells // length for length, cells in sides)
    return np.where(mask[rows][:, columns, np.newaxis], colour, view)
