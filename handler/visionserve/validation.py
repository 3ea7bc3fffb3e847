"""Encoded bytes to an image that is safe to decode."""

import io
import re
import warnings
from collections.abc import Iterator

from PIL import Image, TiffTags, UnidentifiedImageError
from PIL.TiffImagePlugin import (
    PREFIXES,
    STRIPOFFSETS,
    TILELENGTH,
    TILEOFFSETS,
    TILEWIDTH,
    ImageFileDirectory_v2,
)

from visionserve.errors import RequestError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_ASPECT_RATIO = 50
MAX_JPEG_SEGMENTS = 1000
MAX_JPEG_SCANS = 100
MAX_EXIF_SEGMENTS = 16
MAX_TIFF_LISTS = 500_000
OPAQUE = (TiffTags.BYTE, TiffTags.ASCII, TiffTags.UNDEFINED)
# Those of a segment with a length, and the end; the others stand alone.
JPEG_MARKER = re.compile(rb"\xff([\xc0-\xc7\xc9-\xcf\xd9-\xef\xfe])")

# Pillow warns of each broken tag, in words that the client chooses; Python would keep them all.
warnings.filterwarnings("ignore", module=r"PIL\.")


def validate(data: bytes, max_bytes: int, max_pixels: int) -> Image.Image:
    """Open an image by its header alone; nothing is decoded yet.

    Args:
        data: an encoded image.
        max_bytes: its largest size, in bytes.
        max_pixels: its largest width times height, in pixels, as its header declares them, and
            that of a TIFF's tile; half of it for WebP, whose decoder takes twice the memory.

    Raises:
        RequestError: 400 `empty_image`, 413 `image_too_large` or `too_many_pixels`,
            415 `unsupported_format`, 422 `corrupt_image` or `extreme_aspect_ratio`.
    """
    if not data:
        raise RequestError(400, "empty_image", "The image is empty.")
    if len(data) > max_bytes:
        raise RequestError(
            413, "image_too_large", f"The image has {len(data)} bytes; at most {max_bytes} may be."
        )
    if data.startswith(b"\xff\xd8\xff"):
        _check_segments(data)
    if data.startswith(tuple(PREFIXES)):
        _check_directories(data, max_pixels)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        if _has_known_signature(data):
            raise _corrupt_header() from None
        raise RequestError(
            415, "unsupported_format", f"The image is none of {', '.join(FORMATS)}."
        ) from None
    except Image.DecompressionBombError:
        raise _too_many_pixels(max_pixels) from None
    except Exception:
        raise _corrupt_header() from None
    if image.format == "WEBP":
        max_pixels //= 2
    width, height = image.size
    if width * height > max_pixels:
        raise _too_many_pixels(max_pixels)
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise RequestError(
            422, "extreme_aspect_ratio", f"The image's sides differ more than 1:{MAX_ASPECT_RATIO}."
        )
    return image


def work(image: Image.Image, data: bytes) -> int:
    """Estimate what a validated image costs to decode.

    Returns:
        Pixels times scans.
    """
    scans = _check_segments(data) if image.info.get("progressive") else 1
    return image.width * image.height * max(1, scans)


def memory(image: Image.Image) -> int:
    """Estimate what a validated image takes while it is decoded.

    Returns:
        The number of pixels of a JPEG or PNG that takes as much. WebP's decoder takes twice as
        much, and a TIFF is decoded in tiles that may be as large as the largest image.
    """
    pixels = image.width * image.height
    if image.format == "TIFF":
        return max(pixels, Image.MAX_IMAGE_PIXELS or pixels)
    return 2 * pixels if image.format == "WEBP" else pixels


def _check_segments(data: bytes) -> int:
    """Bound what a JPEG costs beyond its pixels, and return its number of scans.

    libjpeg passes over the whole image for each scan, even an empty one; Pillow keeps each
    segment, and copies the EXIF data for each further segment of it.
    """
    scans = exif = position = 0
    for _ in range(MAX_JPEG_SEGMENTS):
        marker = JPEG_MARKER.search(data, position)
        if marker is None or (scans and marker[1] == b"\xd9"):
            return scans
        position = marker.end()
        scans += marker[1] == b"\xda"
        exif += data.startswith(b"Exif\0\0", position + 2)
        if scans > MAX_JPEG_SCANS or exif > MAX_EXIF_SEGMENTS:
            break
        if marker[1] != b"\xd9":
            position += int.from_bytes(data[position : position + 2])
    raise RequestError(422, "corrupt_image", "The JPEG has too many segments or scans.")


def _check_directories(data: bytes, max_pixels: int) -> None:
    """Bound what a TIFF costs beyond its pixels.

    Pillow keeps an object for each strip and each number of a list, and decodes whole tiles,
    which may be larger than the image.
    """
    try:
        first, *others = _directories(data)
        tile = int(first.get(TILEWIDTH, 0)) * int(first.get(TILELENGTH, 0))
    except Exception:
        raise _corrupt_header() from None
    lists = sum(
        len(value)
        for directory in (first, *others)
        for tag, value in directory._tagdata.items()
        if directory.tagtype[tag] not in OPAQUE or tag in (STRIPOFFSETS, TILEOFFSETS)
    )
    if lists > MAX_TIFF_LISTS:
        raise RequestError(422, "corrupt_image", "The TIFF has too many strips or tags.")
    if tile > max_pixels:
        raise _too_many_pixels(max_pixels)


def _directories(data: bytes) -> Iterator[ImageFileDirectory_v2]:
    """Read the tags of a TIFF's first frame, then those of its EXIF data, as Pillow does."""
    file = io.BytesIO(data)
    header = file.read(16 if data[2] == 43 else 8)
    first = ImageFileDirectory_v2(header)
    file.seek(first.next)
    first.load(file)
    yield first
    for tag in TiffTags.TAGS_V2_GROUPS:
        if tag in first:
            directory = ImageFileDirectory_v2(header, group=tag)
            file.seek(first[tag])
            directory.load(file)
            yield directory


def _has_known_signature(data: bytes) -> bool:
    """Ask the formats' own plugins, as `Image.open` does."""
    plugins = (Image.OPEN[format][1] for format in FORMATS)
    return any(accepts is not None and accepts(data[:16]) is True for accepts in plugins)


def _corrupt_header() -> RequestError:
    return RequestError(422, "corrupt_image", "The image's header is corrupt.")


def _too_many_pixels(max_pixels: int) -> RequestError:
    return RequestError(413, "too_many_pixels", f"The image has over {max_pixels} pixels.")
