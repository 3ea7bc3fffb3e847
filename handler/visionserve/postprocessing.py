"""From an image's averaged probabilities to its predictions, and to the client's language."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionserve.answer import Answer, Hint, Prediction
from visionserve.config import Language, Options

WARNINGS: dict[Language, str] = {
    "en": "The best match is under {}: treat it as a guess.",
    "zh": "最佳结果低于 {}，仅供参考。",
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


def temper(probabilities: NDArray[np.float32], temperature: float) -> NDArray[np.floating[Any]]:
    """Scale the confidence of averaged probabilities without changing their order.

    This is temperature scaling (Guo et al., On Calibration of Modern Neural Networks, 2017):
    probabilities raised to the power 1/T and normalized again equal the softmax of the logits
    divided by T.

    Args:
        probabilities: float32 of shape (..., classes), each row summing to 1.
        temperature: T. Below 1 it raises the confidence, above 1 it lowers it; 1 changes nothing.

    Returns:
        An array of the same shape, each row summing to 1.
    """
    if temperature == 1:
        return probabilities
    powers = probabilities.astype(np.float64) ** (1 / temperature)
    tempered: NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return tempered


def most_probable(
    probabilities: NDArray[np.floating[Any]], categories: Sequence[str], top_k: int
) -> list[Prediction]:
    """Return the most probable classes, the most probable first; ties are in class-index order.

    Args:
        probabilities: float of shape (classes,), summing to 1.
        categories: labels in class-index order.
        top_k: how many classes.
    """
    return [
        {
            "label": categories[index],
            "class_id": int(index),
            "probability": round(float(probabilities[index]), 6),
        }
        for index in np.argsort(-probabilities, kind="stable")[:top_k]
    ]


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
        options: `language`, and the `threshold` that the warning names.
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
    elif not answer["confident"]:
        doubt = WARNINGS[language].format(percent(options.threshold))
    else:
        return localized
    causes = (HINTS[language][hint] for hint in answer.get("hints", ()))
    localized["warning"] = BETWEEN[language].join([doubt, *causes])
    return localized


def percent(fraction: float) -> str:
    """Write a fraction in percent without rounding: 0.996 becomes 99.6%, not 100%."""
    return f"{(Decimal(str(fraction)) * 100).normalize():f}%"
