"""What each image format asks for beyond Pillow: limits, and what Pillow would misread."""

import struct
import zlib
from typing import Literal, get_args

from visionserve.errors import RequestError

Format = Literal["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIC"]
FORMATS: tuple[Format, ...] = get_args(Format)

# What Pillow raises of a file's content. Anything else, such as a MemoryError, is no fault of the
# file. A mistake in this package raises the same, so where they are caught nothing but Pillow runs.
FILE_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, OverflowError, NotImplementedError),
    *(LookupError, TypeError, struct.error, zlib.error),
)


def corrupt_header() -> RequestError:
    """Return the error of a file whose header cannot be read."""
    return RequestError(422, "corrupt_image", "The image's header is corrupt.")


def too_many_pixels(limit: int) -> RequestError:
    """Return the error of an image that is too large, with the most pixels that it may have."""
    return RequestError(413, "too_many_pixels", f"The image has over {limit} pixels, the limit.")


def unsupported_pixels(what: str) -> RequestError:
    """Return the error of a sound image that cannot be read; `what` begins with "A" or "An"."""
    return RequestError(
        415, "unsupported_pixels", f"{what} is not supported: save the image as JPEG or PNG."
    )


def unsupported_format(what: str) -> RequestError:
    """Return the error of a file of another format; `what` begins with "A" or "An"."""
    return RequestError(
        415, "unsupported_format", f"{what} is not supported: save the image as JPEG or PNG."
    )


def raw_photograph(kind: str) -> RequestError:
    """Return the error of what a camera's sensor saw, which a program has to develop first."""
    return RequestError(
        415, "unsupported_format", f"A raw photograph ({kind}) is not supported: export it as JPEG."
    )
