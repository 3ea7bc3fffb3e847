"""Faults of a picture that may explain why the model only guesses.

None of these measures predicts mistakes well, but each names its cause well, so they are told
once an answer carries a warning. What they are told by is measured of every picture, as it also
shows a stream of pictures that changes; see `visionserve.drift`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from visionserve.answer import Hint
from visionserve.geometry import Size, resized_size
from visionserve.metadata import Transforms
from visionserve.trace import Look

# What is looked at is the middle of the view, at most so many pixels wide and high.
SIDE = 224
# Chosen on photographs and damaged forms of them, and judged on others; see README.md.
BRIGHT_SHARE, DARK = 0.05, 124
BLURRED = 0.0175
ENLARGED = 2
COARSE = 100
LEVELS = np.arange(256.0)


def find(look: Look, size: Size, table: Sequence[int], transforms: Transforms) -> list[Hint]:
    """Name the faults of a picture.

    Args:
        look: what was measured of it.
        size: width and height of the upright picture, in pixels.
        table: the steps to which a JPEG rounds its luminance; see `luma_table`.
        transforms: the model's resize.

    Returns:
        `dark`, if less than a twentieth of its middle is bright; `blurred`, if that has little
        detail for its contrast; `small`, if the picture had to be enlarged over twice;
        `poor_jpeg`, if its JPEG keeps little. A picture that is small is soft, and not called
        blurred as well.
    """
    is_small = enlargement(size, transforms) > ENLARGED
    faults: Mapping[Hint, bool] = {
        "dark": look.highlight < DARK,
        "blurred": not is_small and look.sharpness < BLURRED,
        "small": is_small,
        "poor_jpeg": len(table) > 0 and float(np.mean(table)) > COARSE,
    }
    return [hint for hint, is_found in faults.items() if is_found]


def measure(view: NDArray[np.uint8]) -> Look:
    """Measure the middle of a picture.

    An underexposed photograph has no highlights, whereas a well exposed one of something dark has.

    The mean square of the Laplacian over the variance (Pech-Pacheco et al., 2000) finds what is
    out of focus. Here its second derivatives are taken apart, as in the modified Laplacian (Nayar
    and Nakagawa, 1994), along rows, columns and diagonals, because motion blurs one direction.

    Args:
        view: uint8 of shape (height, width, 3), RGB: its first view.
    """
    top, left = (max(0, side - SIDE) // 2 for side in view.shape[:2])
    image = Image.fromarray(view[top : top + SIDE, left : left + SIDE]).convert("L")
    histogram = np.array(image.histogram())
    counts = np.cumsum(histogram)
    highlight = int(np.searchsorted(counts, (1 - BRIGHT_SHARE) * counts[-1]))
    mean = LEVELS @ histogram / counts[-1]
    variance = float(np.square(LEVELS - mean) @ histogram / counts[-1])
    # Sums by BLAS would wake its threads, which other workers' cores are busy with.
    grey = np.asarray(image, np.int16)
    above, middle, below = grey[:-2], grey[1:-1], grey[2:]
    before, after = slice(None, -2), slice(2, None)
    twice = 2 * middle[:, 1:-1]
    pairs = (
        (middle[:, before], middle[:, after]),
        (above[:, 1:-1], below[:, 1:-1]),
        (above[:, before], below[:, after]),
        (above[:, after], below[:, before]),
    )
    bend, exact = np.empty_like(twice), np.empty(twice.shape, np.float32)
    measured = []
    for one, other in pairs:
        np.add(one, other, out=bend)
        np.subtract(bend, twice, out=bend)
        np.copyto(exact, bend)
        squares = float(np.einsum("ij,ij->", exact, exact))
        measured.append((squares, int(np.count_nonzero(bend))))
    squares, bent = min(measured)
    size = max(1, bend.size)
    return Look(highlight, squares / size, bent / size, variance)


def enlargement(size: Size, transforms: Transforms) -> float:
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
