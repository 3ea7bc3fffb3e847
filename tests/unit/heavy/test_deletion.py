"""The deletion test, on a model whose evidence is known."""

import numpy as np
import pytest
from numpy.typing import NDArray

from visionserve.metadata import Transforms
from visionserve.runtimes import Runtime
from visionserve_tools.quality import deletion
from visionserve_tools.quality.statistics import ratio_of_means

CELLS, SIDE = 10, 8
EVIDENCE = round(0.2 * CELLS**2)
GREY = Transforms(mean=(0.0, 0.0, 0.0))


class Counter(Runtime):
    """How many of its cells are white is what is probable; everything else changes nothing."""

    capacity = 1

    def __init__(self, honest: bool = True) -> None:
        self._honest = honest

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        white = self._cells(pixels).mean(axis=(1, 2)) / 0.2
        return np.stack([white, 1 - white], axis=1).astype(np.float32)

    def contributions(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        cells = self._cells(pixels)
        return np.stack([cells if self._honest else 1 - cells, 1 - cells], axis=3)

    def _cells(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        parts = pixels.reshape(len(pixels), CELLS, SIDE, CELLS, SIDE, 3)
        found: NDArray[np.float32] = (parts == 255).mean(axis=(2, 4, 5)).astype(np.float32)
        return found


def views(count: int) -> list[NDArray[np.uint8]]:
    """A fifth of the cells is white, elsewhere in each view; the others are of any colour."""
    dice = np.random.default_rng(1)
    found = []
    for _ in range(count):
        view = dice.integers(0, 255, (1, CELLS * SIDE, CELLS * SIDE, 3), dtype=np.uint8)
        white = dice.permutation(CELLS**2)[:EVIDENCE]
        for row, column in zip(*np.unravel_index(white, (CELLS, CELLS)), strict=True):
            top, left = SIDE * row, SIDE * column
            view[0, top : top + SIDE, left : left + SIDE] = 255
        found.append(view)
    return found


def test_evidence_painted_over_is_all_of_the_probability() -> None:
    """Of random cells a fifth is evidence, and so it is of any shape, so that the ratios are 5."""
    found = deletion.measure(Counter(), views(40), GREY)
    assert np.allclose(found.hottest, 1)
    for falls, name in ((found.cells, "random cells"), (found.shape, "same shape elsewhere")):
        assert falls.shape == (40, deletion.DRAWS)
        assert falls.mean() == pytest.approx(0.2, abs=0.02)
        ratio = found.summary()[f"ratio to {name}"]
        assert ratio["low"] < 5 < ratio["high"] < 6
        assert ratio["value"] == pytest.approx(1 / falls.mean())
    first, random, ratio, *_ = found.row()
    assert (first, random) == ("100.0 points", f"{100 * found.cells.mean():.1f} points")
    assert ratio.startswith(f"{1 / found.cells.mean():.2f} (")


def test_a_map_that_lies_is_found_out() -> None:
    found = deletion.measure(Counter(honest=False), views(20), GREY)
    assert np.allclose(found.hottest, 0)
    assert found.summary()["ratio to random cells"]["high"] < 1


def test_a_shape_stays_itself_elsewhere() -> None:
    """Evidence that is one square: scattered cells or the square elsewhere hit a part of it."""
    view = np.zeros((1, CELLS * SIDE, CELLS * SIDE, 3), np.uint8)
    view[0, : 4 * SIDE, : 5 * SIDE] = 255
    found = deletion.measure(Counter(), [view] * 30, GREY)
    assert np.allclose(found.hottest, 1)
    overlaps = {a * b / 20 for a in range(5) for b in range(6)}
    assert {round(fall, 3) for fall in found.shape.ravel()} <= overlaps
    assert found.shape.std() > 2 * found.cells.std()


def test_what_is_painted_has_the_models_mean_colour() -> None:
    view = np.zeros((1, 6, 10, 3), np.uint8)
    colour = np.array([1, 2, 3], np.uint8)
    painted = deletion.paint(view, np.array([[False, True], [True, False]]), colour)[0]
    assert (painted[:3, 5:] == colour).all() and (painted[3:, :5] == colour).all()
    assert not painted[:3, :5].any() and not painted[3:, 5:].any() and not view.any()


def test_a_ratio_is_that_of_the_means_with_the_bootstraps_interval() -> None:
    dice = np.random.default_rng(0)
    under = dice.normal(1, 0.1, 100)
    found = ratio_of_means(3 * under, under)
    assert [found.value, found.low, found.high] == pytest.approx([3, 3, 3])
    noisy = ratio_of_means(3 + dice.normal(0, 1, 100), under)
    # The delta method: the ratio's relative error is that of both means together.
    error = noisy.value * np.hypot(0.1 / noisy.value, 0.01)
    assert noisy.high - noisy.low == pytest.approx(2 * 1.96 * error, rel=0.2)
    # The mean of ratios would be far above.
    uneven = dice.gamma(2, 1, 100)
    found = ratio_of_means(dice.normal(6, 1, 100), uneven)
    assert found.low < found.value < found.high < 4
