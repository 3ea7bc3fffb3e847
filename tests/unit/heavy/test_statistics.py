"""Statistics against scikit-learn, SciPy and figures worked out by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV, calibration_curve
from sklearn.frozen import FrozenEstimator

from visionserve.postprocessing import temper
from visionserve_tools.quality import calibrate, compare, evaluate, plausible
from visionserve_tools.quality.calibrate import fit
from visionserve_tools.quality.evaluate import Judgements, judge
from visionserve_tools.quality.statistics import (
    Interval,
    clustered,
    log_loss,
    paired_difference,
    paired_interval,
    proportion,
    reliability,
)


def answers(count: int, classes: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Probabilities of shape (count, classes), and labels that they are too sure of."""
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.full(classes, 0.3), count)
    flattened = np.sqrt(probabilities)
    flattened /= flattened.sum(axis=1, keepdims=True)
    labels = np.array([generator.choice(classes, p=row) for row in flattened])
    return probabilities.astype(np.float32), labels


def test_log_loss_is_scikit_learns() -> None:
    probabilities, labels = answers(200, 7)
    probabilities[0] = np.eye(7)[(labels[0] + 1) % 7]
    found = log_loss(probabilities[np.arange(200), labels].astype(float))
    assert found == pytest.approx(
        metrics.log_loss(labels, probabilities, labels=range(7)), abs=1e-5
    )


def test_ece_is_the_one_worked_out_by_hand() -> None:
    """Bins of 1/15: two answers at 0.5 and 0.52, one right; three at 0.9, all right; one at 1."""
    confidence = np.array([0.5, 0.52, 0.9, 0.9, 0.9, 1.0])
    right = np.array([True, False, True, True, True, False])
    found = reliability(confidence, right)
    assert found.counts.tolist() == [0] * 7 + [2] + [0] * 5 + [3, 1]
    assert found.ece == pytest.approx((2 * abs(0.5 - 0.51) + 3 * abs(1 - 0.9) + 1 * abs(0 - 1)) / 6)


def test_bins_are_scikit_learns() -> None:
    probabilities, labels = answers(2000, 5)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    found = reliability(confidence.astype(float), right)
    accuracy, mean = calibration_curve(right, confidence, n_bins=15, strategy="uniform")
    filled = found.counts > 0
    assert np.allclose(found.accuracy[filled], accuracy)
    assert np.allclose(found.confidence[filled], mean)
    assert found.counts.sum() == 2000 and found.ece > 0.05


def test_a_bin_holds_its_upper_edge() -> None:
    assert reliability(np.array([0.0, 1 / 15, 1.0]), np.ones(3, bool)).counts.tolist() == [
        2,
        *[0] * 13,
        1,
    ]


def test_wilsons_interval() -> None:
    """8 of 10, from the formula: centre (8 + z²/2) / (10 + z²)."""
    z = stats.norm.ppf(0.975)
    found = proportion(np.arange(10) < 8)
    centre = (8 + z**2 / 2) / (10 + z**2)
    half = z / (10 + z**2) * math.sqrt(8 * 2 / 10 + z**2 / 4)
    assert found.value == 0.8
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half))
    assert math.isnan(proportion(np.zeros(0, bool)).value)


def test_an_interval_counts_photographs_and_not_answers() -> None:
    generator = np.random.default_rng(1)
    one = (generator.random((300, 1)) < 0.7).astype(float)
    alike = clustered(np.repeat(one, 20, axis=1))
    assert alike == clustered(one)
    expected = stats.ttest_1samp(one[:, 0], 0).confidence_interval()
    assert (alike.low, alike.high) == pytest.approx((expected.low, expected.high), abs=0.004)
    sparse = np.where(generator.random((300, 20)) < 0.25, one, np.nan)
    assert clustered(sparse).value == pytest.approx(np.nanmean(sparse))
    independent = clustered((generator.random((300, 20)) < 0.7).astype(float))
    assert independent.high - independent.low < (alike.high - alike.low) / 3


def test_pairs_are_compared() -> None:
    ours = np.array([True, True, False, True])
    reference = np.array([True, False, True, True])
    difference, width, p = paired_difference(ours, reference)
    assert (difference, p) == (0, 1) and abs(width - 1.96 * 2**0.5 / 4) < 1e-12
    difference, width, p = paired_difference(np.ones(100, bool), np.zeros(100, bool))
    assert (difference, width) == (1.0, 0.0) and p < 1e-20


def pairs(both: int, ours: int, reference: int, neither: int) -> list[NDArray[np.bool_]]:
    """Two ways on the same images, by who has them right."""
    counts = (both, ours, reference, neither)
    return [np.repeat(np.array(rights, bool), counts) for rights in ([1, 1, 0, 0], [1, 0, 1, 0])]


def test_pairs_are_compared_as_published() -> None:
    """McNemar's exact test as in mlxtend's own tests, and as the sum that it is.

    The interval as in M. W. Fagerland, S. Lydersen and P. Laake (Statistics in Medicine, 2014),
    airway hyper-responsiveness before and after a transplantation: -0.508 to -0.013.
    """
    _, _, p = paired_difference(*pairs(101, 121, 59, 33))
    assert p == pytest.approx(4.43444926375551e-06, rel=1e-9)
    assert p == pytest.approx(2 * sum(math.comb(180, k) for k in range(60)) / 2**180)
    found = paired_interval(*pairs(1, 1, 7, 12))
    assert found.value == -6 / 21
    assert (found.low, found.high) == pytest.approx((-0.508, -0.013), abs=5e-4)
    alike = paired_interval(np.ones(10, bool), np.ones(10, bool))
    assert alike.value == 0 and alike.low < -0.2, "ten photographs show little"


def test_a_bar_is_reached_by_the_lower_end_alone() -> None:
    """Where it is not shown to be, so many photographs as are named would show it."""

    def judged(bar: float, *counts: int) -> tuple[bool, str]:
        second, first = pairs(*counts)
        said = [np.stack([right, ~right], axis=1).astype(float) for right in (first, second)]
        labels = np.zeros(len(first), int)
        seconds = np.ones((len(first), 2))
        answers = compare.Answers(
            [Path("x")] * len(first), "xy", labels, (said[0], said[1]), (0.5, 0.5), seconds
        )
        found = compare.judge(bar, answers)
        return found["reached"], found["told"]

    for bar, counts, reached, told in (
        (-0.01, (300, 0, 0, 0), True, "The bar is reached: +0.0 points (-0.9 to +0.9)"),
        (0.01, (300, 30, 0, 70), True, "The bar is reached: +7.5 points"),
        (-0.01, (400, 0, 30, 70), False, "The bar is missed: -6.0 points (-8.1 to -3.8)"),
        (-0.01, (400, 1, 7, 92), False, "The bar is probably missed: -1.2 points"),
        (-0.01, (12, 0, 0, 0), False, "About 280 photographs like these would show it."),
    ):
        found = judged(bar, *counts)
        assert found[0] == reached and told in found[1], found
    assert judged(-0.01, 280, 0, 0, 0)[0] and not judged(-0.01, 270, 0, 0, 0)[0]


def test_an_answer_is_judged_by_its_label_and_by_the_reference() -> None:
    reference = np.array([0.1, 0.6, 0.3, 0, 0, 0, 0], dtype=np.float32)
    ours = np.array([0.1, 0.3, 0.55, 0.02, 0.02, 0.01, 0], dtype=np.float32)
    found = judge(ours, 2, reference)
    assert found.right and found.among_five and not found.same
    assert (found.confidence, found.label_probability) == pytest.approx((0.55, 0.55))
    assert found.difference == pytest.approx(-0.3)
    assert not judge(ours, 6, reference).among_five and judge(ours, 4, reference).among_five


def test_a_summary_is_the_one_worked_out_by_hand() -> None:
    """Confident and right, confident and wrong, unsure and right, twice unsure and wrong."""
    rows = [[0.9, 0.1, 0], [0.8, 0.2, 0], [0.4, 0.3, 0.3], [0.45, 0.3, 0.25], [0.3, 0.3, 0.4]]
    labels = [0, 1, 0, 2, 0]
    ours = np.array(rows, dtype=np.float32)
    reference = np.array([[0.7, 0.2, 0.1]] * 5, dtype=np.float32)
    found = Judgements([judge(*row) for row in zip(ours, labels, reference, strict=True)]).summary()
    assert found["top1"]["value"] == pytest.approx(2 / 5)
    assert found["top5"]["value"] == 1
    assert found["confident"]["value"] == pytest.approx(2 / 5)
    assert found["right where confident"]["value"] == pytest.approx(1 / 2)
    assert found["warned where wrong"]["value"] == pytest.approx(2 / 3)
    assert found["nll"] == pytest.approx(-np.log([0.9, 0.2, 0.4, 0.25, 0.3]).mean())
    assert found["mean difference"] == pytest.approx((0.2 + 0.1 + 0.3 + 0.25 + 0.4) / 5)
    assert found["largest difference"] == pytest.approx(0.4)
    assert found["same top1"] == pytest.approx(4 / 5)


@pytest.mark.filterwarnings("error")
def test_a_model_that_is_never_wrong_has_no_share_of_its_errors() -> None:
    """A share of nothing is a dash in the tables, and NumPy has nothing to warn of."""
    probabilities = np.array([[0.4, 0.3, 0.3]] * 4, dtype=np.float32)
    judged = [judge(row, 0, row) for row in probabilities]
    assert " | 0.0% | – | – | " in evaluate.confidence({("openvino", "none"): Judgements(judged)})
    labels = np.zeros(4, dtype=np.int64)
    fitted = calibrate.Scaled(probabilities, labels, Interval(1, 1, 1), None)
    assert "| – / 100% |" in calibrate.warnings({"none": fitted})


def test_a_temperature_is_the_one_that_scikit_learn_fits() -> None:
    probabilities, labels = answers(1500, 6)
    found = fit(probabilities, labels)
    model = FrozenEstimator(Logits().fit(probabilities.astype(float), labels))
    reference = CalibratedClassifierCV(model, method="temperature")
    logits = np.log(np.maximum(probabilities.astype(float), 1e-7))
    reference.fit(logits, labels)
    scaled = reference.predict_proba(logits)
    expected = np.ptp(logits, axis=1) / np.ptp(np.log(scaled), axis=1)
    assert found.value == pytest.approx(np.median(expected), rel=0.01)
    assert found.low < found.value < found.high < 1.2 * found.low
    assert fit(temper(probabilities, found.value), labels).value == pytest.approx(1, abs=0.01)


class Logits(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """An estimator whose logits are its input."""

    def fit(self, logits: NDArray[np.float64], labels: NDArray[np.int64]) -> "Logits":
        self.classes_ = np.unique(labels)
        return self

    def decision_function(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        return logits

    def predict(self, logits: NDArray[np.float64]) -> NDArray[np.int64]:
        return np.asarray(logits.argmax(axis=1))


def test_the_names_that_count_are_as_probable_as_95_in_100_true_classes() -> None:
    """By trying every threshold."""
    draw = np.random.default_rng(0)
    probabilities = draw.dirichlet(np.full(8, 0.3), 240).round(6)
    labels = probabilities.argsort(axis=1)[
        np.arange(240), draw.choice([5, 6, 7], 240, p=(0.1, 0.2, 0.7))
    ]
    right = probabilities[np.arange(240), labels]
    expected = max(one for one in right if np.mean(right >= one) >= 0.95)
    assert plausible.fit(probabilities, labels) == expected
    three = -np.sort(-probabilities, axis=1)[:, :3]
    found = plausible.shown(probabilities, labels, expected)
    assert found.names == pytest.approx(np.maximum(1, (three >= expected).sum(axis=1)).mean())
    rank = (probabilities > right[:, None]).sum(axis=1)
    assert found.all_right == np.mean(rank < 3) == 1
    assert found.right == np.mean((right >= expected) | (rank == 0)) >= 0.95
