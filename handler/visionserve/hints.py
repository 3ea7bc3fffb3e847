"""Faults of a picture that may explain why the model only guesses.

None of these measures predicts mistakes well, but each names its cause well, so they are taken
once an answer carries a warning, and cost the other answers nothing.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from visionserve.answer import Hint
from visionserve.metadata import Transforms
from visionserve.preprocessing import resized_size
from visionserve.trace import Trace

# What is looked at is the middle of the view, at most so many pixels wide and high.
SIDE = 224
# Chosen on photographs and damaged forms of them, and judged on others; see README.md.
BRIGHT_SHARE, DARK = 0.05, 124
BLURRED = 0.0175
ENLARGED = 2
COARSE = 100


def find(view: NDArray[np.uint8], trace: Trace, transforms: Transforms) -> list[Hint]:
    """Name the faults of a picture.

    Args:
        view: uint8 of shape (height, width, 3), RGB: its first view.
        trace: has its size, and its JPEG table.
        transforms: the model's resize.

    Returns:
        `dark`, if less than a twentieth of its middle is bright; `blurred`, if that has little
        detail for its contrast; `small`, if the picture had to be enlarged over twice;
        `poor_jpeg`, if its JPEG keeps little. A picture that is small is soft, and not called
        blurred as well.
    """
    top, left = (max(0, side - SIDE) // 2 for side in view.shape[:2])
    grey = Image.fromarray(view[top : top + SIDE, left : left + SIDE]).convert("L")
    is_small = enlargement(trace.size, transforms) > ENLARGED
    faults: Mapping[Hint, bool] = {
        "dark": highlight(grey) < DARK,
        "blurred": not is_small and sharpness(np.asarray(grey, np.float32)) < BLURRED,
        "small": is_small,
        "poor_jpeg": len(trace.luma_table) > 0 and float(np.mean(trace.luma_table)) > COARSE,
    }
    return [hint for hint, is_found in faults.items() if is_found]


def highlight(grey: Image.Image) -> int:
    """Return the luminance, 0 to 255, that a twentieth of an image's pixels reach.

    An underexposed photograph has no highlights, whereas a well exposed one of something dark has.
    """
    counts = np.cumsum(grey.histogram())
    return int(np.searchsorted(counts, (1 - BRIGHT_SHARE) * counts[-1]))


def sharpness(grey: NDArray[np.float32]) -> float:
    """Return how much an image bends where it bends least, over its variance.

    The mean square of the Laplacian over the variance (Pech-Pacheco et al., 2000) finds what is
    out of focus. Here its second derivatives are taken apart, as in the modified Laplacian (Nayar
    and Nakagawa, 1994), along rows, columns and diagonals, because motion blurs one direction.

    Args:
        grey: luminance, float32 of shape (height, width).

    Returns:
        0 and above, the same at any contrast. A plain surface, which is neither sharp nor blurred,
        has infinity.
    """
    variance = float(grey.var())
    if variance < 1:
        return float("inf")
    above, middle, below = grey[:-2], grey[1:-1], grey[2:]
    left, right = slice(None, -2), slice(2, None)
    twice = 2 * middle[:, 1:-1]
    pairs = (
        (middle[:, left], middle[:, right]),
        (above[:, 1:-1], below[:, 1:-1]),
        (above[:, left], below[:, right]),
        (above[:, right], below[:, left]),
    )
    return min(float(np.square(one + other - twice).mean()) for one, other in pairs) / variance


def enlargement(size: tuple[int, int], transforms: Transforms) -> float:
    """Return how many times as wide, or as high, an image gets by its resize.

    Args:
        size: width and height of the upright image, in pixels.
        transforms: the model's resize.
    """
    resized = resized_size(size, transforms)
    return max(new / old for new, old in zip(resized, size, strict=True))


def luma_table(image: Image.Image) -> Sequence[int]:
    """Return the quantization table of a JPEG's luminance, 64 steps, read with its header.

    Returns:
        Pillow's own list, empty for an image that is no JPEG.
    """
    if not isinstance(image, JpegImageFile) or not image.layer:
        return ()
    return image.quantization.get(image.layer[0][3], ())
