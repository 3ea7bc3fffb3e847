"""The deletion test: whether what an explanation calls evidence is what the model goes by.

The hottest fifth of a view is painted over in the mean colour, and as many cells of the map at
random; the more the probability of the predicted class falls for the first than for the second, the
more the map means. After the deletion metric of RISE (Petsiuk et al., BMVC 2018).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.statistics import Interval, clustered, ratio_of_means
from visionserve.metadata import Transforms
from visionserve.runtimes import Runtime

SHARE = 0.2
DRAWS = 8
BAR = 2.0


@dataclass(frozen=True)
class Deletion:
    """How far the probability of the predicted class fell, a photograph each.

    Attributes:
        hottest: float of shape (photographs,), with the hottest cells painted over.
        random: float of shape (photographs, draws), with as many cells at random.
    """

    hottest: NDArray[np.float64]
    random: NDArray[np.float64]

    @property
    def ratio(self) -> Interval:
        """How many times as far it fell in the mean, with the interval over photographs."""
        return ratio_of_means(self.hottest, self.random.mean(axis=1))

    def summary(self) -> dict[str, Any]:
        """Return all figures, ready for JSON."""
        return {
            "photographs": len(self.hottest),
            "hottest": vars(clustered(self.hottest[:, np.newaxis])),
            "random": vars(clustered(self.random)),
            "ratio": vars(self.ratio),
        }

    def row(self) -> list[str]:
        """Return the cells of a table: the two drops in points, and their ratio."""
        figures = self.summary()
        drops = (f"{100 * figures[name]['value']:.1f} points" for name in ("hottest", "random"))
        ratio = self.ratio
        reached = "ok" if ratio.value >= BAR else "not reached"
        return [*drops, f"{ratio.value:.1f} ({ratio.low:.1f} to {ratio.high:.1f})", reached]


COLUMNS = (f"hottest {SHARE:.0%} painted over", "a random one", "ratio", f"at least {BAR:g}")


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
    colour = np.round(255 * np.array(transforms.mean)).astype(np.uint8)
    hottest, random = [], []
    for view in views:
        before = runtime(view)[0]
        best = int(before.argmax())
        grid = runtime.contributions(view)[0, ..., best]
        count = round(SHARE * grid.size)
        chosen = [grid.argsort(axis=None)[-count:]]
        chosen += [dice.permutation(grid.size)[:count] for _ in range(DRAWS)]
        painted = [paint(view, grid.shape, cells, colour) for cells in chosen]
        after = runtime(np.concatenate(painted))[:, best]
        falls = before[best].astype(np.float64) - after
        hottest.append(falls[0])
        random.append(falls[1:])
    return Deletion(np.array(hottest), np.array(random))


def paint(
    view: NDArray[np.uint8],
    grid: tuple[int, ...],
    cells: NDArray[np.intp],
    colour: NDArray[np.uint8],
) -> NDArray[np.uint8]:
    """Paint cells of a grid over a view.

    Args:
        view: uint8 of shape (1, height, width, 3).
        grid: its rows and columns.
        cells: indices into the flattened grid.
        colour: uint8 of shape (3,).

    Returns:
        A copy of the same shape.
    """
    covered = np.zeros(grid, bool)
    covered.flat[cells] = True
    rows, columns = (np.arange(n) * m // n for n, m in zip(view.shape[1:3], grid, strict=True))
    return np.where(covered[rows][:, columns, np.newaxis], colour, view)
