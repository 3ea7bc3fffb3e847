"""HEIF (ISO/IEC 23008-12), the container of AVIF and HEIC: what decoding a file takes.

A file's boxes give the size of each coded picture, and so does the coded picture itself, which is
what the decoders believe. So both are read before any of them starts. What a file shows is its
primary item, turned as its own boxes say (`irot`, `imir`); an orientation in its EXIF data only
repeats that (section 6.5.10).
"""

import io
import math
import struct
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from PIL import Image

from visionserve.formats import (
    FILE_ERRORS,
    corrupt_header,
    jpeg,
    samples,
    too_many_pixels,
    unsupported_format,
    unsupported_pixels,
)
from visionserve.formats.decoder import load_pixels
from visionserve.formats.heif_tiles import Property, TiledImage, alone

# What reading a file's boxes and headers raises here where they end too soon, or lie.
BROKEN = (ValueError, LookupError, struct.error)
MAX_BOXES = 10_000
MAX_ITEMS = 2_000
# A coded picture is padded to whole blocks, by less than this part of a large one.
PADDING = 8
# A coded picture's type, and the format that its file has.
CODECS: dict[bytes, Literal["AVIF", "HEIC"]] = {b"av01": "AVIF", b"hvc1": "HEIC"}
DERIVED = (b"grid", b"iovl", b"iden")
# Bytes of memory that a pixel takes at most, with alpha and full colours, of 8 bits and of more: an
# AVIF 13.2 and a HEIC 9.3 and 20 as measured (a phone's HEIC 7). No encoder here makes an AVIF of
# more than 8 bits, whose samples take twice as much.
PIXEL_BYTES = {"AVIF": (14, 24), "HEIC": (10, 21)}
# The largest tile that is decoded by itself; phones write tiles of 512 x 512 pixels.
MAX_TILE_PIXELS = 2048 * 2048
# The properties that a tile's pixels depend on, and those that turn a picture.
TILES_OWN = (b"hvcC", b"ispe", b"colr", b"pixi")
TURNS = (b"irot", b"imir")
ALPHA = (b"urn:mpeg:hevc:2015:auxid:1\0", b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0")

# How many Huffman scans of a JPEG take as long: a photograph of 2.7 megapixels took 11 ms of a core
# as a JPEG, 55 ms as an AVIF, and 154 ms as a HEIC of few losses.
WORK = {"AVIF": 5, "HEIF": 15}


@dataclass
class Item:
    """One item of a file: its type, the indices of its properties, and where its data lie."""

    kind: bytes = b""
    properties: list[int] = field(default_factory=list)
    extents: list[tuple[int, int]] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)


class Bits:
    """A reader of bits, the highest first."""

    def __init__(self, data: bytes) -> None:
        self._number = int.from_bytes(data)
        self._left = 8 * len(data)

    def read(self, count: int) -> int:
        """Read an unsigned number.

        Raises:
            ValueError: there are too few bits.
        """
        self._left -= count
        if self._left < 0:
            raise ValueError("The bits end.")
        return self._number >> self._left & ((1 << count) - 1)

    def exponential(self) -> int:
        """Read an unsigned number in Exp-Golomb's code (ITU-T H.265, section 9.2)."""
        zeros = 0
        while not self.read(1):
            zeros += 1
            if zeros > 32:
                raise ValueError("The number is too large.")
        return (1 << zeros) - 1 + self.read(zeros)


def is_heif(data: bytes) -> bool:
    """Tell whether a file is a HEIF, by its brands (ISO/IEC 14496-12, section 4.3)."""
    if data[4:8] != b"ftyp":
        return False
    size = min(int.from_bytes(data[:4]), 4096)
    brands = {data[8:12], *(data[at : at + 4] for at in range(16, size, 4))}
    return bool(brands & {b"avif", b"avis", b"mif1", b"msf1", b"heic", b"heix", b"heim", b"heis"})


def open_heif(
    data: bytes, max_pixels: int, max_tiled_pixels: int, formats: Sequence[str]
) -> Image.Image:
    """Open an AVIF or HEIC by its header, without decoding it.

    Args:
        data: the file.
        max_pixels: the most pixels of its picture, and of each coded picture in it, were they
            those of the most costly JPEG.
        max_tiled_pixels: the most pixels of a HEIC in tiles, where it is decoded tile by tile.
        formats: the formats that are read.

    Raises:
        RequestError: 413 `too_many_pixels`, 415 `unsupported_format` or `unsupported_pixels`, 422
            `corrupt_image`.
    """
    try:
        boxes = _within(data, 0, len(data))
        if b"moov" in boxes and b"meta" not in boxes:
            raise unsupported_format("A HEIF of moving pictures alone")
        primary, items, properties = _read(data)
        kinds = _kinds(items, primary)
    except BROKEN:
        raise corrupt_header() from None
    codecs = {kind for kind in kinds if kind not in DERIVED}
    if len(codecs) != 1 or not codecs <= CODECS.keys():
        names = ", ".join(sorted(map(_name, codecs))) or "nothing"
        raise unsupported_pixels(f"A HEIF of {names}")
    format = CODECS[codecs.pop()]
    if format not in formats:
        raise unsupported_format(f"An {format}" if format == "AVIF" else f"A {format}")
    try:
        pixel_bytes = PIXEL_BYTES[format][any(map(_is_deep, properties))]
        shown, coded = (max(sizes, default=0) for sizes in _sizes(data, items, properties))
    except BROKEN:
        raise corrupt_header() from None
    max_pixels = max_pixels * jpeg.PIXEL_BYTES // pixel_bytes
    if shown > max_pixels or coded > max_pixels + max_pixels // PADDING:
        tiled = _tiled(data, items, properties, items[primary])
        if tiled is None or tiled.width * tiled.height > max_tiled_pixels:
            raise too_many_pixels(max_pixels)
        return tiled
    try:
        image = _open_avif(data) if format == "AVIF" else _open_heic(data)
    except (*FILE_ERRORS, RuntimeError):
        raise corrupt_header() from None
    image.info["pixel bytes"] = pixel_bytes
    return image


def load(image: Image.Image) -> Image.Image:
    """Decode an AVIF or HEIC to samples of 8 bits, which pillow-heif does but for grey.

    Raises:
        RequestError: 422 `truncated_image` or `corrupt_image`.
    """
    if isinstance(image, TiledImage):
        image.load()
        return image
    load_pixels(image)
    return samples.narrow_grey(image, 16, 16) if image.mode == "I;16" else image


def _open_avif(data: bytes) -> Image.Image:
    """Open an AVIF by Pillow. Of a sequence, it gets the picture that stands for it."""
    from PIL import AvifImagePlugin

    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    still = data[:8] + b"avif" + data[12:] if data[8:12] == b"avis" else data
    return AvifImagePlugin.AvifImageFile(io.BytesIO(still))


def _open_heic(data: bytes) -> Image.Image:
    """Open a HEIC by pillow-heif.

    Raises:
        RequestError: 415 `unsupported_format`, that is not installed.
    """
    try:
        from pillow_heif import options
        from pillow_heif.as_plugin import HeifImageFile
    except ImportError:
        raise unsupported_format("A HEIC, without the package pillow-heif,") from None
    options.DECODE_THREADS = 1
    options.THUMBNAILS = options.DEPTH_IMAGES = options.AUX_IMAGES = False
    image: Image.Image = HeifImageFile(io.BytesIO(data))
    return image


def _tiled(
    data: bytes, items: dict[int, Item], properties: list[Property], grid: Item
) -> TiledImage | None:
    """Return a HEIC whose tiles can be decoded one by one, or None.

    The tiles are to have the place that the grid gives them, no larger coded pictures than that,
    no transparency, and nothing that turns or cuts them.
    """
    own, tiles = _own(grid, properties), [items[index] for index in grid.inputs]
    cut = any(kind == b"clap" for kind, _ in own)
    clear = any(kind == b"auxC" and content[4:].startswith(ALPHA) for kind, content in properties)
    if grid.kind != b"grid" or not 0 < len(tiles) <= MAX_ITEMS or cut or clear:
        return None
    colours = [property for property in own if property[0] == b"colr"]
    known = [_own(tile, properties) for tile in tiles]
    try:
        body = _body(grid, data)
        places, size = (body[3] + 1, body[2] + 1), _canvas_size(b"grid", body)
        tile: tuple[int, int] = struct.unpack_from(">II", dict(known[0])[b"ispe"], 4)
        coded = max(_sizes(data, {index: items[index] for index in grid.inputs}, properties)[1])
    except BROKEN:
        return None
    fits = all(
        0 <= count * side - full < side
        for count, side, full in zip(places, tile, size, strict=True)
    )
    area = tile[0] * tile[1]
    if (
        not fits
        or len(tiles) != places[0] * places[1]
        or max(area, coded) > min(MAX_TILE_PIXELS, 2 * area)
        or any(tile.kind != b"hvc1" for tile in tiles)
        or any(kind in (*TURNS, b"clap") for mine in known for kind, _ in mine)
    ):
        return None

    def decode(index: int) -> Image.Image:
        mine = [property for property in known[index] if property[0] in TILES_OWN]
        mine += [] if any(kind == b"colr" for kind, _ in mine) else colours
        return load(_open_heic(alone(mine, _body(tiles[index], data))))

    turns = [property for property in own if property[0] in TURNS]
    return TiledImage(places, tile, size, turns, decode)


def _name(kind: bytes) -> str:
    """Return an item's type for a message."""
    return kind.decode("ascii") if kind.isalnum() else "an unknown type"


def _is_deep(property: Property) -> bool:
    """Tell whether a property is a decoder configuration of more than 8 bits."""
    kind, content = property
    return bool((kind == b"hvcC" and content[17] & 7) or (kind == b"av1C" and content[2] & 64))


def _kinds(items: dict[int, Item], primary: int) -> set[bytes]:
    """Return the types of an item and of those that it is derived from."""
    waiting, seen = [primary], set[int]()
    while waiting:
        index = waiting.pop()
        if index not in seen:
            seen.add(index)
            waiting += items[index].inputs
    return {items[index].kind for index in seen}


def _own(item: Item, properties: list[Property]) -> list[Property]:
    """Return an item's properties."""
    return [properties[index - 1] for index in item.properties if 0 < index <= len(properties)]


def _body(item: Item, data: bytes) -> bytes:
    """Return an item's data."""
    return b"".join(data[start : start + length] for start, length in item.extents)


def _sizes(
    data: bytes, items: dict[int, Item], properties: list[Property]
) -> tuple[list[int], list[int]]:
    """Return how many pixels the pictures of a file have, by its boxes and by their own word."""
    found, coded = [], []
    for item in items.values():
        body = _body(item, data)
        for kind, content in _own(item, properties):
            if kind == b"ispe":
                width, height = struct.unpack_from(">II", content, 4)
                found.append(width * height)
            if kind == b"hvcC" and item.kind == b"hvc1":
                coded.append(_hevc_pixels(content, body))
        if item.kind == b"av01":
            coded.append(_av1_pixels(body))
        if item.kind in (b"grid", b"iovl"):
            found.append(math.prod(_canvas_size(item.kind, body)))
    return found, coded


def _canvas_size(kind: bytes, body: bytes) -> tuple[int, int]:
    """Return width and height of a derived picture (sections 6.6.2.2 and 6.6.2.3)."""
    form = ">II" if body[1] & 1 else ">HH"
    width, height = struct.unpack_from(form, body, 4 if kind == b"grid" else 10)
    return width, height


def _av1_pixels(body: bytes) -> int:
    """Return how many pixels the frames of an AV1 picture may have (AV1, sections 5.3 to 5.5)."""
    largest = frames = position = 0
    while position < len(body):
        header = body[position]
        kind, has_extension, has_size = header >> 3 & 15, header >> 2 & 1, header >> 1 & 1
        position += 1 + has_extension
        length = len(body) - position
        if has_size:
            length = shift = 0
            while True:
                byte = body[position]
                position += 1
                length |= (byte & 127) << shift
                shift += 7
                if byte < 128 or shift > 56:
                    break
        if kind == 1:
            largest = max(largest, _sequence_pixels(body[position : position + min(length, 64)]))
        frames += kind in (3, 6)
        position += length
    return largest * max(1, frames)


def _sequence_pixels(header: bytes) -> int:
    """Return the most pixels of a frame by a sequence header (AV1, section 5.5.1).

    Where a frame may give its own size, it has as many bits for it as are declared here.
    """
    bits = Bits(header)
    bits.read(3)  # profile
    bits.read(1)  # still picture
    reduced = bits.read(1)
    if reduced:
        bits.read(5)  # level
    else:
        _skip_operating_points(bits)
    across, down = bits.read(4) + 1, bits.read(4) + 1
    width, height = bits.read(across) + 1, bits.read(down) + 1
    if reduced:
        return width * height
    return max(width * height, (1 << across + down) // 4)


def _skip_operating_points(bits: Bits) -> None:
    """Skip what lies before the size in a sequence header that is not reduced."""
    model = 0
    delay = 0
    if bits.read(1):  # timing
        bits.read(32)
        bits.read(32)
        if bits.read(1):
            bits.exponential()
        model = bits.read(1)
        if model:
            delay = bits.read(5) + 1
            bits.read(32)
            bits.read(10)
    has_delay = bits.read(1)
    for _ in range(bits.read(5) + 1):
        bits.read(12)  # what it is of
        if bits.read(5) > 7:  # level
            bits.read(1)  # tier
        if model and bits.read(1):
            bits.read(2 * delay + 1)
        if has_delay and bits.read(1):
            bits.read(4)


def _hevc_pixels(config: bytes, body: bytes) -> int:
    """Return how many pixels an HEVC picture has.

    Args:
        config: the decoder configuration (ISO/IEC 14496-15, section 8.3.3.1.2).
        body: the coded picture, units that each begin with their length.
    """
    size = (config[21] & 3) + 1
    units = [*_parameter_sets(config), *_units(body, size)]
    pictures = sum(unit[0] >> 1 & 63 < 32 and unit[2] >> 7 for unit in units if len(unit) > 2)
    sizes = [_parameters_pixels(unit) for unit in units if unit[:1] and unit[0] >> 1 & 63 == 33]
    return max(sizes, default=0) * max(1, pictures)


def _parameter_sets(config: bytes) -> Iterator[bytes]:
    """Yield the units of a decoder configuration."""
    position = 23
    for _ in range(config[22]):
        (count,) = struct.unpack_from(">H", config, position + 1)
        position += 3
        for _ in range(count):
            (length,) = struct.unpack_from(">H", config, position)
            yield config[position + 2 : position + 2 + length]
            position += 2 + length


def _units(body: bytes, size: int) -> Iterator[bytes]:
    """Yield the first bytes of each unit of a coded picture."""
    position = 0
    while position + size < len(body):
        length = int.from_bytes(body[position : position + size])
        position += size
        yield body[position : position + min(length, 256)]
        position += length


def _parameters_pixels(unit: bytes) -> int:
    """Return a picture's pixels by its sequence parameter set (ITU-T H.265, section 7.3.2.2)."""
    bits = Bits(unit[2:].replace(b"\0\0\3", b"\0\0"))
    bits.read(4)  # video parameter set
    layers = bits.read(3)
    bits.read(1)  # nesting
    bits.read(96)  # profile, tier and level
    present = [(bits.read(1), bits.read(1)) for _ in range(layers)]
    if layers:
        bits.read(2 * (8 - layers))
    for has_profile, has_level in present:
        bits.read(88 * has_profile + 8 * has_level)
    bits.exponential()  # its own number
    if bits.exponential() == 3:  # chroma
        bits.read(1)
    return bits.exponential() * bits.exponential()


def _read(data: bytes) -> tuple[int, dict[int, Item], list[Property]]:
    """Read a file's boxes (ISO/IEC 14496-12, section 8.11).

    Returns:
        The primary item's number, the items by their numbers, and the properties in order.

    Raises:
        ValueError, IndexError, struct.error: the boxes are broken, or too many.
    """
    meta = _within(data, 0, len(data))[b"meta"]
    boxes = _within(data, meta[0] + 4, meta[1])
    items: dict[int, Item] = defaultdict(Item)
    start = boxes[b"pitm"][0]
    primary = _number(data, start + 4, 4 if data[start] else 2)
    _read_kinds(data, boxes[b"iinf"], items)
    _read_places(data, boxes[b"iloc"], boxes.get(b"idat", (0, 0))[0], items)
    if b"iref" in boxes:
        _read_inputs(data, boxes[b"iref"], items)
    inner = _within(data, *boxes[b"iprp"])
    properties = [(kind, data[first:last]) for kind, first, last in _boxes(data, *inner[b"ipco"])]
    _read_properties(data, inner[b"ipma"], items)
    if primary not in items or len(items) > MAX_ITEMS:
        raise ValueError("The file has no primary item, or too many items.")
    return primary, items, properties


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield each box's type, and where its content begins and ends."""
    for _ in range(MAX_BOXES):
        if start + 8 > end:
            return
        size, head = _number(data, start, 4), 8
        if size == 1:
            size, head = _number(data, start + 8, 8), 16
        size = size or end - start
        if size < head or start + size > end:
            raise ValueError("A box goes beyond the one that it is in.")
        yield data[start + 4 : start + 8], start + head, start + size
        start += size
    raise ValueError("There are too many boxes.")


def _within(data: bytes, start: int, end: int) -> dict[bytes, tuple[int, int]]:
    """Return where the first box of each type has its content."""
    found: dict[bytes, tuple[int, int]] = {}
    for kind, first, last in _boxes(data, start, end):
        found.setdefault(kind, (first, last))
    return found


def _number(data: bytes, start: int, size: int) -> int:
    """Read an unsigned number of `size` bytes; of none it is 0."""
    if start + size > len(data):
        raise ValueError("The file ends in a number.")
    return int.from_bytes(data[start : start + size])


def _read_kinds(data: bytes, box: tuple[int, int], items: dict[int, Item]) -> None:
    """Read the items' types (section 8.11.6)."""
    start, end = box
    for kind, first, _ in _boxes(data, start + (8 if data[start] else 6), end):
        if kind == b"infe":
            size = 4 if data[first] > 2 else 2
            place = first + 6 + size
            items[_number(data, first + 4, size)].kind = data[place : place + 4]


def _read_places(data: bytes, box: tuple[int, int], inside: int, items: dict[int, Item]) -> None:
    """Read where the items' data lie (section 8.11.3); `inside` is where the meta box's own do."""
    start, _ = box
    version, sizes = data[start], _number(data, start + 4, 2)
    offset_size, length_size, base_size, index_size = (sizes >> at & 15 for at in (12, 8, 4, 0))
    wide = 4 if version > 1 else 2
    count, position, total = _number(data, start + 6, wide), start + 6 + wide, 0
    for _ in range(count):
        item = items[_number(data, position, wide)]
        position += wide
        method = 0
        if version:
            method = data[position + 1] & 15
            position += 2
        base = _number(data, position + 2, base_size) + (inside if method == 1 else 0)
        position += 2 + base_size
        extents = _number(data, position, 2)
        position += 2
        for _ in range(extents):
            position += index_size if version else 0
            first = base + _number(data, position, offset_size)
            length = _number(data, position + offset_size, length_size) or len(data)
            position += offset_size + length_size
            length = max(0, min(length, len(data) - first))
            total += length
            if method > 1 or total > 2 * len(data):
                raise ValueError("Items lie within items, or upon each other.")
            item.extents.append((first, length))


def _read_inputs(data: bytes, box: tuple[int, int], items: dict[int, Item]) -> None:
    """Read which items the derived ones are made of (section 8.11.12)."""
    start, end = box
    size = 4 if data[start] else 2
    for kind, first, _ in _boxes(data, start + 4, end):
        if kind == b"dimg":
            count, place = _number(data, first + size, 2), first + size + 2
            inputs = [_number(data, place + size * index, size) for index in range(count)]
            items[_number(data, first, size)].inputs += inputs


def _read_properties(data: bytes, box: tuple[int, int], items: dict[int, Item]) -> None:
    """Read which properties the items have (ISO/IEC 23008-12, section 9.3.2)."""
    start, _ = box
    wide, size = 4 if data[start] else 2, 2 if data[start + 3] & 1 else 1
    position = start + 8
    for _ in range(_number(data, start + 4, 4)):
        item, count = items[_number(data, position, wide)], _number(data, position + wide, 1)
        position += wide + 1
        places = range(position, position + size * count, size)
        mask = 0x7FFF if size == 2 else 0x7F
        item.properties += [_number(data, place, size) & mask for place in places]
        position += size * count
