"""Where in a photograph the model looked: class activation maps (Zhou et al., CVPR 2016).

A network that ends in a global average pool and a linear layer sums up, for each class, what each
position of its last feature map contributes. The map shows these contributions themselves, so it
needs no gradient and no approximation. It covers the first view: the centre crop, or for `dense`
the whole view.
"""

import io
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from visionserve import preprocessing, tta
from visionserve.answer import Explanation, Prediction
from visionserve.config import TTA
from visionserve.metadata import Transforms

METHOD = "class activation map"
LONGEST = 1024
OPACITY = 0.5
LEAST, MIDDLE, MOST = "#00004d", "#d4145a", "#ffe14d"

Size = tuple[int, int]
Box = Sequence[float]


def view_box(size: Size, transforms: Transforms, mode: TTA) -> Box:
    """Return the box of an image's first view, in pixels of the image.

    Args:
        size: width and height of the upright image, in pixels.
        transforms: the model's resize and crop.
        mode: the image's test-time augmentation.

    Returns:
        Left, top, right and bottom.
    """
    resized = preprocessing.resized_size(size, transforms)
    left, top, right, bottom = tta.first_box(resized, mode, transforms.crop)
    across, down = size[0] / resized[0], size[1] / resized[1]
    return left * across, top * down, right * across, bottom * down


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


def overlay(image: Image.Image, explanation: Explanation) -> bytes:
    """Draw a map over its photograph, dark blue where it is lowest and yellow where it is highest.

    Args:
        image: the photograph, validated and not decoded yet.
        explanation: the map of one prediction.

    Returns:
        A PNG of the upright photograph, whose longer side has at most 1,024 pixels.
    """
    stored = image.size
    scale = LONGEST / max(stored)
    image.draft("RGB", (max(1, int(stored[0] * scale)), max(1, int(stored[1] * scale))))
    photograph = preprocessing.to_rgb(image)
    size = upright(image, stored, photograph.size)
    photograph.info = {}  # A profile or a comment of the client's would go into the PNG.
    photograph.thumbnail((LONGEST, LONGEST))
    box = _scaled(explanation["box"], size, photograph.size)
    grid = np.array(explanation["grid"], np.float32)
    shade = (grid - grid.min()) / max(float(np.ptp(grid)), 1e-6)
    heat = Image.fromarray((255 * shade).astype(np.uint8)).resize(
        (box[2] - box[0], box[3] - box[1]), Image.Resampling.BICUBIC
    )
    coloured = ImageOps.colorize(heat, LEAST, MOST, MIDDLE)
    photograph.paste(Image.blend(photograph.crop(box), coloured, OPACITY), box)
    file = io.BytesIO()
    photograph.save(file, "PNG")
    return file.getvalue()


def _scaled(box: Box, size: Size, drawn: Size) -> tuple[int, int, int, int]:
    """Scale a box from an image of one size to whole pixels of another, at least one each way."""
    across, down = drawn[0] / size[0], drawn[1] / size[1]
    left, top = min(round(box[0] * across), drawn[0] - 1), min(round(box[1] * down), drawn[1] - 1)
    return left, top, max(round(box[2] * across), left + 1), max(round(box[3] * down), top + 1)


def upright(image: Image.Image, stored: Size, decoded: Size) -> Size:
    """Return the width and height of an upright image at full size.

    Args:
        image: the image, which may have been shrunk where it is a JPEG or a HEIC in tiles.
        stored: width and height in the file, before the EXIF orientation is applied.
        decoded: width and height of the decoded upright image.
    """
    if not isinstance(image, preprocessing.REDUCIBLE):
        return decoded
    turned = (stored[0] < stored[1]) != (decoded[0] < decoded[1]) and stored[0] != stored[1]
    return (stored[1], stored[0]) if turned else stored
