"""Find photographs that are nearly the same, by a perceptual hash of each."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

SIDE = 32
END = 9
# Of the 64 bits, this many may differ. No two of 500 photographs of different things differed in
# fewer than 14. Cut to 95 % of each side, 19 in 20 differed from themselves in at most 10.
DISTANCE = 10
ROWS = 1024

Hashes = NDArray[np.uint64]


def perceptual_hashes(pixels: NDArray[np.uint8]) -> tuple[int, int]:
    """Return pHash's 64 bits of a photograph, and those of its mirror image.

    The bits tell which of the lowest 8x8 frequencies of the discrete cosine transform of the grey
    photograph, brought to 32x32 pixels, are above their median. Mirroring negates every other one.
    Source: pHash, Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions",
    2010, section 3.2.1.

    Args:
        pixels: uint8 of shape (height, width, 3), RGB.
    """
    grey = Image.fromarray(pixels).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    low: NDArray[np.float64] = dctn(np.asarray(grey, float))[1:END, 1:END]
    mirrored = low * (-1.0) ** np.arange(1, END)
    first, second = (_packed(form > np.median(form)) for form in (low, mirrored))
    return first, second


def _packed(bits: NDArray[np.bool_]) -> int:
    return int.from_bytes(np.packbits(bits).tobytes())


def pairs(hashes: Hashes, mirrored: Hashes) -> NDArray[np.int64]:
    """Return the pairs of photographs that are nearly the same, or mirrored.

    Args:
        hashes: uint64 of shape (photographs,).
        mirrored: the hashes of the mirror images, of the same shape.

    Returns:
        int of shape (pairs, 2), the lower index first.
    """
    found = []
    for start in range(0, len(hashes), ROWS):
        rows = hashes[start : start + ROWS, np.newaxis]
        near = (np.bitwise_count(rows ^ hashes) <= DISTANCE) | (
            np.bitwise_count(rows ^ mirrored) <= DISTANCE
        )
        left, right = np.nonzero(near)
        left += start
        found.append(np.stack([left, right], axis=1)[left < right])
    return np.concatenate(found)


def groups(pairs: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number the groups of photographs of one class that are nearly the same.

    Photographs of two classes are never in one group, as their pairs are faults of the folders.

    Args:
        pairs: int of shape (pairs, 2).
        labels: int of shape (photographs,).

    Returns:
        int of shape (photographs,); one that is like no other has a number of its own.
    """
    alike = pairs[labels[pairs[:, 0]] == labels[pairs[:, 1]]]
    size = (len(labels), len(labels))
    graph: Any = coo_array((np.ones(len(alike)), (alike[:, 0], alike[:, 1])), shape=size)
    numbers: NDArray[np.int64] = connected_components(graph, directed=False)[1].astype(np.int64)
    return numbers
