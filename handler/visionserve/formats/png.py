"""PNG (W3C Portable Network Graphics, third edition): the chunks that make the picture.

Pillow is given these alone. Whatever else a file carries (profiles, text, chunks of other programs)
can then neither fill the memory nor make a sound picture unreadable. As in libpng, and so in
browsers, an ancillary chunk that is broken, misplaced or of a wrong checksum counts as absent.
"""

import io
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from visionserve.errors import RequestError
from visionserve.formats import corrupt_header, samples, unsupported_format
from visionserve.formats.decoder import load_pixels

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_CHUNKS = 120_000
MAX_TEXT = 1_000_000
CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
# Text that holds EXIF data, as ImageMagick writes it.
EXIF_TEXTS = (b"Raw profile type exif", b"exif")
# Section 11.2.1: the colour types, by their samples of one pixel.
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
SAMPLES = {GREY: 1, RGB: 3, PALETTE: 3, GREY_ALPHA: 2, RGB_ALPHA: 4}
# The modes that read the low bytes of 16-bit samples.
LOW_BYTES = {RGB: "RGB;16L", RGB_ALPHA: "RGBA;16L"}


class Chunk(NamedTuple):
    """One chunk: its type, and where it begins and ends in the file."""

    kind: bytes
    start: int
    end: int

    @property
    def length(self) -> int:
        """Bytes of the body."""
        return self.end - self.start - 12

    def checksum(self, data: bytes) -> int:
        """Return the CRC that the chunk ends with."""
        return int.from_bytes(data[self.end - 4 : self.end])


def pictorial(data: bytes) -> bytes:
    """Return a PNG of the chunks that make the picture and turn it upright.

    The frames of an APNG are left out: its first image is a PNG of its own.

    Raises:
        RequestError: 422 `corrupt_image`, it has too many chunks, no header or no palette;
            415 `unsupported_format`, it is of Apple's own kind, which is no PNG.
    """
    if data[12:16] == b"CgBI":
        raise unsupported_format("A PNG in Apple's own form (CgBI)")
    if data[12:16] != b"IHDR" or len(data) < 33:
        raise corrupt_header()
    kept, end = [SIGNATURE], len(SIGNATURE)
    seen: dict[bytes, int] = {}
    for chunk in _chunks(data):
        end = chunk.end
        if chunk.kind in CRITICAL:
            seen[chunk.kind] = chunk.length
            if data[25] == PALETTE and b"IDAT" in seen and b"PLTE" not in seen:
                raise corrupt_header()  # Pillow would take all colours for black.
        elif chunk.kind.isalpha() and not _counts(chunk, data, seen):
            continue
        kept.append(data[chunk.start : end])
        if chunk.kind == b"IEND":
            return b"".join(kept)
    # A chunk that is cut stays, for Pillow to say what is missing.
    return b"".join([*kept, data[end:]])


def load(image: PngImageFile) -> Image.Image:
    """Decode a PNG to samples of 8 bits.

    Pillow compares a transparent grey of 1, 2 or 4 bits with samples that it has scaled to 8, and
    drops the low bytes of colours of 16. A transparent colour is told by them (section 11.3.1.1),
    and some programs leave all of a sample there, and say so in sBIT (section 11.3.2.4).
    """
    data = _bytes_of(image)
    depth, kind = data[24], data[25]
    transparent, significant = _told(data)
    if kind in (GREY, RGB) and transparent and depth < 16:
        scaled = [255 // (2**depth - 1) * sample for sample in transparent]
        image.info["transparency"] = scaled[0] if kind == GREY else tuple(scaled)
    if kind == GREY_ALPHA and min(significant) < depth:
        return _narrowed(image, significant)
    load_pixels(image)
    if depth < 16:
        return image
    if kind == GREY:
        key = transparent[0] if transparent else None
        return samples.narrow_grey(image, depth, significant[0], key)
    if transparent or min(significant) < depth:
        _narrow(image, data, kind, transparent, significant)
    return image


def _narrow(
    image: Image.Image,
    data: bytes,
    kind: int,
    transparent: Sequence[int] | None,
    significant: Sequence[int],
) -> None:
    """Scale decoded colours of 16 bits, of which Pillow has read the high bytes, by all bits."""
    file = PngImageFile(io.BytesIO(data))
    file.tile = [tile._replace(args=LOW_BYTES[kind]) for tile in file.tile]
    load_pixels(file)
    most = [(band << 8) + 255 for band in samples.largest(image)]
    bits = [
        samples.recorded(band, 16, count) for band, count in zip(most, significant, strict=True)
    ]
    # One of three colours may be dark by itself.
    bits[:3] = significant[:3] if bits[:3] == [*significant[:3]] else [16] * 3
    samples.narrow_colour(image, file, bits, transparent)


def _narrowed(image: PngImageFile, significant: Sequence[int]) -> Image.Image:
    """Decode grey and alpha of 16 bits, which lie in a file as four bands of 8 do."""
    image.tile = [tile._replace(args="RGBA") for tile in image.tile]
    load_pixels(image)
    high, _, high_alpha, _ = samples.largest(image)
    bits = [
        samples.recorded((band << 8) + 255, 16, count)
        for band, count in zip((high, high_alpha), significant, strict=True)
    ]
    return samples.narrow_grey_alpha(image, bits)


def _chunks(data: bytes) -> Iterator[Chunk]:
    """Yield the whole chunks.

    Raises:
        RequestError: 422 `corrupt_image`, there are too many.
    """
    position = len(SIGNATURE)
    for _ in range(MAX_CHUNKS):
        end = position + 12 + int.from_bytes(data[position : position + 4])
        if end > len(data):
            return
        yield Chunk(data[position + 4 : position + 8], position, end)
        position = end
    raise RequestError(422, "corrupt_image", "The PNG has too many chunks.")


def _counts(chunk: Chunk, data: bytes, seen: dict[bytes, int]) -> bool:
    """Tell whether an ancillary chunk makes the picture.

    Args:
        chunk: the chunk.
        data: the PNG.
        seen: the lengths of the critical chunks before it, and of those before it that count, to
            which its own is added.
    """
    name, body = chunk.kind, data[chunk.start + 8 : chunk.end - 4]
    if name in (b"tEXt", b"zTXt"):
        name = body[:80].partition(b"\0")[0]
        fits = name in EXIF_TEXTS and _is_short(chunk.kind, body)
    else:
        fits = _fits(name, body, data[24], data[25], seen)
    counts = fits and name not in seen and zlib.crc32(chunk.kind + body) == chunk.checksum(data)
    if counts:
        seen[name] = chunk.length
    return counts


def _fits(kind: bytes, body: bytes, depth: int, colours: int, seen: dict[bytes, int]) -> bool:
    """Tell whether a chunk is of the length and in the place that section 11.3 gives it."""
    if kind == b"eXIf":
        return len(body) <= MAX_TEXT
    if b"IDAT" in seen:
        return False
    if kind == b"tRNS" and colours == PALETTE:
        return 0 < len(body) <= seen.get(b"PLTE", 0) // 3
    if kind == b"tRNS":
        return colours in (GREY, RGB) and len(body) == 2 * SAMPLES[colours]
    if kind == b"sBIT":
        count = SAMPLES.get(colours)
        return len(body) == count and all(0 < bits <= depth for bits in body)
    return False


def _is_short(kind: bytes, body: bytes) -> bool:
    """Tell whether a text is short enough, once it is decompressed."""
    if kind != b"zTXt":
        return len(body) <= MAX_TEXT
    decompressor = zlib.decompressobj()
    try:
        decompressor.decompress(body.partition(b"\0")[2][1:], MAX_TEXT)
    except zlib.error:
        return False
    return not decompressor.unconsumed_tail


def _told(data: bytes) -> tuple[Sequence[int] | None, Sequence[int]]:
    """Read what a PNG says of its samples.

    Returns:
        The sample of the one transparent grey, or the three of the one transparent colour, or
        None. How many bits were recorded of the samples of a pixel: the depth if it does not say.
    """
    depth, colours = data[24], data[25]
    transparent, significant = None, [depth] * SAMPLES.get(colours, 1)
    seen: dict[bytes, int] = {}
    for chunk in _chunks(data):
        if chunk.kind in CRITICAL:
            seen[chunk.kind] = chunk.length
        elif _counts(chunk, data, seen):
            body = data[chunk.start + 8 : chunk.end - 4]
            if chunk.kind == b"tRNS":
                numbers = [int.from_bytes(body[at : at + 2]) for at in range(0, len(body), 2)]
                transparent = [number & (2**depth - 1) for number in numbers]
            elif chunk.kind == b"sBIT":
                significant = list(body)
        if chunk.kind == b"IDAT":
            break
    return transparent, significant


def _bytes_of(image: PngImageFile) -> bytes:
    """Read the file of an image that is not decoded yet, and go back to where it was read."""
    assert image.fp is not None
    position = image.fp.tell()
    image.fp.seek(0)
    data = image.fp.read()
    image.fp.seek(position)
    return data
