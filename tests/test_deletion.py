"""The deletion test, on a model whose evidence is known."""

import numpy as np
import pytest
from numpy.typing import NDArray

from scripts import deletion
from scripts.statistics import ratio_of_means
from visionserve.metadata import Transforms

CELLS, SIDE = 10, 32
EVIDENCE = round(0.2 * CELLS**2)
GREY = Transforms(mean=(0.0, 0.0, 0.0))


class Counter:
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
    """Of random cells a fifth is evidence, so that the ratio is 5."""
    found = deletion.measure(Counter(), views(60), GREY)
    assert np.allclose(found.hottest, 1)
    assert found.random.shape == (60, deletion.DRAWS)
    assert found.random.mean() == pytest.approx(0.2, abs=0.015)
    assert found.ratio.low < 5 < found.ratio.high < 6
    assert found.summary()["ratio"]["value"] == pytest.approx(1 / found.random.mean())
    assert found.row()[0] == "100.0 points" and found.row()[-1] == "ok"


def test_a_map_that_lies_is_found_out() -> None:
    found = deletion.measure(Counter(honest=False), views(20), GREY)
    assert np.allclose(found.hottest, 0)
    assert found.ratio.high < 1 and found.row()[-1] == "not reached"


def test_what_is_painted_has_the_models_mean_colour() -> None:
    view = np.zeros((1, 6, 10, 3), np.uint8)
    colour = np.array([1, 2, 3], np.uint8)
    painted = deletion.paint(view, (2, 2), np.array([1, 2]), colour)[0]
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
