"""Test-time augmentation: the views of an image whose probabilities are averaged."""

import numpy as np
from numpy.typing import NDArray

from visionserve.config import TTA


def views(pixels: NDArray[np.uint8], mode: TTA, crop: int) -> NDArray[np.uint8]:
    """Cut an image into the views of a mode.

    Args:
        pixels: uint8 of shape (height, width, 3), both sides at least `crop`.
        mode: `none` is the centre crop; `five_crop` adds the four corners; `ten_crop` adds
            all five of the mirrored image; `dense` is the whole image, for a fully convolutional
            network that averages over its own windows.
        crop: side of a crop, in pixels.

    Returns:
        uint8 of shape (views, crop, crop, 3), or (1, height, width, 3) for `dense`. The crops
        are those of `torchvision.transforms.functional.center_crop`, `five_crop` and
        `ten_crop`.
    """
    if mode == "dense":
        return pixels[np.newaxis]
    bottom, right = pixels.shape[0] - crop, pixels.shape[1] - crop
    corners = [(round(bottom / 2), round(right / 2))]
    if mode != "none":
        corners += [(0, 0), (0, right), (bottom, 0), (bottom, right)]
    sources = [pixels, pixels[:, ::-1]] if mode == "ten_crop" else [pixels]
    crops = [
        source[top : top + crop, left : left + crop] for source in sources for top, left in corners
    ]
    return np.stack(crops)
