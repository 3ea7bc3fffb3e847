"""From samples of up to 16 bits to 8."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

STRIP = 256


def strips(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """Yield the boxes of strips, so that a copy of one takes little memory."""
    for top in range(0, image.height, STRIP):
        yield 0, top, image.width, min(top + STRIP, image.height)


def recorded(most: int, depth: int, significant: int) -> int:
    """Return the bits that samples fill.

    A file that says how many bits were recorded should have spread them over its whole depth (PNG,
    sBIT). Some programs leave them at the low end, and their pictures are nearly black.

    Args:
        most: the largest sample.
        depth: bits of a sample in the file.
        significant: bits of a sample that were recorded, as the file says.
    """
    return significant if most < 2**significant else depth


def narrow_grey(
    image: Image.Image,
    depth: int,
    significant: int,
    transparent: int | None = None,
    inverted: bool = False,
) -> Image.Image:
    """Scale grey of up to 16 bits to 8.

    Args:
        image: of a mode that begins with I;16.
        depth: bits of a sample in the file.
        significant: bits of a sample that were recorded, as the file says.
        transparent: the sample that is painted white, or None.
        inverted: whether zero is white.

    Returns:
        An image of mode L with the same `info`, but for a transparent sample.
    """
    bits = depth
    if significant < depth:
        most = max(int(np.asarray(image.crop(box)).max()) for box in strips(image))
        bits = recorded(most, depth, significant)
    narrow = Image.new("L", image.size)
    for box in strips(image):
        wide = np.asarray(image.crop(box)).astype(np.uint16)
        grey = _scaled(wide, bits)
        grey = 255 - grey if inverted else grey
        if transparent is not None:
            grey[wide == transparent] = 255
        narrow.paste(Image.fromarray(grey), box)
    narrow.info = {key: value for key, value in image.info.items() if key != "transparency"}
    return narrow


def narrow_colour(
    high: Image.Image, low: Image.Image, bits: Sequence[int], transparent: Sequence[int] | None
) -> None:
    """Scale colours of up to 16 bits to 8, in place.

    Args:
        high: the high bytes, of mode RGB or RGBA; it gets the colours.
        low: the low bytes, of the same mode.
        bits: how many bits the samples of each band fill.
        transparent: the samples of the colour that is painted white, or None.
    """
    for box in strips(high):
        halves = [np.asarray(half.crop(box)).astype(np.uint16) for half in (high, low)]
        wide = (halves[0] * 256 + halves[1]).astype(np.uint16)
        bands = [_scaled(wide[..., band], count) for band, count in enumerate(bits)]
        narrow = np.stack(bands, axis=-1)
        if transparent is not None:
            narrow[(wide[..., :3] == np.array(transparent)).all(axis=-1)] = 255
        high.paste(Image.fromarray(narrow), box)
    high.info.pop("transparency", None)


def narrow_grey_alpha(image: Image.Image, bits: Sequence[int]) -> Image.Image:
    """Scale grey and alpha of up to 16 bits to 8, in place.

    Args:
        image: of four bands: the high and the low bytes of grey, then those of alpha.
        bits: how many bits the samples of grey fill, and those of alpha.

    Returns:
        The same image, whose bands are grey three times, and alpha.
    """
    for box in strips(image):
        pairs = np.asarray(image.crop(box)).view(">u2").astype(np.uint16)
        grey, alpha = (_scaled(pairs[..., band], count) for band, count in enumerate(bits))
        image.paste(Image.fromarray(np.stack([grey, grey, grey, alpha], axis=-1)), box)
    return image


def largest(image: Image.Image) -> list[int]:
    """Return the largest sample of each band of an image of 8-bit bands."""
    extrema: list[Any] = [band.getextrema() for band in image.split()]
    return [most for _, most in extrema]


def _scaled(wide: NDArray[np.uint16], bits: int) -> NDArray[np.uint8]:
    """Return the high 8 of some bits; fewer than 8 are stretched."""
    scaled = wide >> (bits - 8) if bits >= 8 else wide * (255 // (2**bits - 1))
    return scaled.astype(np.uint8)
