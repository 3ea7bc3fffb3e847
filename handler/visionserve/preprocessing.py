"""A validated image to the views that the model sees, equal to torchvision's presets."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from visionserve import tta
from visionserve.config import TTA, Decode
from visionserve.errors import RequestError
from visionserve.metadata import Transforms

WHITE = (255, 255, 255, 255)
STRIP = 256
MAX_EXIF_BYTES = 1_000_000
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def decode(image: Image.Image, transforms: Transforms, how: Decode) -> Image.Image:
    """Decode a validated image to RGB.

    Args:
        image: not yet decoded.
        transforms: the model's.
        how: `exact` decodes as it is; `fast` shrinks large JPEGs while decoding.

    Raises:
        RequestError: as `to_rgb` does.
    """
    if how == "fast":
        shrink_on_load(image, transforms)
    return to_rgb(image)


def to_views(
    image: Image.Image, transforms: Transforms, how: Decode, mode: TTA
) -> NDArray[np.uint8]:
    """Resize an image and cut it into the views of a mode.

    Args:
        image: mode RGB.
        transforms: the model's.
        how: `exact` equals torchvision's transforms bit for bit; `fast` resizes no more of an
            image than its centre crop needs.
        mode: the views.

    Returns:
        Views as `visionserve.tta.views` describes them.
    """
    centre_alone = how == "fast" and mode == "none"
    pixels = (resize_centre if centre_alone else resize)(image, transforms)
    return tta.views(pixels, mode, transforms.crop)


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
    """EXIF data that is broken, or too large to be parsed, is no reason to refuse the pixels."""
    if len(image.info.get("exif", b"")) > MAX_EXIF_BYTES:
        return image
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:
        return image
    return image


def _convert(image: Image.Image) -> Image.Image:
    """Convert strip by strip: what lies between the modes of a large image takes no memory."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    rgb = Image.new("RGB", image.size)
    for top in range(0, image.height, STRIP):
        box = (0, top, image.width, min(top + STRIP, image.height))
        rgb.paste(_convert_strip(image.crop(box)), box)
    return rgb


def _convert_strip(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        return Image.fromarray((wide >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, WHITE)
        opaque.alpha_composite(image.convert("RGBA"))
        image = opaque
    return image.convert("RGB")


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
    size = resized(image.size, transforms)
    if size != image.size:
        image = image.resize(size, FILTERS[transforms.interpolation])
    return np.asarray(image)


def resize_centre(image: Image.Image, transforms: Transforms) -> NDArray[np.uint8]:
    """Resize only what the centre crop of the resized image shows.

    Returns:
        uint8 array of shape (crop, crop, 3). It differs from a crop of `resize` by rounding.
    """
    (width, height), crop = resized(image.size, transforms), transforms.crop
    across, down = image.width / width, image.height / height
    left, top = round((width - crop) / 2), round((height - crop) / 2)
    box = (left * across, top * down, (left + crop) * across, (top + crop) * down)
    return np.asarray(image.resize((crop, crop), FILTERS[transforms.interpolation], box))


def resized(size: tuple[int, int], transforms: Transforms) -> tuple[int, int]:
    """Return the width and height to which an image of a size is resized, in pixels."""
    short, long = sorted(size)
    other = int(transforms.resize * long / short)
    return (transforms.resize, other) if size[0] <= size[1] else (other, transforms.resize)
