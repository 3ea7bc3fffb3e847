"""Test-time augmentation (TTA): the views of an image whose probabilities are averaged."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from visionserve.config import TTA

STRIDE = 32
LONGEST = 1024
# How many strides a side of a `dense` view may have beyond a crop. OpenVINO makes kernels for each
# size of a view, and keeps those of few sizes: nearly all photographs that are resized to 256
# pixels have one of three, 256 by 256, 256 by 320 and 320 by 256. Top-1 is that with every size.
STRIDES = (0, 1, 3, 7, 13, 25)


class Place(NamedTuple):
    """The top left corner of a view, in pixels of its image, and whether the view is mirrored."""

    top: int
    left: int
    mirrored: bool = False


@dataclass(frozen=True)
class Views:
    """Views of one size, as places in an array of pixels.

    Overlapping views share their pixels if that takes less memory than a copy of each.

    Attributes:
        pixels: uint8 of shape (height, width, 3), RGB, contiguous.
        places: where each view is, in order.
        shape: height and width of each view, in pixels.
    """

    pixels: NDArray[np.uint8]
    places: tuple[Place, ...]
    shape: tuple[int, int]

    @property
    def size(self) -> int:
        """Bytes that all views take when each has its own copy of its pixels."""
        return len(self.places) * self.shape[0] * self.shape[1] * 3

    def stacked(self, count: int | None = None) -> NDArray[np.uint8]:
        """Return a copy of the first views, or of all: uint8 of shape (views, height, width, 3)."""
        height, width = self.shape
        cuts = [
            self.pixels[top : top + height, left : left + width][:, :: -1 if mirrored else 1]
            for top, left, mirrored in self.places[:count]
        ]
        return np.stack(cuts)


def whole(pixels: NDArray[np.uint8]) -> Views:
    """Return an image of shape (height, width, 3) as a single view."""
    return Views(np.ascontiguousarray(pixels), (Place(0, 0),), pixels.shape[:2])


def cut(pixels: NDArray[np.uint8], mode: TTA, crop: int) -> Views:
    """Find the views of a mode in an image; see `views`.

    Returns:
        Views in the image's own pixels; or in copies, if these are smaller together than the
        image. That is so for the crops of a panorama, and for a single centre crop.
    """
    found = Views(pixels, *_places(pixels.shape[:2], mode, crop))
    if found.size >= pixels.size:
        return Views(np.ascontiguousarray(pixels), found.places, found.shape)
    height, width = found.shape
    places = tuple(Place(index * height, 0) for index in range(len(found.places)))
    return Views(found.stacked().reshape(-1, width, 3), places, found.shape)


def views(pixels: NDArray[np.uint8], mode: TTA, crop: int) -> NDArray[np.uint8]:
    """Cut an image into the views of a mode.

    Args:
        pixels: uint8 of shape (height, width, 3), both sides at least `crop`.
        mode: `none` is the centre crop. `five_crop` adds the crops in the four corners.
            `ten_crop` adds the same five crops of the mirrored image. `dense` is one larger
            view for a fully convolutional network, which averages over its own windows: the
            image's centre, each side a crop plus 0, 1, 3, 7, 13 or 25 strides of 32 pixels, as many
            as fit, and at most 1024 pixels. If no stride fits, as in a square image that is resized
            to resnet50's 232 pixels, that is the centre crop.
        crop: side of a crop, in pixels.

    Returns:
        uint8 of shape (views, crop, crop, 3), or (1, height, width, 3) for `dense`. The crops
        equal those of `center_crop`, `five_crop` and `ten_crop` in
        `torchvision.transforms.functional`.
    """
    return cut(pixels, mode, crop).stacked()


def _places(
    size: tuple[int, ...], mode: TTA, crop: int
) -> tuple[tuple[Place, ...], tuple[int, int]]:
    """Return the views' places and their shape.

    Args:
        size: height and width of the image, in pixels.
        mode: as for `views`.
        crop: as for `views`.
    """
    if mode == "dense":
        (top, height), (left, width) = (_centred(side, crop) for side in size)
        return (Place(top, left),), (height, width)
    bottom, right = (side - crop for side in size)
    places = [Place(round(bottom / 2), round(right / 2))]
    if mode != "none":
        places += [Place(0, 0), Place(0, right), Place(bottom, 0), Place(bottom, right)]
    if mode == "ten_crop":
        places += [Place(top, right - left, True) for top, left, _ in places]
    return tuple(places), (crop, crop)


def first_box(size: tuple[int, int], mode: TTA, crop: int) -> tuple[int, int, int, int]:
    """Return the box of the first view.

    Args:
        size: width and height of the image, in pixels.
        mode: as for `views`.
        crop: as for `views`.

    Returns:
        Left, top, right and bottom, in pixels of the image.
    """
    (place, *_), (height, width) = _places(size[::-1], mode, crop)
    return place.left, place.top, place.left + width, place.top + height


def _centred(side: int, crop: int) -> tuple[int, int]:
    """Return offset and length of the centred part of a side that `dense` takes, in pixels."""
    lengths = (crop + count * STRIDE for count in STRIDES)
    length = max((one for one in lengths if one <= min(side, LONGEST)), default=crop)
    return (side - length) // 2, length
