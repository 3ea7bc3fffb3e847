"""A validated image to resized RGB pixels, equal to torchvision's ImageNet presets."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from visionserve.errors import RequestError
from visionserve.metadata import Transforms

WHITE = (255, 255, 255, 255)


def to_rgb(image: Image.Image) -> Image.Image:
    """Decode an image: first frame, EXIF orientation applied, transparency on white.

    Returns:
        A PIL image in mode RGB.

    Raises:
        RequestError: 422 `truncated_image` or `corrupt_image`, 415 `unsupported_pixels`.
    """
    try:
        image.load()
    except Exception as error:
        if "truncated" in str(error).lower():
            raise RequestError(422, "truncated_image", "The image is truncated.") from None
        raise RequestError(422, "corrupt_image", "The image is corrupt.") from None
    try:
        return _convert(_upright(image))
    except Exception:
        raise RequestError(
            415, "unsupported_pixels", f"Pixels of mode {image.mode} are not supported."
        ) from None


def _upright(image: Image.Image) -> Image.Image:
    """Broken EXIF data is no reason to refuse the pixels."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _convert(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        return Image.fromarray((wide >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, WHITE)
        opaque.alpha_composite(image.convert("RGBA"))
        image = opaque
    return image if image.mode == "RGB" else image.convert("RGB")


def shrink_on_load(image: Image.Image, transforms: Transforms) -> None:
    """Let libjpeg decode a large JPEG at 1/2, 1/4 or 1/8 scale, by its DCT coefficients.

    The decoded image still has at least twice the length that the resize needs, so that the
    resize, not the decoder, does the antialiasing. Other formats stay as they are.
    """
    side = 2 * transforms.resize
    image.draft("RGB", (side, side))


def resize(image: Image.Image, transforms: Transforms) -> NDArray[np.uint8]:
    """Resize as `torchvision.transforms.functional.resize` does a PIL image.

    Args:
        image: mode RGB, any size.
        transforms: gives the length of the shorter side, and the filter.

    Returns:
        uint8 array of shape (height, width, 3), RGB, the shorter side `transforms.resize`.
    """
    width, height = image.size
    short, long = sorted((width, height))
    side = transforms.resize
    other = int(side * long / short)
    size = (side, other) if width <= height else (other, side)
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    if size != image.size:
        image = image.resize(size, filters[transforms.interpolation])
    return np.asarray(image)
