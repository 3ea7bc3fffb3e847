"""Averaged probabilities to the answer that a client reads."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionserve.config import Options


def predictions(
    probabilities: NDArray[np.float32], categories: tuple[str, ...], options: Options
) -> dict[str, Any]:
    """Name the most probable classes.

    Args:
        probabilities: float32 of shape (classes,), summing to 1.
        categories: labels in class-index order.
        options: `top_k` and `threshold`.

    Returns:
        `predictions`, from the most probable down; `confident`, whether the first one reaches
        the threshold; and `warning` where it does not.
    """
    top = np.argsort(-probabilities, kind="stable")[: options.top_k]
    answer: dict[str, Any] = {
        "predictions": [
            {
                "label": categories[index],
                "class_id": int(index),
                "probability": round(float(probabilities[index]), 6),
            }
            for index in top
        ],
        "confident": bool(probabilities[top[0]] >= options.threshold),
    }
    if not answer["confident"]:
        answer["warning"] = f"The best match is under {options.threshold:.0%}: treat it as a guess."
    return answer
