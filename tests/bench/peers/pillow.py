"""The resize of `decode: fast` with Pillow alone, which other servers would use."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from visionserve.geometry import resized_size
from visionserve.metadata import Transforms
from visionserve.preprocessing import FILTERS, resize


def resize_fast(
    image: Image.Image, transforms: Transforms, centre: bool = False
) -> NDArray[np.uint8]:
    """Resize as `visionserve.preprocessing.resize_fast` does, but with Pillow."""
    if not centre:
        return resize(image, transforms)
    size, crop = resized_size(image.size, transforms), transforms.crop
    across, down = image.width / size[0], image.height / size[1]
    left, top = round((size[0] - crop) / 2) * across, round((size[1] - crop) / 2) * down
    box = (left, top, left + crop * across, top + crop * down)
    return np.asarray(image.resize((crop, crop), FILTERS[transforms.interpolation], box))
