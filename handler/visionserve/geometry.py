"""Where things lie in a picture, at each of its sizes: in its file, upright, resized and drawn.

A size is width and height, and a box is left, top, right and bottom, both in pixels.
"""

from visionserve import tta
from visionserve.config import TTA
from visionserve.metadata import Transforms

Size = tuple[int, int]
Box = tuple[float, float, float, float]

# EXIF 2.32, section 4.6.4: the orientations whose width is the stored height.
TURNED = range(5, 9)


def upright_size(stored: Size, orientation: int) -> Size:
    """Return the size of an image once it is turned upright.

    Args:
        stored: its size in the file.
        orientation: how it lies in the file, from 1 to 8 as in EXIF data.
    """
    return (stored[1], stored[0]) if orientation in TURNED else stored


def resized_size(size: Size, transforms: Transforms) -> Size:
    """Return the size that an upright image of this size is resized to."""
    if not isinstance(transforms.resize, int):
        height, width = transforms.resize
        return width, height
    short, long = sorted(size)
    other = int(transforms.resize * long / short)
    return (transforms.resize, other) if size[0] <= size[1] else (other, transforms.resize)


def view_box(size: Size, transforms: Transforms, mode: TTA) -> Box:
    """Return the box of an image's first view.

    Args:
        size: the size of the upright image.
        transforms: the model's resize and crop.
        mode: the image's test-time augmentation.
    """
    resized = resized_size(size, transforms)
    left, top, right, bottom = tta.first_box(resized, mode, transforms.crop)
    across, down = size[0] / resized[0], size[1] / resized[1]
    return left * across, top * down, right * across, bottom * down


def scaled_box(box: Box, size: Size, drawn: Size) -> tuple[int, int, int, int]:
    """Scale a box from an image of one size to whole pixels of another, at least one each way."""
    across, down = drawn[0] / size[0], drawn[1] / size[1]
    left, top = min(round(box[0] * across), drawn[0] - 1), min(round(box[1] * down), drawn[1] - 1)
    return left, top, max(round(box[2] * across), left + 1), max(round(box[3] * down), top + 1)
