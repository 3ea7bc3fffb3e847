"""Averaged probabilities to the answer that a client reads."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionserve.config import Language, Options

WARNINGS: dict[Language, str] = {
    "en": "The best match is under {}: treat it as a guess.",
    "zh": "最佳结果低于 {}，仅供参考。",
}


def temper(probabilities: NDArray[np.float32], temperature: float) -> NDArray[np.floating[Any]]:
    """Scale the confidence of averaged probabilities, and keep their order.

    Temperature scaling (Guo et al., On Calibration of Modern Neural Networks, 2017): the power
    1/T, renormalized, is the softmax of logits divided by T.

    Args:
        probabilities: float32 of shape (..., classes), each row summing to 1.
        temperature: under 1 makes answers surer, over 1 less sure; 1 leaves them as they are.

    Returns:
        The same shape, each row summing to 1.
    """
    if temperature == 1:
        return probabilities
    powers = probabilities.astype(np.float64) ** (1 / temperature)
    tempered: NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return tempered


def predictions(
    probabilities: NDArray[np.floating[Any]], categories: Sequence[str], options: Options
) -> dict[str, Any]:
    """Tell the most probable classes.

    Args:
        probabilities: float of shape (classes,), summing to 1.
        categories: labels in class-index order.
        options: `top_k` and `threshold`.

    Returns:
        `predictions`, from the most probable down; and `confident`, whether the first one's
        probability, as it is shown, reaches the threshold.
    """
    top = np.argsort(-probabilities, kind="stable")[: options.top_k]
    found = [
        {
            "label": categories[index],
            "class_id": int(index),
            "probability": round(float(probabilities[index]), 6),
        }
        for index in top
    ]
    return {"predictions": found, "confident": found[0]["probability"] >= options.threshold}


def worded(
    answer: Mapping[str, Any], options: Options, names: Sequence[str] | None
) -> dict[str, Any]:
    """Say an answer in a language.

    Args:
        answer: with `predictions` and `confident`.
        options: `threshold` and `language`.
        names: what people call the classes in that language; needless in English.

    Returns:
        The answer, each prediction with its `name` where there are names; and with a `warning`
        where it is not confident.
    """
    said = dict(answer)
    if names:
        said["predictions"] = [
            {"label": prediction["label"], "name": names[prediction["class_id"]], **prediction}
            for prediction in answer["predictions"]
        ]
    if not answer["confident"]:
        said["warning"] = WARNINGS[options.language].format(percent(options.threshold))
    return said


def percent(fraction: float) -> str:
    """Write a fraction in percent, exactly: 0.996 is 99.6%, not 100%."""
    return f"{(Decimal(str(fraction)) * 100).normalize():f}%"
