"""From an answer's map to a picture of it."""

import io

import numpy as np
from PIL import Image, ImageOps

from visionserve import geometry
from visionserve.answer import Explanation
from visionserve.preprocessing import upright

LONGEST = 1024
OPACITY = 0.5
LEAST, MIDDLE, MOST = "#00004d", "#d4145a", "#ffe14d"


def overlay(image: Image.Image, explanation: Explanation) -> bytes:
    """Draw a map over its photograph, dark blue where it is lowest and yellow where it is highest.

    Args:
        image: the photograph, validated and not decoded yet.
        explanation: the map of one prediction.

    Returns:
        A PNG of the upright photograph, whose longer side has at most 1,024 pixels.

    Raises:
        RequestError: as `visionserve.preprocessing.to_rgb` does.
    """
    stored = image.size
    scale = LONGEST / max(stored)
    image.draft("RGB", (max(1, int(stored[0] * scale)), max(1, int(stored[1] * scale))))
    photograph = upright(image, stored)
    drawn = photograph.rgb
    drawn.info = {}  # A profile or a comment of the client's would go into the PNG.
    drawn.thumbnail((LONGEST, LONGEST))
    left, top, right, bottom = explanation["box"]
    box = geometry.scaled_box((left, top, right, bottom), photograph.size, drawn.size)
    grid = np.array(explanation["grid"], np.float32)
    shade = (grid - grid.min()) / max(float(np.ptp(grid)), 1e-6)
    heat = Image.fromarray((255 * shade).astype(np.uint8)).resize(
        (box[2] - box[0], box[3] - box[1]), Image.Resampling.BICUBIC
    )
    coloured = ImageOps.colorize(heat, LEAST, MOST, MIDDLE)
    drawn.paste(Image.blend(drawn.crop(box), coloured, OPACITY), box)
    file = io.BytesIO()
    drawn.save(file, "PNG")
    return file.getvalue()
