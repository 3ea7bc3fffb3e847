"""Where Pillow decodes, and what it raises becomes the client's error."""

from PIL import Image

from visionserve.errors import RequestError
from visionserve.formats import FILE_ERRORS


def load_pixels(image: Image.Image) -> Image.Image:
    """Have Pillow, or pillow-heif, decode an opened image, and return it.

    Raises:
        RequestError: 422 `truncated_image` or `corrupt_image`.
        MemoryError: a decoder got none, which Pillow calls an error of the file. Of a TIFF, it
            also says so of a tile that is larger than it should be.
    """
    try:
        image.load()
    except (*FILE_ERRORS, RuntimeError) as error:  # RuntimeError is pillow-heif's.
        if "out of memory" in str(error) and image.format != "TIFF":
            raise MemoryError from error
        if "truncated" in str(error).lower():
            raise RequestError(422, "truncated_image", "The image is truncated.") from None
        raise RequestError(422, "corrupt_image", "The image is corrupt.") from None
    return image
