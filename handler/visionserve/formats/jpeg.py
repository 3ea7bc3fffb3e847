"""JPEG (ITU-T T.81): limits on what one costs beyond its pixels, and kinds that are not read."""

import re
from typing import NamedTuple

from PIL.JpegImagePlugin import JpegImageFile

from visionserve.errors import RequestError
from visionserve.formats import unsupported_pixels

SIGNATURE = b"\xff\xd8\xff"
MAX_SEGMENTS = 1000
MAX_SCANS = 100
LEAST_LINES = 16
MAX_EXIF_SEGMENTS = 16
# How many Huffman scans take as long as an arithmetic one: of 24 megapixels, it takes 0.25 s of a
# core.
SLOWER = 10
# Keys of an opened image's `info`, beside Pillow's own: its number of scans, and whether they are
# coded arithmetically.
SCANS, ARITHMETIC = "scans", "arithmetic"
# Bytes of memory that the most costly JPEG takes for a pixel, which is what limits are counted in:
# four components of a progressive one, 2 bytes each, and 4 of the decoded image.
PIXEL_BYTES = 12
# Markers followed by a length field, plus EOI (end of image); other markers have no payload.
MARKER = re.compile(rb"\xff([\xc0-\xc7\xc9-\xcf\xd9-\xef\xf7\xfe])")
# Table B.1: the markers of a frame's header, and JPEG-LS's own (ITU-T T.87).
FRAMES = frozenset([*range(0xC0, 0xD0), 0xF7]) - {0xC4, 0xC8, 0xCC}
LOSSLESS = (0xC3, 0xC7, 0xCB, 0xCF)
HIERARCHICAL = (0xC5, 0xC6, 0xCD, 0xCE)
LS = 0xF7
# Section B.2.5: a frame of no lines gets their number from this segment, after its first scan.
LINES = re.compile(rb"\xff\xdc\0\x04(..)", re.DOTALL)


class Frame(NamedTuple):
    """The beginning of a frame's header: its marker, where its body begins, and what that says."""

    marker: int
    start: int
    bits: int
    lines: int
    components: int


def check_segments(data: bytes) -> int:
    """Limit what a JPEG costs beyond its pixels, and return its number of scans.

    libjpeg goes through the whole image for each scan, even for an empty one. Pillow keeps every
    segment, and copies all EXIF data again for each EXIF segment.

    Raises:
        RequestError: 422 `corrupt_image`.
    """
    scans = exif = position = 0
    for _ in range(MAX_SEGMENTS):
        marker = MARKER.search(data, position)
        if marker is None or (scans and marker[1] == b"\xd9"):
            return scans
        position = marker.end()
        scans += marker[1] == b"\xda"
        exif += data.startswith(b"Exif\0\0", position + 2)
        if scans > MAX_SCANS or exif > MAX_EXIF_SEGMENTS:
            break
        if marker[1] != b"\xd9":
            position += int.from_bytes(data[position : position + 2])
    raise RequestError(422, "corrupt_image", "The JPEG has too many segments or scans.")


def readable(data: bytes) -> bytes:
    """Return a JPEG as libjpeg reads it: with its number of lines in its header.

    Raises:
        RequestError: 415 `unsupported_pixels`, it is of a kind that Pillow does not read; 422
            `corrupt_image`, it was sent as a text.
    """
    if _was_text(data):
        raise RequestError(
            422,
            "corrupt_image",
            "The JPEG's line ends were changed as of a text: send it as binary.",
        )
    frame = _frame(data)
    if frame is None:
        return data
    if frame.marker == LS:
        raise unsupported_pixels("A JPEG-LS")
    if frame.marker in LOSSLESS:
        raise unsupported_pixels("A lossless JPEG")
    if frame.marker in HIERARCHICAL:
        raise unsupported_pixels("A hierarchical JPEG")
    if frame.bits in (12, 16):
        raise unsupported_pixels(f"A JPEG of {frame.bits} bits")
    if frame.components == 2 or frame.components > 4:
        raise unsupported_pixels(f"A JPEG of {frame.components} components")
    lines = LINES.search(data, frame.start) if frame.lines == 0 else None
    if lines is None:
        return data
    place = frame.start + 3
    return data[:place] + lines[1] + data[place + 2 :]


def is_arithmetic(data: bytes) -> bool:
    """Tell whether a JPEG's first frame is coded arithmetically."""
    frame = _frame(data)
    return frame is not None and 0xC9 <= frame.marker <= 0xCF


def passes(image: JpegImageFile) -> int:
    """Return how many Huffman scans take as long as a JPEG's scans."""
    scans: int = image.info[SCANS]
    return max(1, scans) * (SLOWER if image.info[ARITHMETIC] else 1)


def memory(image: JpegImageFile) -> int:
    """Estimate the memory that decoding takes, at the scale that `draft` has set.

    Pillow keeps 4 bytes of a decoded pixel, and twice that while it turns an image or converts
    CMYK, when libjpeg has freed its own.

    Args:
        image: a JPEG that is not decoded yet.

    Returns:
        The memory in pixels of `PIXEL_BYTES`.
    """
    decoded = image.width * image.height
    scale = image.decoderconfig[0] if image.decoderconfig else 1
    return max(decoded, round(decoded * (_coefficients(image) * scale**2 + 4) / PIXEL_BYTES))


def most_pixels(image: JpegImageFile, whole: int, reduced: int) -> int:
    """Return how many pixels a JPEG may have.

    Args:
        image: a JPEG that is not decoded yet.
        whole: the most pixels of an image that is decoded at its full size.
        reduced: the most pixels of a JPEG that is decoded at half its size, at least, within the
            same memory.
    """
    fit = whole * PIXEL_BYTES // (_coefficients(image) + 1)
    return max(whole, min(reduced, int(fit)))


def _coefficients(image: JpegImageFile) -> float:
    """Return how many bytes of coefficients libjpeg keeps for a pixel of the full size.

    It keeps those of a JPEG of several scans, in 2 bytes, whatever the scale is.
    """
    if image.info[SCANS] < 2 and not image.info.get("progressive"):
        return 0
    widest, highest = (max(1, *(layer[axis] for layer in image.layer)) for axis in (1, 2))
    return 2 * sum(layer[1] * layer[2] for layer in image.layer) / (widest * highest)


def _was_text(data: bytes) -> bool:
    """Tell whether each LF got a CR before it, as on the way of a text; libjpeg reads on in noise.

    The tables before the first scan have to be longer than they say, too, as pixels of one colour
    may happen to repeat these two bytes.
    """
    lines = data.count(b"\n")
    if lines < LEAST_LINES or lines != data.count(b"\r\n"):
        return False
    position = len(SIGNATURE) - 1
    while (marker := MARKER.match(data, position)) and marker[1] not in (b"\xda", b"\xd9"):
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
    return marker is None


def _frame(data: bytes) -> Frame | None:
    """Find a JPEG's first frame; None where there is none, or its header is cut."""
    position = 0
    while marker := MARKER.search(data, position):
        start = marker.end()
        code = marker[1][0]
        if code in FRAMES:
            body = data[start : start + 8]
            if len(body) < 8:
                return None
            return Frame(code, start, body[2], int.from_bytes(body[3:5]), body[7])
        position = start + (code != 0xD9) * int.from_bytes(data[start : start + 2])
    return None
