"""From encoded bytes to an image that is safe to decode."""

import io
import warnings
from collections.abc import Sequence

from PIL import Image, UnidentifiedImageError
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from visionserve.config import HandlerConfig
from visionserve.errors import RequestError
from visionserve.formats import (
    FILE_ERRORS,
    FORMATS,
    Format,
    bmp,
    corrupt_header,
    foreign,
    heif,
    jpeg,
    png,
    tiff,
    too_many_pixels,
)
from visionserve.formats.heif_tiles import TiledImage

MAX_ASPECT_RATIO = 50
# Its decoder keeps the whole image, beside Pillow's.
WEBP_PIXEL_BYTES = 24

# Pillow warns of each broken tag, with text from the file, and Python remembers every distinct
# warning for ever, so a client could fill the memory.
warnings.filterwarnings("ignore", module=r"PIL\.")


def open_image(data: bytes, config: HandlerConfig) -> Image.Image:
    """Open an image by its header, within a configuration's limits; see `validate`."""
    return validate(
        data,
        config.max_image_bytes,
        config.max_image_pixels,
        config.max_jpeg_pixels,
        config.formats,
    )


def validate(
    data: bytes,
    max_bytes: int,
    max_pixels: int,
    max_jpeg_pixels: int = 0,
    formats: Sequence[Format] = FORMATS,
) -> Image.Image:
    """Open an image by its header, without decoding it.

    Args:
        data: an encoded image.
        max_bytes: the most bytes that it may have.
        max_pixels: the most pixels, width times height, that its header may declare; also for a
            tile of a TIFF. A WebP may have half as many, as its decoder takes twice the memory.
        max_jpeg_pixels: the most pixels that the header of a JPEG may declare where libjpeg can
            decode it at half its size within the memory that `max_pixels` take; also of a HEIC
            in tiles.
        formats: the formats that are read.

    Raises:
        RequestError: 400 `empty_image`, 413 `image_too_large` or `too_many_pixels`,
            415 `unsupported_format` or `unsupported_pixels`, 422 `corrupt_image` or
            `extreme_aspect_ratio`.
    """
    if not data:
        raise RequestError(400, "empty_image", "The image is empty.")
    if len(data) > max_bytes:
        raise RequestError(
            413,
            "image_too_large",
            f"The image has {len(data)} bytes; at most {max_bytes} are allowed.",
        )
    image = _open(data, max_pixels, max_jpeg_pixels, formats)
    if isinstance(image, JpegImageFile):
        max_pixels = jpeg.most_pixels(image, max_pixels, max_jpeg_pixels)
    elif isinstance(image, TiledImage):
        max_pixels = max_jpeg_pixels
    max_pixels = max_pixels * jpeg.PIXEL_BYTES // _pixel_bytes(image)
    width, height = image.size
    if width * height > max_pixels:
        raise too_many_pixels(max_pixels)
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise RequestError(
            422,
            "extreme_aspect_ratio",
            f"One side of the image is over {MAX_ASPECT_RATIO} times the other.",
        )
    return image


def _open(
    data: bytes, max_pixels: int, max_tiled_pixels: int, formats: Sequence[Format]
) -> Image.Image:
    """Open an image as its format asks for.

    Raises:
        RequestError: as `validate` does.
    """
    if data.startswith(tiff.SIGNATURES) and "TIFF" in formats:
        return _open_tiff(data, max_pixels)
    if heif.is_heif(data):
        return heif.open_heif(data, max_pixels, max_tiled_pixels, formats)
    if data.startswith(jpeg.SIGNATURE):
        return _open_jpeg(data, max_pixels, formats)
    if data.startswith(png.SIGNATURE):
        data = png.pictorial(data)
    elif data.startswith(bmp.SIGNATURE):
        data = bmp.readable(data)
    try:
        return _by_pillow(data, max_pixels, formats)
    except RequestError as error:
        if error.status == 422 and data.startswith(bmp.SIGNATURE):
            raise (bmp.unsupported(data) or error) from None
        raise


def _open_jpeg(data: bytes, max_pixels: int, formats: Sequence[Format]) -> Image.Image:
    """Open a JPEG, with what its segments say beside Pillow's own `info`.

    Raises:
        RequestError: as `validate` does.
    """
    scans = jpeg.check_segments(data)
    image = _by_pillow(jpeg.readable(data), max_pixels, formats)
    image.info |= {jpeg.SCANS: scans, jpeg.ARITHMETIC: jpeg.is_arithmetic(data)}
    return image


def _open_tiff(data: bytes, max_pixels: int) -> Image.Image:
    """Open the page of a TIFF that is meant.

    Raises:
        RequestError: as `validate` does.
    """
    pages = tiff.pages(data)
    chosen = tiff.picture(pages)
    if chosen is None:
        return _open_page(data, max_pixels, pages[:1])
    page, is_certain = chosen
    try:
        image = _open_page(tiff.beginning_with(data, page), max_pixels, [page])
    except RequestError:
        if is_certain:
            raise
        return _open_page(data, max_pixels, pages[:1])
    if not is_certain:
        image.info["first page"] = data
    return image


def _open_page(data: bytes, max_pixels: int, pages: Sequence[tiff.Page]) -> Image.Image:
    """Open the first page of a TIFF.

    Raises:
        RequestError: as `validate` does.
    """
    tiff.check_directories(data, max_pixels)
    try:
        image = _by_pillow(data, max_pixels, ("TIFF",))
    except RequestError as error:
        named = tiff.unsupported(pages[0]) if pages and error.status == 422 else None
        raise named or error from None
    if isinstance(image, TiffImageFile):
        tiff.check_samples(image)
    return image


def _by_pillow(data: bytes, max_pixels: int, formats: Sequence[Format]) -> Image.Image:
    """Have Pillow open an image.

    Raises:
        RequestError: 413 `too_many_pixels`, 415 `unsupported_format` or 422 `corrupt_image`.
    """
    others: list[str] = [format for format in formats if format not in ("AVIF", "HEIC")]
    try:
        return Image.open(io.BytesIO(data), formats=others)
    except UnidentifiedImageError:
        if _has_known_signature(data, others):
            raise corrupt_header() from None
        raise (foreign.named(data) or _unknown(formats)) from None
    except Image.DecompressionBombError:
        raise too_many_pixels(max_pixels) from None
    except FILE_ERRORS:
        raise corrupt_header() from None


def work(image: Image.Image) -> int:
    """Estimate the work of decoding a validated image.

    Returns:
        Its pixels times its scans, which only a JPEG has several of, times what makes a scan slow:
        arithmetic coding, which goes on at full cost where the data end, the runs of a BMP, which
        Pillow decodes in Python, or the codecs of video in AVIF and HEIC.
    """
    passes = 1
    if isinstance(image, JpegImageFile):
        passes = jpeg.passes(image)
    elif isinstance(image, BmpImageFile) and image.tile[0].codec_name == "bmp_rle":
        passes = bmp.RUNS
    elif image.format in heif.WORK:
        passes = heif.WORK[image.format]
    return image.width * image.height * passes


def memory(image: Image.Image) -> int:
    """Estimate the memory that decoding a validated image takes.

    Args:
        image: an image that is not decoded yet, at the scale that `draft` has set.

    Returns:
        The number of pixels of the most costly JPEG that takes as much. A TIFF counts as the
        largest image, because one of its tiles may be that large.
    """
    pixels = image.width * image.height
    if isinstance(image, JpegImageFile):
        return jpeg.memory(image)
    if image.format == "TIFF":
        return max(pixels, Image.MAX_IMAGE_PIXELS or pixels)
    return pixels * _pixel_bytes(image) // jpeg.PIXEL_BYTES


def _pixel_bytes(image: Image.Image) -> int:
    """Return how many bytes of memory a pixel takes at most."""
    if image.format == "WEBP":
        return WEBP_PIXEL_BYTES
    return int(image.info.get("pixel bytes", jpeg.PIXEL_BYTES))


def _has_known_signature(data: bytes, formats: Sequence[str]) -> bool:
    """Tell whether the first bytes are those of a supported format, as `Image.open` does."""
    plugins = (Image.OPEN[format][1] for format in formats)
    return any(accepts is not None and accepts(data[:16]) is True for accepts in plugins)


def _unknown(formats: Sequence[Format]) -> RequestError:
    return RequestError(
        415, "unsupported_format", f"The image's format is none of {', '.join(formats)}."
    )
