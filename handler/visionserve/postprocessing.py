"""From an image's averaged probabilities to its predictions, and to the client's language."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionserve.answer import Answer, Hint, Prediction
from visionserve.config import Activation, Language, Options

WARNINGS: dict[Language, str] = {
    "en": "The best match is under {}: treat it as a guess.",
    "zh": "最佳结果低于 {}，仅供参考。",
}
NO_LABEL: dict[Language, str] = {
    "en": "No label reaches its threshold: treat the answer as a guess.",
    "zh": "没有标签达到阈值，仅供参考。",
}
HINTS: dict[Language, dict[Hint, str]] = {
    "en": {
        "dark": "The picture is dark.",
        "blurred": "The picture is blurred.",
        "small": "The picture is small.",
        "poor_jpeg": "The JPEG is of low quality.",
    },
    "zh": {
        "dark": "图片太暗。",
        "blurred": "图片模糊。",
        "small": "图片尺寸太小。",
        "poor_jpeg": "JPEG 质量太低。",
    },
}
BETWEEN: dict[Language, str] = {"en": " ", "zh": ""}
UNFAMILIAR: dict[Language, str] = {
    "en": "Probably none of the model's classes, or a damaged picture.",
    "zh": "可能不属于模型的任何类别，或图片已损坏。",
}


def temper(
    probabilities: NDArray[np.float32], temperature: float, activation: Activation = "softmax"
) -> NDArray[np.floating[Any]]:
    """Scale the confidence of averaged probabilities without changing their order.

    This is temperature scaling (Guo et al., On Calibration of Modern Neural Networks, 2017):
    probabilities raised to the power 1/T and normalized again equal the softmax of the logits
    divided by T. So do those of a sigmoid, each normalized with its complement alone.

    Args:
        probabilities: float32 of shape (..., classes), each row summing to 1 after a softmax.
        temperature: T. Below 1 it raises the confidence, above 1 it lowers it; 1 changes nothing.
        activation: what made the probabilities.

    Returns:
        An array of the same shape, each row summing to 1 after a softmax.
    """
    if temperature == 1:
        return probabilities
    powers = probabilities.astype(np.float64) ** (1 / temperature)
    if activation == "sigmoid":
        complements = (1 - probabilities.astype(np.float64)) ** (1 / temperature)
        own: NDArray[np.float64] = powers / (powers + complements)
        return own
    tempered: NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return tempered


def most_probable(
    probabilities: NDArray[np.floating[Any]], categories: Sequence[str], top_k: int
) -> list[Prediction]:
    """Return the most probable classes, the most probable first; ties are in class-index order.

    Args:
        probabilities: float of shape (classes,).
        categories: labels in class-index order.
        top_k: how many classes.
    """
    return [
        {
            "label": categories[index],
            "class_id": int(index),
            "probability": _shown(probabilities[index]),
        }
        for index in np.argsort(-probabilities, kind="stable")[:top_k]
    ]


def labels_above(
    probabilities: NDArray[np.floating[Any]],
    categories: Sequence[str],
    thresholds: Sequence[float],
) -> list[str]:
    """Return the labels whose probability, as clients see it, reaches its threshold.

    They are in the order of `most_probable`.

    Args:
        probabilities: float of shape (classes,), each class's own.
        categories: labels in class-index order.
        thresholds: from 0 to 1, in the same order.
    """
    return [
        categories[index]
        for index in np.argsort(-probabilities, kind="stable")
        if _shown(probabilities[index]) >= thresholds[index]
    ]


def is_sure(
    probabilities: NDArray[np.floating[Any]], labels: Sequence[str], thresholds: Sequence[float]
) -> bool:
    """Tell whether a multi-label answer says something with enough confidence.

    It does if it has labels. A model of a single label answers yes or no: its answer without a
    label is sure, too, if the label's absence reaches the threshold, as it always does for a
    threshold of 0.5.

    Args:
        probabilities: float of shape (classes,), each class's own.
        labels: what `labels_above` returned.
        thresholds: as for `labels_above`.
    """
    is_no = len(thresholds) == 1 and _shown(1 - probabilities[0]) >= thresholds[0]
    return bool(labels) or is_no


def is_confident(predictions: Sequence[Prediction], threshold: float) -> bool:
    """Tell whether the first prediction's probability, as the client sees it, is high enough."""
    return predictions[0]["probability"] >= threshold


def plausible(predictions: Sequence[Prediction], least: float) -> int:
    """Count the predictions that are worth showing: those of this probability and more, or one."""
    return max(1, sum(prediction["probability"] >= least for prediction in predictions))


def rounded(features: NDArray[np.float32]) -> list[float]:
    """Round features, each to four digits of its own, which moves no cosine by more than 0.001."""
    return [float(f"{value:.4g}") for value in features.tolist()]


def least_bytes(features: NDArray[np.float32]) -> int:
    """Return how many bytes features have in JSON at the least."""
    return len("0.0, ") * len(features)


def localize(answer: Answer, options: Options, names: Sequence[str] | None) -> Answer:
    """Add to an answer what depends on its request's language.

    Args:
        answer: an answer that is not localized; it stays as it is.
        options: `language`, and the `threshold` that the warning names, unless the answer has
            `labels`.
        names: what people call the classes in that language, in class-index order; None adds no
            names.

    Returns:
        A copy in which each prediction has its `name`, if there are names, and which has a
        `warning`, if the answer is not confident or the picture is unfamiliar, which is said in
        its place, with a sentence for each of its hints.
    """
    localized = answer.copy()
    if names:
        localized["predictions"] = [
            {"label": prediction["label"], "name": names[prediction["class_id"]], **prediction}
            for prediction in answer["predictions"]
        ]
    language = options.language
    if answer.get("unfamiliar"):
        doubt = UNFAMILIAR[language]
    elif answer["confident"]:
        return localized
    elif "labels" in answer or options.threshold is None:
        doubt = NO_LABEL[language]
    else:
        doubt = WARNINGS[language].format(percent(options.threshold))
    causes = (HINTS[language][hint] for hint in answer.get("hints", ()))
    localized["warning"] = BETWEEN[language].join([doubt, *causes])
    return localized


def percent(fraction: float) -> str:
    """Write a fraction in percent without rounding: 0.996 becomes 99.6%, not 100%."""
    return f"{(Decimal(str(fraction)) * 100).normalize():f}%"


def _shown(probability: np.floating[Any]) -> float:
    """Round a probability as answers show it, which is what thresholds judge."""
    return round(float(probability), 6)
