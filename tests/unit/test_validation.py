"""What is refused before anything is decoded."""

import struct
import zlib

import pytest
from PIL import Image

from tests.helpers import encode
from visionserve.errors import RequestError
from visionserve.validation import validate, work

LIMITS = (1_000_000, 1_000_000)


def refused(data: bytes, max_bytes: int = LIMITS[0], max_pixels: int = LIMITS[1]) -> RequestError:
    with pytest.raises(RequestError) as caught:
        validate(data, max_bytes, max_pixels)
    return caught.value


def png_header(width: int, height: int) -> bytes:
    """A PNG that declares a size and holds no pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_known_formats_are_opened_and_not_decoded(format: str) -> None:
    image = validate(encode(Image.new("RGB", (40, 30)), format), *LIMITS)
    assert (image.format, image.size) == (format, (40, 30))


def test_an_empty_image_is_a_400() -> None:
    error = refused(b"")
    assert (error.status, error.code) == (400, "empty_image")


def test_bytes_over_the_limit_are_a_413_and_at_the_limit_are_read() -> None:
    data = encode(Image.new("RGB", (40, 30)))
    error = refused(data, max_bytes=len(data) - 1)
    assert (error.status, error.code) == (413, "image_too_large")
    assert validate(data, len(data), LIMITS[1]).size == (40, 30)


@pytest.mark.parametrize("data", [b"hello", b"<html>", b"%PDF-1.7", b"\0" * 100])
def test_other_formats_are_a_415(data: bytes) -> None:
    error = refused(data)
    assert (error.status, error.code) == (415, "unsupported_format")


def test_a_known_format_that_is_not_allowed_is_a_415() -> None:
    error = refused(encode(Image.new("RGB", (8, 8)), "PPM"))
    assert (error.status, error.code) == (415, "unsupported_format")


@pytest.mark.parametrize("size", [(1001, 1000), (100_000, 100_000), (2**31 - 1, 2**31 - 1)])
def test_declared_pixels_over_the_limit_are_a_413(size: tuple[int, int]) -> None:
    error = refused(png_header(*size))
    assert (error.status, error.code) == (413, "too_many_pixels")


def test_an_elongated_image_is_a_422() -> None:
    error = refused(encode(Image.new("L", (1000, 10))))
    assert (error.status, error.code) == (422, "extreme_aspect_ratio")


def runs(size: tuple[int, int]) -> bytes:
    """A BMP of runs that ends at once."""
    header = struct.pack("<IiiHHIIiiII", 40, *size, 1, 8, 1, 2, 0, 0, 256, 256)
    file = b"BM" + struct.pack("<IHHI", 14 + 40 + 1024 + 2, 0, 0, 14 + 40 + 1024)
    return file + header + bytes(1024) + b"\0\1"


def test_work_counts_what_takes_time() -> None:
    """Scans of any JPEG, arithmetic ones ten times, and runs that Pillow decodes in Python."""
    image = Image.new("RGB", (40, 30))
    baseline = encode(image, "JPEG")
    start = baseline.index(b"\xff\xda")
    for data, passes in (
        (encode(image, "PNG"), 1),
        *((encode(image, format), 1) for format in ("BMP", "WEBP", "GIF", "TIFF")),
        (baseline, 1),
        (baseline[:-2] + 3 * baseline[start:-2] + b"\xff\xd9", 4),
        (baseline.replace(b"\xff\xc0", b"\xff\xc9"), 10),
        (encode(image, "JPEG", progressive=True).replace(b"\xff\xc2", b"\xff\xca"), 100),
        (runs((40, 30)), 50),
    ):
        assert work(validate(data, *LIMITS)) == 1200 * passes
