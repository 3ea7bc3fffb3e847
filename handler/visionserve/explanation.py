"""Where in a photograph the model looked: class activation maps (Zhou et al., CVPR 2016).

A network that ends in a global average pool and a linear layer sums up, for each class, what each
position of its last feature map contributes. The map shows these contributions themselves, so it
needs no gradient and no approximation. It covers the first view: the centre crop, or for `dense`
the whole view.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from visionserve.answer import Prediction
from visionserve.geometry import Box

METHOD = "class activation map"


def explain(
    contributions: NDArray[np.float32],
    predictions: Sequence[Prediction],
    box: Box,
    orientation: int = 1,
) -> list[Prediction]:
    """Add to each prediction the map of its class.

    Args:
        contributions: float32 of shape (rows, columns, classes): what each position of the first
            view's feature map adds to each class's logit.
        predictions: the image's predictions; they stay as they are.
        box: the first view's box, in pixels of the upright image.
        orientation: of the image in its file, from 1 to 8 as in EXIF data.

    Returns:
        Copies of the predictions, each with its `explanation`.
    """
    rounded = [round(side, 1) for side in box]
    return [
        {
            **prediction,
            "explanation": {
                "method": METHOD,
                "grid": _rounded(contributions[..., prediction["class_id"]]),
                "box": rounded,
                "orientation": orientation,
            },
        }
        for prediction in predictions
    ]


def _rounded(grid: NDArray[np.float32]) -> list[list[float]]:
    """Round to four digits, as FP64: JSON would write an FP32 0.4315 as 0.43149998784065247."""
    rows: list[list[float]] = np.round(grid.astype(np.float64), 4).tolist()
    return rows


def least_bytes(grid: Sequence[int]) -> int:
    """Return how many bytes a map has in JSON at the least, for its rows and columns."""
    return len("0.0, ") * math.prod(grid)
