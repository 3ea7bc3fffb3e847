"""Where in a photograph the model looked: class activation maps (Zhou et al., CVPR 2016).

A network that ends in a global average pool and a linear layer finds a class by adding up what
each position of its last feature map contributes, so that the map needs no gradient and no
approximation. It shows the first view: the centre crop, or the whole view of `dense`.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from visionserve import preprocessing, tta
from visionserve.config import TTA
from visionserve.metadata import Transforms

METHOD = "class activation map"
LONGEST = 1024
OPACITY = 0.5
LEAST, MIDDLE, MOST = "#00004d", "#d4145a", "#ffe14d"

Size = tuple[int, int]
Box = tuple[float, float, float, float]


def view_box(size: Size, transforms: Transforms, mode: TTA) -> Box:
    """Tell where the first view of an image lies.

    Args:
        size: width and height of the upright original, in pixels.
        transforms: the model's.
        mode: its test-time augmentation.

    Returns:
        Left, top, right and bottom in pixels of the upright original.
    """
    resized = preprocessing.resized(size, transforms)
    left, top, right, bottom = tta.first_box(resized, mode, transforms.crop)
    across, down = size[0] / resized[0], size[1] / resized[1]
    return left * across, top * down, right * across, bottom * down


def explain(
    contributions: NDArray[np.float32], predictions: Sequence[Mapping[str, Any]], box: Box
) -> list[dict[str, Any]]:
    """Add its map to each prediction.

    Args:
        contributions: float32 of shape (height, width, classes), of one view.
        predictions: those of its image.
        box: where the view lies.

    Returns:
        The predictions, each with `explanation`: `method`, `grid`, rows of what each position
        adds to the class's logit, and `box`, in pixels of the upright original.
    """
    place = [round(side, 1) for side in box]
    return [
        {
            **prediction,
            "explanation": {
                "method": METHOD,
                "grid": np.round(contributions[..., prediction["class_id"]], 4).tolist(),
                "box": place,
            },
        }
        for prediction in predictions
    ]


def overlay(data: bytes, explanation: Mapping[str, Any]) -> bytes:
    """Draw a map over its photograph, from dark blue for its least value to yellow for its most.

    Args:
        data: the encoded photograph, which was classified before.
        explanation: of one prediction.

    Returns:
        A PNG of the upright photograph, at most 1,024 pixels long.
    """
    image = Image.open(io.BytesIO(data))
    stored = image.size
    image.draft("RGB", (LONGEST, LONGEST))
    photograph = preprocessing.to_rgb(image)
    size = upright(stored, photograph.size)
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
    """Scale a box in an image of one size to whole pixels of another, at least one each way."""
    across, down = drawn[0] / size[0], drawn[1] / size[1]
    left, top = min(round(box[0] * across), drawn[0] - 1), min(round(box[1] * down), drawn[1] - 1)
    return left, top, max(round(box[2] * across), left + 1), max(round(box[3] * down), top + 1)


def upright(stored: Size, decoded: Size) -> Size:
    """Turn a size as the EXIF orientation turned the decoded image, which may be smaller."""
    turned = (stored[0] < stored[1]) != (decoded[0] < decoded[1]) and stored[0] != stored[1]
    return (stored[1], stored[0]) if turned else stored
