"""From a validated image to the views that the model sees.

`exact` decoding gives the same pixels as torchvision's presets, bit for bit. `fast` decoding,
which all profiles but `server` use, shrinks large JPEGs while it decodes them, and resizes with
another library, so its pixels differ a little.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from cykooz_resizer import CropBox, FilterType, ResizeAlg, ResizeOptions, Resizer
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile

from visionserve import tta
from visionserve.config import TTA, Decode
from visionserve.errors import RequestError
from visionserve.metadata import Transforms
from visionserve.validation import FILE_ERRORS

WHITE = (255, 255, 255, 255)
STRIP = 256
MAX_EXIF_BYTES = 1_000_000
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
FAST_FILTERS = {"bilinear": FilterType.bilinear, "bicubic": FilterType.catmull_rom}


def decode(image: Image.Image, transforms: Transforms, how: Decode) -> Image.Image:
    """Decode a validated image to RGB.

    Args:
        image: an image that is not decoded yet.
        transforms: the model's resize and crop.
        how: `exact` decodes at full size; `fast` shrinks large JPEGs while it decodes them.

    Raises:
        RequestError: as `to_rgb` does.
    """
    if how == "fast":
        shrink_on_load(image, transforms)
    return to_rgb(image)


def to_views(image: Image.Image, transforms: Transforms, how: Decode, mode: TTA) -> tta.Views:
    """Resize an image and find the views of a mode in it.

    Args:
        image: an image of mode RGB.
        transforms: the model's resize and crop.
        how: `exact` equals torchvision's transforms bit for bit. `fast` differs by rounding, and
            for `none` resizes only the part of the image that the centre crop shows.
        mode: which views.

    Returns:
        Views as `visionserve.tta.cut` describes them; of three equal channels if the model takes
        grey, which an image turns before it is resized.
    """
    if transforms.channels == "grey":
        image = image.convert("L")
    if how == "fast":
        pixels = resize_fast(image, transforms, centre=mode == "none")
    else:
        pixels = resize(image, transforms)
    if pixels.ndim == 2:
        pixels = np.stack([pixels] * 3, axis=-1)
    return tta.cut(pixels, mode, transforms.crop)


def to_rgb(image: Image.Image) -> Image.Image:
    """Decode an image's first frame, turn it upright by its EXIF data, and put it on white.

    Returns:
        A PIL image of mode RGB.

    Raises:
        RequestError: 422 `truncated_image` or `corrupt_image`, 415 `unsupported_pixels`.
    """
    try:
        image.load()
    except FILE_ERRORS as error:
        if "truncated" in str(error).lower():
            raise RequestError(422, "truncated_image", "The image is truncated.") from None
        raise RequestError(422, "corrupt_image", "The image is corrupt.") from None
    try:
        return _convert(_narrow(_upright(image)))
    except ValueError:
        raise RequestError(
            415, "unsupported_pixels", f"Pixels of mode {image.mode} are not supported."
        ) from None


def _narrow(image: Image.Image) -> Image.Image:
    """Scale grey pixels of 9 to 16 bits to 8 bits.

    Raises:
        ValueError: the pixels are floats, signed, or have 32 bits, so their range is not known.
    """
    if image.mode in ("I", "F"):
        raise ValueError("The pixels' range is not known.")
    if not image.mode.startswith("I;16"):
        return image
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    bits = tags.get(BITSPERSAMPLE, (16,))[0]
    narrow = Image.new("L", image.size)
    for top in range(0, image.height, STRIP):
        box = (0, top, image.width, min(top + STRIP, image.height))
        grey = (np.asarray(image.crop(box)) >> (bits - 8)).astype(np.uint8)
        narrow.paste(Image.fromarray(255 - grey if _white_is_zero(tags) else grey), box)
    narrow.info = image.info
    return narrow


def _white_is_zero(tags: Mapping[int, Any]) -> bool:
    """Tell whether a TIFF's zeros are white. Pillow inverts such pixels up to 8 bits itself."""
    return bool(tags.get(PHOTOMETRIC_INTERPRETATION) == 0)


def _upright(image: Image.Image) -> Image.Image:
    """Turn an image upright by its EXIF data; ignore EXIF data that is broken or very large."""
    if len(image.info.get("exif", b"")) > MAX_EXIF_BYTES:
        return image
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except FILE_ERRORS:
        return image
    return image


def _convert(image: Image.Image) -> Image.Image:
    """Convert an image to RGB in strips, so that copies in other modes take little memory."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    rgb = Image.new("RGB", image.size)
    for top in range(0, image.height, STRIP):
        box = (0, top, image.width, min(top + STRIP, image.height))
        rgb.paste(_convert_strip(image.crop(box)), box)
    return rgb


def _convert_strip(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, WHITE)
        opaque.alpha_composite(image.convert("RGBA"))
        image = opaque
    return image.convert("RGB")


def shrink_on_load(image: Image.Image, transforms: Transforms) -> None:
    """Let libjpeg decode a large JPEG at 1/2, 1/4 or 1/8 scale, by its DCT coefficients.

    The decoded image is still at least twice as large as the resized one, so the resize, not the
    decoder, does the antialiasing. Images of other formats stay as they are.
    """
    resize = transforms.resize
    height, width = (resize, resize) if isinstance(resize, int) else resize
    image.draft("RGB", (2 * width, 2 * height))


def resize(image: Image.Image, transforms: Transforms) -> NDArray[np.uint8]:
    """Resize as `torchvision.transforms.functional.resize` does a PIL image.

    Args:
        image: an image of mode RGB or L.
        transforms: give the size, and the filter.

    Returns:
        uint8 of shape (height, width, 3), RGB, or (height, width); see `resized_size`.
    """
    size = resized_size(image.size, transforms)
    if size != image.size:
        image = image.resize(size, FILTERS[transforms.interpolation])
    return np.asarray(image)


def resize_fast(
    image: Image.Image, transforms: Transforms, centre: bool = False
) -> NDArray[np.uint8]:
    """Resize with `cykooz_resizer`, which takes about a third of Pillow's time.

    Args:
        image: an image of mode RGB or L.
        transforms: as for `resize`.
        centre: whether to resize only what the centre crop of the resized image shows.

    Returns:
        What `resize` returns, or its centre crop, whose sides are `transforms.crop`. Pixels differ
        by rounding, by two levels at most.
    """
    size, crop = resized_size(image.size, transforms), transforms.crop
    scales = [old / new for old, new in zip(image.size, size, strict=True)]
    starts, lengths = (0, 0), size
    if centre:
        starts, lengths = (round((size[0] - crop) / 2), round((size[1] - crop) / 2)), (crop, crop)
    # Pillow resizes one axis after the other and clips in between, so their order matters. This
    # is Pillow's order: width first, unless the height loses over twice as many pixels.
    lost = [old - new for old, new in zip(image.size, size, strict=True)]
    for axis in (1, 0) if lost[1] > 2 * max(lost[0], 0) else (0, 1):
        start = starts[axis] * scales[axis]
        length = min(lengths[axis] * scales[axis], image.size[axis] - start)
        image = _resize_axis(image, axis, start, length, lengths[axis], transforms.interpolation)
    return np.asarray(image)


def _resize_axis(
    image: Image.Image, axis: int, start: float, length: float, size: int, interpolation: str
) -> Image.Image:
    """Resize a part of one axis to another length.

    Args:
        image: an image of mode RGB or L.
        axis: 0 for its width, 1 for its height.
        start: where the part begins, in pixels.
        length: length of the part, in pixels.
        size: length that it gets, in pixels.
        interpolation: a key of `FAST_FILTERS`.
    """
    if axis == 0:
        box, shape = CropBox(start, 0, length, image.height), (size, image.height)
    else:
        box, shape = CropBox(0, start, image.width, length), (image.width, size)
    found = Image.new(image.mode, shape, None)
    options = ResizeOptions(ResizeAlg.convolution(FAST_FILTERS[interpolation]), crop_box=box)
    Resizer().resize_pil(image, found, options)
    return found


def resized_size(size: tuple[int, int], transforms: Transforms) -> tuple[int, int]:
    """Return the width and height that an image of this size is resized to, in pixels."""
    if not isinstance(transforms.resize, int):
        height, width = transforms.resize
        return width, height
    short, long = sorted(size)
    other = int(transforms.resize * long / short)
    return (transforms.resize, other) if size[0] <= size[1] else (other, transforms.resize)
