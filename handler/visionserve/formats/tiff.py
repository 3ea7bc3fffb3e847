"""TIFF (revision 6.0, Adobe 1992): which picture of a file is meant, and what Pillow misreads."""

import io
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImagePalette, TiffTags
from PIL.ImageFile import _Tile
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    COLORMAP,
    COMPRESSION,
    COMPRESSION_INFO,
    EXTRASAMPLES,
    PHOTOMETRIC_INTERPRETATION,
    PLANAR_CONFIGURATION,
    PREFIXES,
    SAMPLEFORMAT,
    STRIPOFFSETS,
    TILELENGTH,
    TILEOFFSETS,
    TILEWIDTH,
    ImageFileDirectory_v2,
    TiffImageFile,
)

from visionserve.errors import RequestError
from visionserve.formats import (
    FILE_ERRORS,
    corrupt_header,
    raw_photograph,
    samples,
    too_many_pixels,
    unsupported_pixels,
)
from visionserve.formats.decoder import load_pixels

SIGNATURES = tuple(PREFIXES)
MAX_LISTS = 500_000
MAX_PAGES = 100
MAX_ENTRIES = 1000
OPAQUE = (TiffTags.BYTE, TiffTags.ASCII, TiffTags.UNDEFINED)
# Sections 8 and 12: what a page is of the pages of its file.
NEW_SUBFILE_TYPE, SUBFILE_TYPE, PAGE_NUMBER = 254, 255, 297
WIDTH, LENGTH, SUB_IFDS = 256, 257, 330
REDUCED, PAGE, MASK = 1, 2, 4
OLD_REDUCED = 2
# Sections 8, 16 and 19.
MAX_SAMPLE_VALUE, INK_SET = 281, 332
SAMPLE_FORMATS = {2: "signed numbers", 3: "floats", 5: "complex numbers", 6: "complex numbers"}
PHOTOMETRICS = {
    **{0: "grey", 1: "grey", 2: "RGB", 3: "a palette", 4: "a mask", 5: "CMYK", 6: "YCbCr"},
    **{8: "CIELab", 9: "ICCLab", 10: "ITULab", 32844: "LogL", 32845: "LogLuv"},
}
SEPARATED, YCBCR = 5, 6
WEBP = 50_001
# Digital Negative (Adobe, 1.7): its version, and the pixels of a sensor. Then the compressions of
# Sony, Epson, Samsung, Nikon, Kodak and Pentax.
DNG_VERSION = 50706
SENSOR = (32803, 34892)
CAMERAS = (32767, 32769, 32770, 34713, 65000, 65535)
INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
WANTED = (
    *(NEW_SUBFILE_TYPE, SUBFILE_TYPE, PAGE_NUMBER, WIDTH, LENGTH, BITSPERSAMPLE, COMPRESSION),
    *(PHOTOMETRIC_INTERPRETATION, STRIPOFFSETS, TILEOFFSETS, SUB_IFDS, SAMPLEFORMAT, DNG_VERSION),
)
SAME_PICTURE = 0.9


class Page(NamedTuple):
    """A directory: where it lies in the file, and the first numbers of the tags that matter."""

    offset: int
    tags: Mapping[int, Sequence[int]]

    def number(self, tag: int, default: int = 0) -> int:
        """Return a tag's first number."""
        return next(iter(self.tags.get(tag, ())), default)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.number(WIDTH), self.number(LENGTH)

    @property
    def is_whole(self) -> bool:
        """Whether it is no smaller version of another page, and no mask of one."""
        reduced = self.number(NEW_SUBFILE_TYPE) & (REDUCED | MASK)
        return not reduced and self.number(SUBFILE_TYPE) != OLD_REDUCED

    @property
    def is_numbered(self) -> bool:
        """Whether it is one of several pages, by its own word."""
        return bool(self.number(NEW_SUBFILE_TYPE) & PAGE) or PAGE_NUMBER in self.tags


def pages(data: bytes) -> list[Page]:
    """Return a file's directories, those within each after it, as far as they can be read.

    Raises:
        RequestError: 415 `unsupported_format`, it is a raw photograph.
    """
    if data[8:10] == b"CR":
        raise raw_photograph("Canon's CR2")
    found = list(_walk(data))
    for page in found:
        if DNG_VERSION in page.tags:
            raise raw_photograph("DNG")
        compression = page.number(COMPRESSION)
        if page.number(PHOTOMETRIC_INTERPRETATION) in SENSOR or compression in CAMERAS:
            raise raw_photograph("what a camera's sensor saw")
    return found


def picture(found: Sequence[Page]) -> tuple[Page, bool] | None:
    """Choose the page to answer for.

    It is the first one, unless that is a thumbnail: by its own word, or because a later page that
    is larger has the same sides, up to a pixel.

    Args:
        found: the pages of a file.

    Returns:
        The page that takes the place of the first one, and whether it says itself that this is
        right; if not, whoever decodes both has to compare them. None for the first page.
    """
    if not found:
        return None
    first, *others = found
    width, height = first.size
    larger = [page for page in others if page.is_whole and _is_larger(page.size, first.size)]
    if not first.is_whole and larger:
        return max(larger, key=lambda page: page.size[0] * page.size[1]), True
    if first.is_whole and not first.is_numbered:
        for page in larger:
            across, down = page.size[0] / width, page.size[1] / height
            if not page.is_numbered and abs(across - down) * min(width, height) <= max(
                across, down
            ):
                return page, False
    return None


def beginning_with(data: bytes, page: Page) -> bytes:
    """Return a file whose first directory is another one of its directories."""
    order, is_big = _form(data)
    if is_big:
        return data[:8] + struct.pack(f"{order}Q", page.offset) + data[16:]
    return data[:4] + struct.pack(f"{order}I", page.offset) + data[8:]


def check_directories(data: bytes, max_pixels: int) -> None:
    """Limit what a TIFF costs beyond its pixels.

    Pillow keeps an object for each strip and for each number in a list. It decodes whole tiles,
    which may be larger than the image.

    Raises:
        RequestError: 422 `corrupt_image`, or 413 `too_many_pixels`.
    """
    try:
        first, *others = _directories(data)
        tile = int(first.get(TILEWIDTH, 0)) * int(first.get(TILELENGTH, 0))
    except FILE_ERRORS:
        raise corrupt_header() from None
    lists = sum(
        len(value)
        for directory in (first, *others)
        for tag, value in directory._tagdata.items()
        if directory.tagtype[tag] not in OPAQUE or tag in (STRIPOFFSETS, TILEOFFSETS)
    )
    if lists > MAX_LISTS:
        raise RequestError(422, "corrupt_image", "The TIFF has too many strips or tags.")
    if tile > max_pixels:
        raise too_many_pixels(max_pixels)


def check_samples(image: TiffImageFile) -> None:
    """Refuse what Pillow opens and misreads.

    Raises:
        RequestError: 415 `unsupported_pixels`.
    """
    tags = image.tag_v2
    for number in _numbers(tags, SAMPLEFORMAT):
        if number in SAMPLE_FORMATS:
            raise unsupported_pixels(f"A TIFF of {SAMPLE_FORMATS[number]}")
    if _first(tags, PHOTOMETRIC_INTERPRETATION) == SEPARATED and _first(tags, INK_SET, 1) != 1:
        raise unsupported_pixels("A TIFF of inks other than CMYK")
    if _first(tags, COMPRESSION) == WEBP:
        raise unsupported_pixels(f"A TIFF of compression {WEBP} (WebP)")
    extra = _numbers(tags, EXTRASAMPLES)
    is_grey = image.mode in ("L", "LA", "La") or image.mode.startswith("I;16")
    beyond_alpha = len(extra) > 1 and image.mode != "RGB" and image.use_load_libtiff
    if _has_planes(tags) and extra and (is_grey or beyond_alpha):
        raise unsupported_pixels("A TIFF of planes with extra samples")


def unsupported(page: Page) -> RequestError | None:
    """Name what a page is that Pillow does not open; None where its tags make no sense."""
    bits, kind = page.tags.get(BITSPERSAMPLE, (1,)), page.number(PHOTOMETRIC_INTERPRETATION)
    if min(page.size) < 1 or not bits or min(bits) < 1:
        return None
    if not (STRIPOFFSETS in page.tags or TILEOFFSETS in page.tags):
        return None
    compression = page.number(COMPRESSION, 1)
    if compression not in COMPRESSION_INFO:
        return unsupported_pixels(f"A TIFF of compression {compression}")
    numbers = SAMPLE_FORMATS.get(page.number(SAMPLEFORMAT, 1), "numbers")
    colours = PHOTOMETRICS.get(kind, f"photometric interpretation {kind}")
    return unsupported_pixels(f"A TIFF of {colours} in {numbers} of {bits[0]} bits")


def load(image: TiffImageFile) -> Image.Image:
    """Decode a TIFF to samples of 8 bits, and turn it upright, as Pillow does."""
    first = image.info.pop("first page", None)
    meant = _load(image)
    if first is None:
        return meant
    smaller = _load(_opened(first))
    return meant if _is_same(smaller, meant) else smaller


def _load(image: TiffImageFile) -> Image.Image:
    """Decode one page to samples of 8 bits."""
    _prefer_libtiff(image)
    tags = image.tag_v2
    colours = _numbers(tags, COLORMAP) if image.palette else ()
    if colours and max(colours) < 256:
        # Some programs write 8 bits of 16, of which Pillow keeps the upper ones.
        image.palette = ImagePalette.raw("RGB;L", bytes(colours))
    depth = _first(tags, BITSPERSAMPLE, 1)
    most = _numbers(tags, MAX_SAMPLE_VALUE) or (2**depth - 1,)
    # A whole number of bits; any other value is only the largest sample of this picture.
    significant = max(value.bit_length() for value in most)
    if significant > depth or any(value != 2**significant - 1 for value in most):
        significant = depth
    if image.mode.startswith("I;16"):
        load_pixels(image)
        inverted = _first(tags, PHOTOMETRIC_INTERPRETATION, 1) == 0
        return samples.narrow_grey(image, depth, significant, inverted=inverted)
    if depth == 16 and significant < depth and image.mode in ("RGB", "RGBA"):
        if _has_planes(tags):  # Pillow reads the upper bytes of planes alone.
            raise unsupported_pixels(f"A TIFF of planes of {significant} bits in 16")
        return _narrowed(image, significant)
    return load_pixels(image)


def _narrowed(image: TiffImageFile, significant: int) -> Image.Image:
    """Decode colours of 16 bits, their low bytes included."""
    assert image.fp is not None
    image.fp.seek(0)
    low = _opened(image.fp.read())
    low.tile = [_swapped(tile) for tile in low.tile]
    load_pixels(image)
    load_pixels(low)
    most = (max(samples.largest(image)) << 8) + 255
    if samples.recorded(most, 16, significant) < 16:
        samples.narrow_colour(image, low, [significant] * len(image.getbands()), None)
    return image


def _swapped(tile: _Tile) -> _Tile:
    """Have the other byte of each sample read."""
    assert isinstance(tile.args, tuple)
    mode, *others = tile.args
    other = mode[:-1] + {"L": "B", "B": "L", "N": "B"}[mode[-1]]
    return tile._replace(args=(other, *others))


def _prefer_libtiff(image: TiffImageFile) -> None:
    """Have libtiff read what Pillow's own reader of uncompressed pixels does not.

    That reads planes of 16 bits as if they had 8, has no plane of premultiplied alpha, and reads
    YCbCr as if its colours were not subsampled.
    """
    tags = image.tag_v2
    planes = _has_planes(tags) and len(image.getbands()) > 1
    deep = _first(tags, BITSPERSAMPLE, 1) == 16
    subsampled = _first(tags, PHOTOMETRIC_INTERPRETATION) == YCBCR and image.mode == "YCbCr"
    misread = subsampled or (planes and (deep or EXTRASAMPLES in tags))
    if image.use_load_libtiff or not misread:
        return
    mode = "RGBX" if subsampled else f"{image.mode};16N" if deep else image.mode
    if subsampled:
        image._mode = "RGB"
    image.use_load_libtiff = True
    size = image._tile_size
    image.tile = [_Tile("libtiff", (0, 0, *size), 0, (mode, False, tags.offset))]


def _has_planes(tags: ImageFileDirectory_v2) -> bool:
    return _first(tags, PLANAR_CONFIGURATION, 1) == 2


def _first(tags: ImageFileDirectory_v2, tag: int, default: int = 0) -> int:
    """Return a tag's first number; it raises as `_numbers` does."""
    return next(iter(_numbers(tags, tag)), default)


def _numbers(tags: ImageFileDirectory_v2, tag: int) -> tuple[int, ...]:
    """Return a tag's whole numbers; none where it is absent.

    Raises:
        RequestError: 422 `corrupt_image`, they are of another type, or not whole.
    """
    try:
        found = tags.get(tag, ())
    except FILE_ERRORS:
        raise corrupt_header() from None
    numbers = tuple(found) if isinstance(found, tuple | bytes) else (found,)
    if not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise corrupt_header()
    return numbers


def _opened(data: bytes) -> TiffImageFile:
    """Open a TIFF's first page.

    Raises:
        RequestError: 422 `corrupt_image`.
    """
    try:
        return TiffImageFile(io.BytesIO(data))
    except FILE_ERRORS:
        raise corrupt_header() from None


def _is_larger(size: tuple[int, int], other: tuple[int, int]) -> bool:
    return size[0] > other[0] > 0 and size[1] > other[1] > 0


def _is_same(smaller: Image.Image, larger: Image.Image) -> bool:
    """Tell whether two pages are one picture: whether their grey goes together."""
    grey = smaller.convert("RGB").convert("L")
    other = larger.resize(smaller.size, Image.Resampling.BOX).convert("RGB").convert("L")
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.corrcoef(np.asarray(grey).ravel(), np.asarray(other).ravel())[0, 1]
    return bool(found > SAME_PICTURE)


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


def _form(data: bytes) -> tuple[str, bool]:
    """Return the byte order, as `struct` writes it, and whether it is a BigTIFF."""
    return "<" if data[:2] == b"II" else ">", 43 in data[2:4]


def _walk(data: bytes) -> Iterator[Page]:
    """Yield at most `MAX_PAGES` directories, each once, until one cannot be read."""
    order, is_big = _form(data)
    try:
        (start,) = struct.unpack_from(f"{order}{'Q' if is_big else 'I'}", data, 8 if is_big else 4)
        waiting, seen = [start], set[int]()
        while waiting and len(seen) < MAX_PAGES:
            offset = waiting.pop(0)
            if offset == 0 or offset in seen:
                continue
            seen.add(offset)
            page, following = _read(data, offset, order, is_big)
            yield page
            waiting = [*page.tags.get(SUB_IFDS, ()), *waiting, following]
    except (struct.error, OverflowError):
        return


def _read(data: bytes, offset: int, order: str, is_big: bool) -> tuple[Page, int]:
    """Read a directory, and where the next one lies."""
    number, pointer, length = ("Q", "Q", 20) if is_big else ("H", "I", 12)
    (count,) = struct.unpack_from(order + number, data, offset)
    if count > MAX_ENTRIES:
        raise struct.error
    start = offset + struct.calcsize(order + number)
    tags: dict[int, Any] = {}
    for place in range(start, min(start + length * count, len(data) - length + 1), length):
        tag, kind, values = struct.unpack_from(f"{order}HH{pointer}", data, place)
        if tag in WANTED and kind in INTEGERS:
            form = f"{order}{min(values, 16)}{INTEGERS[kind]}"
            place += 4 + struct.calcsize(order + pointer)
            if values * struct.calcsize(INTEGERS[kind]) > struct.calcsize(pointer):
                (place,) = struct.unpack_from(order + pointer, data, place)
            tags[tag] = struct.unpack_from(form, data, place)
    end = start + length * count
    has_next = end + struct.calcsize(pointer) <= len(data)
    (following,) = struct.unpack_from(order + pointer, data, end) if has_next else (0,)
    return Page(offset, tags), following
