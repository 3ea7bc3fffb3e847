"""Encoded bytes to an image that is safe to decode."""

import io

from PIL import Image, UnidentifiedImageError

from visionserve.errors import RequestError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_ASPECT_RATIO = 50


def validate(data: bytes, max_bytes: int, max_pixels: int) -> Image.Image:
    """Open an image by its header alone; nothing is decoded yet.

    Args:
        data: an encoded image.
        max_bytes: its largest size, in bytes.
        max_pixels: its largest width times height, in pixels, as its header declares them.

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
    width, height = image.size
    if width * height > max_pixels:
        raise _too_many_pixels(max_pixels)
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise RequestError(
            422, "extreme_aspect_ratio", f"The image's sides differ more than 1:{MAX_ASPECT_RATIO}."
        )
    return image


def _has_known_signature(data: bytes) -> bool:
    """Ask the formats' own plugins, as `Image.open` does."""
    plugins = (Image.OPEN[format][1] for format in FORMATS)
    return any(accepts is not None and accepts(data[:16]) is True for accepts in plugins)


def _corrupt_header() -> RequestError:
    return RequestError(422, "corrupt_image", "The image's header is corrupt.")


def _too_many_pixels(max_pixels: int) -> RequestError:
    return RequestError(413, "too_many_pixels", f"The image has over {max_pixels} pixels.")
