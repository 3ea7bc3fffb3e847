"""A HEIC in tiles (ISO/IEC 23008-12, section 6.6.2.3), as phones write it, decoded tile by tile.

libheif decodes such a picture whole, which takes ten bytes of memory a pixel. Each tile is a coded
picture, so that it is put into a file of its own here, decoded, and made smaller at once.
"""

import struct
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from visionserve.errors import RequestError

SCALES = (8, 4, 2, 1)
QUARTERS = (
    *(None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270),
)
MIRRORS = (Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.FLIP_LEFT_RIGHT)
Property = tuple[bytes, bytes]


class TiledImage(Image.Image):
    """A picture that is not decoded yet, and that `draft` makes smaller, as it does a JPEG.

    Args:
        grid: the number of columns and of rows of tiles.
        tile: width and height of a tile in pixels.
        size: width and height of the picture, which leaves out what its last tiles have beyond.
        turns: the properties that turn it, in order.
        decode: decodes a tile by its index, row by row.
    """

    format = "HEIF"

    def __init__(
        self,
        grid: tuple[int, int],
        tile: tuple[int, int],
        size: tuple[int, int],
        turns: Sequence[Property],
        decode: Callable[[int], Image.Image],
    ) -> None:
        super().__init__()
        self._grid, self._tile, self._stored, self._decode = grid, tile, size, decode
        self._turns = [turn for turn in map(_transpose, turns) if turn is not None]
        is_tall = sum(turn in QUARTERS[1::2] for turn in self._turns) % 2
        self._mode, self._whole = "RGB", size[::-1] if is_tall else size
        self._scale, self._size = 1, self._whole

    def draft(self, mode: str | None, size: tuple[int, int] | None) -> Any:
        """Choose the scale that it is decoded at, so that it is no smaller than `size`."""
        if size is not None and self._im is None:
            fits = min(self._whole[0] // size[0], self._whole[1] // size[1])
            self._scale = next((scale for scale in SCALES if scale <= fits), 1)
            self._size = _reduced(self._whole, self._scale)

    def load(self) -> Any:
        """Decode the tiles, and put them together.

        Raises:
            RequestError: 422 `corrupt_image`, a tile has another size than the file says; or as
                `decode` does.
        """
        if self._im is None:
            canvas = Image.new("RGB", _reduced(self._stored, self._scale))
            columns, rows = self._grid
            for index in range(columns * rows):
                row, column = divmod(index, columns)
                tile = self._decode(index)
                if tile.size != self._tile:
                    raise RequestError(422, "corrupt_image", "The image is corrupt.")
                part = tile.convert("RGB").reduce(self._scale)
                canvas.paste(part, (column * part.width, row * part.height))
            for turn in self._turns:
                canvas = canvas.transpose(turn)
            self.im = canvas.im
        return super().load()


def alone(properties: Sequence[Property], body: bytes) -> bytes:
    """Return a HEIC of one coded picture (ISO/IEC 14496-12, section 8.11).

    Args:
        properties: type and content of each of its properties.
        body: the coded picture.
    """
    own = [_box(kind, content) for kind, content in properties]
    places = bytes([len(own), *range(1, len(own) + 1)])
    item = _box(b"infe", b"\2\0\0\0", struct.pack(">HH", 1, 0), b"hvc1\0")
    # One extent, in the box `idat`, with 4 bytes each for its offset and its length.
    place = struct.pack(">HHHHHHII", 0x4400, 1, 1, 1, 0, 1, 0, len(body))
    meta = _box(
        b"meta",
        bytes(4),
        _box(b"hdlr", bytes(8), b"pict", bytes(13)),
        _box(b"pitm", bytes(4), struct.pack(">H", 1)),
        _box(b"iinf", bytes(4), struct.pack(">H", 1), item),
        _box(b"iloc", b"\1\0\0\0", place),
        _box(
            b"iprp",
            _box(b"ipco", *own),
            _box(b"ipma", bytes(4), struct.pack(">IH", 1, 1), places),
        ),
        _box(b"idat", body),
    )
    return _box(b"ftyp", b"heic", bytes(4), b"mif1heic") + meta


def _box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I", 8 + len(body)) + kind + body


def _reduced(size: tuple[int, int], scale: int) -> tuple[int, int]:
    return -(-size[0] // scale), -(-size[1] // scale)


def _transpose(turn: Property) -> Image.Transpose | None:
    """Return what a property does (sections 6.5.10 and 6.5.12): turn anticlockwise, or mirror."""
    kind, content = turn
    return QUARTERS[content[0] & 3] if kind == b"irot" else MIRRORS[content[0] & 1]
