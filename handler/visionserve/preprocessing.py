"""From a validated image to the views that the model sees.

`exact` decoding gives the same pixels as torchvision's presets, bit for bit. `fast` decoding,
which all profiles but `server` use, shrinks large JPEGs while it decodes them, and resizes with
another library, so its pixels differ a little.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

from visionserve import heap, tta
from visionserve.config import TTA, Decode
from visionserve.formats import (
    FILE_ERRORS,
    bmp,
    gif,
    heif,
    png,
    tiff,
    too_many_pixels,
    unsupported_pixels,
)
from visionserve.formats.decoder import load_pixels
from visionserve.formats.heif_tiles import TiledImage
from visionserve.formats.samples import strips
from visionserve.geometry import Size, resized_size, upright_size
from visionserve.metadata import Transforms
from visionserve.resizer import HAS_RESIZER, resize_box

WHITE = (255, 255, 255, 255)
# Modes of numbers whose range is not known.
UNBOUNDED = ("I", "F")
LOADERS: Mapping[str, Callable[[Any], Image.Image]] = {
    "PNG": png.load,
    "TIFF": tiff.load,
    "GIF": gif.load,
    "BMP": bmp.load,
    "AVIF": heif.load,
    "HEIF": heif.load,
}
# Images that `draft` makes smaller.
REDUCIBLE = (JpegImageFile, TiledImage)
MAX_EXIF_BYTES = 1_000_000
LARGE = 8_000_000
XMP = ("xmp", "XML:com.adobe.xmp")
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class Photograph(NamedTuple):
    """A decoded image.

    Attributes:
        rgb: upright, of mode RGB, and at the scale that `draft` has set.
        size: width and height of the upright image at its full size, in pixels.
        orientation: how it lay in its file, from 1 to 8 as in EXIF data; 1 for TIFF, AVIF and HEIC,
            which browsers turn as well where they show them.
    """

    rgb: Image.Image
    size: Size
    orientation: int


def decode(
    image: Image.Image, transforms: Transforms, how: Decode, max_pixels: int | None = None
) -> Image.Image:
    """Decode a validated image to RGB.

    Args:
        image: an image that is not decoded yet.
        transforms: the model's resize and crop.
        how: as for `shrink_on_load`.
        max_pixels: as for `shrink_on_load`.

    Raises:
        RequestError: as `shrink_on_load` and `to_rgb` do.
    """
    shrink_on_load(image, transforms, how, max_pixels)
    return to_rgb(image)


def to_views(image: Image.Image, transforms: Transforms, how: Decode, mode: TTA) -> tta.Views:
    """Resize an image and find the views of a mode in it.

    Args:
        image: an image of mode RGB.
        transforms: the model's resize and crop.
        how: `exact` equals torchvision's transforms bit for bit. `fast` differs by rounding, and
            for `none` resizes only the part of the image that the centre crop shows; where its
            library is not installed, it resizes as `exact` does.
        mode: which views.

    Returns:
        Views as `visionserve.tta.cut` describes them; of three equal channels if the model takes
        grey, which an image turns before it is resized.
    """
    if transforms.channels == "grey":
        image = image.convert("L")
    if how == "fast" and HAS_RESIZER:
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
    return upright(image, image.size).rgb


def upright(image: Image.Image, stored: Size) -> Photograph:
    """Decode an image as `to_rgb` does, and tell its full size and how it lay in its file.

    Args:
        image: an image that is not decoded yet.
        stored: its size before `draft` may have made it smaller.

    Raises:
        RequestError: as `to_rgb` does.
    """
    is_smaller = image.size != stored
    if image.width * image.height > LARGE:
        heap.trim()  # What earlier images have left in the heap would add to what this one takes.
    # XMP's copy of the orientation is no more than that (XMP, part 2, section 3.4.2: EXIF's own
    # value is the one that counts), and browsers pass it over as well.
    for name in XMP:
        image.info.pop(name, None)
    load = LOADERS.get(image.format or "", load_pixels)
    image = load(image)
    if image.mode in UNBOUNDED:
        raise unsupported_pixels("An image of floats, signed or 32-bit numbers")
    orientation = _turn(image)
    rgb = _convert(image)
    size = upright_size(stored, orientation) if is_smaller else rgb.size
    return Photograph(rgb, size, 1 if image.format == "AVIF" else orientation)


def _turn(image: Image.Image) -> int:
    """Turn an image upright by its EXIF data; ignore EXIF data that is broken or very large.

    Returns:
        The orientation that it had, from 1 to 8, as EXIF 2.32 names it (section 4.6.4).
    """
    if len(image.info.get("exif") or b"") > MAX_EXIF_BYTES:
        return 1
    try:
        orientation: Any = image.getexif().get(ExifTags.Base.Orientation)
        ImageOps.exif_transpose(image, in_place=True)
    except FILE_ERRORS:
        return 1
    return int(orientation) if orientation in range(1, 9) else 1


def _convert(image: Image.Image) -> Image.Image:
    """Convert an image to RGB in strips, so that copies in other modes take little memory."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    rgb = Image.new("RGB", image.size)
    for box in strips(image):
        rgb.paste(_convert_strip(image.crop(box)), box)
    return rgb


def _convert_strip(image: Image.Image) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")
    try:
        if image.has_transparency_data:
            opaque = Image.new("RGBA", image.size, WHITE)
            opaque.alpha_composite(image.convert("RGBA"))
            image = opaque
        return image.convert("RGB")
    except ValueError:
        raise unsupported_pixels(f"An image of mode {image.mode}") from None


def shrink_on_load(
    image: Image.Image,
    transforms: Transforms,
    how: Decode = "fast",
    max_pixels: int | None = None,
) -> None:
    """Let libjpeg decode a large JPEG at 1/2, 1/4 or 1/8 scale, by its DCT coefficients.

    The decoded image is still at least twice as large as the resized one, so the resize, not the
    decoder, does the antialiasing. The tiles of a very large HEIC are averaged to such a scale.
    Other images stay as they are.

    Args:
        image: an image that is not decoded yet.
        transforms: the model's resize and crop.
        how: `fast` takes the smallest scale that it can. `exact` decodes at full size, or at 1/2
            scale where the full size has too many pixels.
        max_pixels: the most pixels that a decoded JPEG, or HEIC in tiles, may have; None for any
            number.

    Raises:
        RequestError: 413 `too_many_pixels`, it has more, also at the scale that can be had.
    """
    resize = transforms.resize
    height, width = (resize, resize) if isinstance(resize, int) else resize
    largest = max_pixels or image.width * image.height
    if how == "fast":
        image.draft("RGB", (2 * width, 2 * height))
    elif image.width * image.height > largest and isinstance(image, REDUCIBLE):
        image.draft("RGB", (max(2 * width, image.width // 2), max(2 * height, image.height // 2)))
    if isinstance(image, REDUCIBLE) and image.width * image.height > largest:
        raise too_many_pixels(largest)


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
        interpolation: `bilinear` or `bicubic`.
    """
    if axis == 0:
        return resize_box(
            image, (start, 0, length, image.height), (size, image.height), interpolation
        )
    return resize_box(image, (0, start, image.width, length), (image.width, size), interpolation)
