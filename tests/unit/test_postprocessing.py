"""Probabilities to answers."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import softmax

from visionserve.answer import Answer
from visionserve.config import Options
from visionserve.postprocessing import is_confident, localize, most_probable, temper

PROBABILITIES = np.array([0.1, 0.2, 0.6, 0.1], dtype=np.float32)
CATEGORIES = ("a", "b", "高山雪景", "d")


def answered(probabilities: NDArray[np.float32], options: Options) -> Answer:
    predictions = most_probable(probabilities, CATEGORIES, options.top_k)
    return {
        "model": "m",
        "architecture": "resnet18",
        "version": "1.0",
        "tta": "none",
        "predictions": predictions,
        "confident": is_confident(predictions, options.threshold or 0),
    }


def test_the_most_probable_come_first_and_ties_by_class() -> None:
    predictions = most_probable(PROBABILITIES, CATEGORIES, 4)
    assert [p["label"] for p in predictions] == ["高山雪景", "b", "a", "d"]
    assert predictions[0] == {"label": "高山雪景", "class_id": 2, "probability": 0.6}
    assert [p["class_id"] for p in predictions] == [2, 1, 0, 3]


def test_three_by_default() -> None:
    assert len(answered(PROBABILITIES, Options())["predictions"]) == 3


def test_the_threshold_decides_on_the_warning() -> None:
    sure = answered(PROBABILITIES, Options(threshold=0.6 - 1e-6))
    unsure = answered(PROBABILITIES, Options(threshold=0.61))
    assert sure["confident"] and "warning" not in localize(sure, Options(), None)
    assert not unsure["confident"]
    assert "61%" in localize(unsure, Options(threshold=0.61), None)["warning"]


def test_an_unfamiliar_picture_has_a_warning_of_its_own() -> None:
    """Also where the model is sure of a class."""
    for threshold in (0.0, 1.0):
        options = Options(threshold=threshold)
        plain = answered(PROBABILITIES, options)
        strange: Answer = {**plain, "unfamiliar": True}
        assert localize(strange, options, None)["warning"].startswith("Probably none")
        chinese = localize(strange, Options(threshold=threshold, language="zh"), None)
        assert chinese["warning"].startswith("可能不属于")
        known: Answer = {**plain, "unfamiliar": False}
        assert localize(known, options, None).get("warning") == localize(plain, options, None).get(
            "warning"
        )


def test_a_language_adds_names_and_changes_nothing_else() -> None:
    answer = answered(PROBABILITIES, Options(top_k=2))
    localized = localize(answer, Options(language="zh"), ("甲", "乙", "丙", "丁"))
    assert [p.pop("name") for p in localized["predictions"]] == ["丙", "乙"]
    assert localized == answer == localize(answer, Options(), None)


@pytest.mark.parametrize("temperature", [0.2, 0.67, 1, 3, 5])
def test_a_temperature_divides_the_logits(temperature: float) -> None:
    logits = np.random.default_rng(0).normal(0, 12, (20, 1000)).astype(np.float32)
    plain = softmax(logits, axis=1)
    tempered = temper(plain, temperature)
    expected = softmax(logits.astype(float) / temperature, axis=1)
    assert np.allclose(tempered, expected, atol=1e-5)
    assert np.allclose(tempered.sum(axis=1), 1, atol=1e-6)
    order = np.argsort(-plain, axis=1, kind="stable")
    assert np.array_equal(np.argsort(-tempered, axis=1, kind="stable"), order)


def test_a_temperature_of_1_changes_no_bit() -> None:
    assert temper(PROBABILITIES, 1) is PROBABILITIES


@pytest.mark.parametrize(
    ("threshold", "text"),
    [
        (0.5, "under 50%:"),
        (0.07, "under 7%:"),
        (0.996, "under 99.6%:"),
        (0.004, "under 0.4%:"),
        (1e-7, "under 0.00001%:"),
        (0.9999999, "under 99.99999%:"),
        (1.0, "under 100%:"),
    ],
)
def test_the_warning_names_the_very_threshold(threshold: float, text: str) -> None:
    nothing = np.full(4, 1e-9, dtype=np.float32)
    options = Options(threshold=threshold)
    answer = answered(nothing, options)
    assert text in localize(answer, options, None)["warning"]


@pytest.mark.parametrize(
    ("probability", "threshold", "confident"),
    [(0.7, 0.7, True), (0.4999997, 0.5, True), (0.4999994, 0.5, False), (0.5, 0.5000001, False)],
)
def test_what_is_shown_is_what_is_judged(
    probability: float, threshold: float, confident: bool
) -> None:
    """A float32 of 0.7 is under 0.7; an answer that shows 0.5 is not under 50%."""
    given = np.array([probability, 0, 0, 0], dtype=np.float32)
    assert is_confident(most_probable(given, CATEGORIES, 3), threshold) is confident
