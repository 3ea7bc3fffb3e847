"""From encoded bytes to an image that is safe to decode."""

import io
import re
import struct
import warnings
import zlib
from collections.abc import Iterator

from PIL import Image, TiffTags, UnidentifiedImageError
from PIL.BmpImagePlugin import BmpImageFile
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
MAX_PNG_CHUNKS = 120_000
JPEG_SIGNATURE = b"\xff\xd8\xff"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# How many Huffman scans take as long as an arithmetic one, and as a BMP of runs: of 24 megapixels,
# an arithmetic scan takes 0.25 s of a core, and the runs 2.8 s.
ARITHMETIC = 10
RUNS = 50
# The markers of a frame's header; the last seven are those of arithmetic coding.
FRAMES = frozenset(bytes([code]) for code in range(0xC0, 0xD0) if code not in (0xC4, 0xC8, 0xCC))
MAX_TIFF_LISTS = 500_000
# What Pillow raises of a file's content. Anything else, such as a MemoryError, is no fault of the
# file.
FILE_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, OverflowError, NotImplementedError),
    *(LookupError, TypeError, struct.error, zlib.error),
)
OPAQUE = (TiffTags.BYTE, TiffTags.ASCII, TiffTags.UNDEFINED)
# Markers followed by a length field, plus EOI (end of image); other markers have no payload.
JPEG_MARKER = re.compile(rb"\xff([\xc0-\xc7\xc9-\xcf\xd9-\xef\xfe])")

# Pillow warns of each broken tag, with text from the file, and Python remembers every distinct
# warning for ever, so a client could fill the memory.
warnings.filterwarnings("ignore", module=r"PIL\.")


def validate(data: bytes, max_bytes: int, max_pixels: int) -> Image.Image:
    """Open an image by its header, without decoding it.

    Args:
        data: an encoded image.
        max_bytes: the most bytes that it may have.
        max_pixels: the most pixels, width times height, that its header may declare; also for a
            tile of a TIFF. A WebP may have half as many, as its decoder takes twice the memory.

    Raises:
        RequestError: 400 `empty_image`, 413 `image_too_large` or `too_many_pixels`,
            415 `unsupported_format`, 422 `corrupt_image` or `extreme_aspect_ratio`.
    """
    if not data:
        raise RequestError(400, "empty_image", "The image is empty.")
    if len(data) > max_bytes:
        raise RequestError(
            413,
            "image_too_large",
            f"The image has {len(data)} bytes; at most {max_bytes} are allowed.",
        )
    if data.startswith(JPEG_SIGNATURE):
        _check_segments(data)
    if data.startswith(PNG_SIGNATURE):
        _check_chunks(data)
    if data.startswith(tuple(PREFIXES)):
        _check_directories(data, max_pixels)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        if _has_known_signature(data):
            raise _corrupt_header() from None
        raise RequestError(
            415, "unsupported_format", f"The image's format is none of {', '.join(FORMATS)}."
        ) from None
    except Image.DecompressionBombError:
        raise _too_many_pixels(max_pixels) from None
    except FILE_ERRORS:
        raise _corrupt_header() from None
    if image.format == "WEBP":
        max_pixels //= 2
    width, height = image.size
    if width * height > max_pixels:
        raise _too_many_pixels(max_pixels)
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise RequestError(
            422,
            "extreme_aspect_ratio",
            f"One side of the image is over {MAX_ASPECT_RATIO} times the other.",
        )
    return image


def work(image: Image.Image, data: bytes) -> int:
    """Estimate the work of decoding a validated image.

    Returns:
        Its pixels times its scans, which only a JPEG has several of, times what makes a scan slow:
        arithmetic coding, which goes on at full cost where the data end, or the runs of a BMP,
        which Pillow decodes in Python.
    """
    passes = 1
    if data.startswith(JPEG_SIGNATURE):
        passes = max(1, _check_segments(data)) * (ARITHMETIC if _is_arithmetic(data) else 1)
    elif isinstance(image, BmpImageFile) and image.tile[0].codec_name == "bmp_rle":
        passes = RUNS
    return image.width * image.height * passes


def memory(image: Image.Image) -> int:
    """Estimate the memory that decoding a validated image takes.

    Returns:
        The number of pixels of a JPEG or PNG that takes as much. A WebP counts twice, for its
        decoder. A TIFF counts as the largest image, because one of its tiles may be that large.
    """
    pixels = image.width * image.height
    if image.format == "TIFF":
        return max(pixels, Image.MAX_IMAGE_PIXELS or pixels)
    return 2 * pixels if image.format == "WEBP" else pixels


def _check_segments(data: bytes) -> int:
    """Limit what a JPEG costs beyond its pixels, and return its number of scans.

    libjpeg goes through the whole image for each scan, even for an empty one. Pillow keeps every
    segment, and copies all EXIF data again for each EXIF segment.
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


def _is_arithmetic(data: bytes) -> bool:
    """Tell whether a JPEG's first frame is coded arithmetically."""
    position = 0
    while marker := JPEG_MARKER.search(data, position):
        if marker[1] in FRAMES:
            return marker[1] >= b"\xc9"
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
    return False


def _check_chunks(data: bytes) -> None:
    """Limit the chunks of a PNG: Pillow goes through them one by one."""
    position = len(PNG_SIGNATURE)
    for _ in range(MAX_PNG_CHUNKS):
        if position >= len(data):
            return
        position += 12 + int.from_bytes(data[position : position + 4])
    raise RequestError(422, "corrupt_image", "The PNG has too many chunks.")


def _check_directories(data: bytes, max_pixels: int) -> None:
    """Limit what a TIFF costs beyond its pixels.

    Pillow keeps an object for each strip and for each number in a list. It decodes whole tiles,
    which may be larger than the image.
    """
    try:
        first, *others = _directories(data)
        tile = int(first.get(TILEWIDTH, 0)) * int(first.get(TILELENGTH, 0))
    except FILE_ERRORS:
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
    """Yield the tags of a TIFF's first frame, then those of its EXIF data, read as by Pillow."""
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
    """Tell whether the first bytes are those of a supported format, as `Image.open` does."""
    plugins = (Image.OPEN[format][1] for format in FORMATS)
    return any(accepts is not None and accepts(data[:16]) is True for accepts in plugins)


def _corrupt_header() -> RequestError:
    return RequestError(422, "corrupt_image", "The image's header is corrupt.")


def _too_many_pixels(max_pixels: int) -> RequestError:
    return RequestError(
        413, "too_many_pixels", f"The image has over {max_pixels} pixels, the limit."
    )
