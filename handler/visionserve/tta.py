"""Test-time augmentation: the views of an image whose probabilities are averaged."""

import numpy as np
from numpy.typing import NDArray

from visionserve.config import TTA

STRIDE = 32
LONGEST = 1024


def views(pixels: NDArray[np.uint8], mode: TTA, crop: int) -> NDArray[np.uint8]:
    """Cut an image into the views of a mode.

    Args:
        pixels: uint8 of shape (height, width, 3), both sides at least `crop`.
        mode: `none` is the centre crop; `five_crop` adds the four corners; `ten_crop` adds
            all five of the mirrored image; `dense` is the image's centre, its sides
            cut to a crop and whole strides of it, 1024 pixels at most, for a fully
            convolutional network that averages over its own windows. Of a square image that is
            resized to less than `crop` and a stride, such as resnet50's 232, it is the centre
            crop.
        crop: side of a crop, in pixels.

    Returns:
        uint8 of shape (views, crop, crop, 3), or (1, height, width, 3), cut, for `dense`. The crops
        are those of `torchvision.transforms.functional.center_crop`, `five_crop` and
        `ten_crop`.
    """
    if mode == "dense":
        (top, height), (left, width) = (_whole_strides(side, crop) for side in pixels.shape[:2])
        return pixels[np.newaxis, top : top + height, left : left + width]
    bottom, right = pixels.shape[0] - crop, pixels.shape[1] - crop
    corners = [(round(bottom / 2), round(right / 2))]
    if mode != "none":
        corners += [(0, 0), (0, right), (bottom, 0), (bottom, right)]
    sources = [pixels, pixels[:, ::-1]] if mode == "ten_crop" else [pixels]
    crops = [
        source[top : top + crop, left : left + crop] for source in sources for top, left in corners
    ]
    return np.stack(crops)


def first_box(size: tuple[int, int], mode: TTA, crop: int) -> tuple[int, int, int, int]:
    """Tell where the first view of `views` lies.

    Args:
        size: width and height of the image, in pixels.
        mode: as for `views`.
        crop: as for `views`.

    Returns:
        Left, top, right and bottom, in pixels of the image.
    """
    if mode == "dense":
        (left, width), (top, height) = (_whole_strides(side, crop) for side in size)
        return left, top, left + width, top + height
    left, top = (round((side - crop) / 2) for side in size)
    return left, top, left + crop, top + crop


def _whole_strides(side: int, crop: int) -> tuple[int, int]:
    """Return the offset and length of the centred part that is a crop and whole strides."""
    length = crop + max(min(side, LONGEST) - crop, 0) // STRIDE * STRIDE
    return (side - length) // 2, length
