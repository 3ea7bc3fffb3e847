"""Averaged probabilities to the answer that a client reads."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionserve.config import Language, Options

WARNINGS: dict[Language, str] = {
    "en": "The best match is under {}: treat it as a guess.",
    "zh": "最佳结果低于 {}，仅供参考。",
}


def predictions(
    probabilities: NDArray[np.float32],
    categories: Sequence[str],
    options: Options,
    names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Name the most probable classes.

    Args:
        probabilities: float32 of shape (classes,), summing to 1.
        categories: labels in class-index order.
        options: `top_k`, `threshold` and `language`.
        names: what people call the classes in that language; needless in English.

    Returns:
        `predictions`, from the most probable down, each with its `name` where there are names;
        `confident`, whether the first one reaches
        the threshold; and `warning` where it does not.
    """
    top = np.argsort(-probabilities, kind="stable")[: options.top_k]
    answer: dict[str, Any] = {
        "predictions": [
            {"label": categories[index]}
            | ({"name": names[index]} if names else {})
            | {
                "class_id": int(index),
                "probability": round(float(probabilities[index]), 6),
            }
            for index in top
        ],
        "confident": bool(probabilities[top[0]] >= options.threshold),
    }
    if not answer["confident"]:
        answer["warning"] = WARNINGS[options.language].format(f"{options.threshold:.0%}")
    return answer
