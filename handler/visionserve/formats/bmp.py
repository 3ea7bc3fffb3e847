"""BMP (Windows and OS/2): headers that Pillow does not know, and alpha that says nothing."""

import struct

from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile

from visionserve.errors import RequestError
from visionserve.formats import samples, unsupported_pixels
from visionserve.formats.decoder import load_pixels

SIGNATURE = b"BM"
# How many Huffman scans of a JPEG take as long as a BMP of runs, which Pillow decodes in Python: of
# 24 megapixels, the runs take 2.8 s of a core.
RUNS = 50
FILE_HEADER, INFO_HEADER = 14, 40
WINDOWS = (40, 52, 56, 108, 124)
BIT_FIELDS = 3
OS2_COMPRESSIONS = {3: "A BMP in Huffman's code", 4: "A BMP in runs of 24 bits"}
COMPRESSIONS = {
    4: "A JPEG within a BMP",
    5: "A PNG within a BMP",
    6: "A BMP with bit fields and alpha",
    **dict.fromkeys((11, 12, 13), "A BMP of CMYK"),
}


def readable(data: bytes) -> bytes:
    """Return a BMP with a header that Pillow knows.

    A header of OS/2 2.x may end after any of its fields, and those that are left out are zero
    (OS/2 2.0 Presentation Manager, BITMAPINFOHEADER2). Its fields up to the 40th byte are those
    of Windows.

    Raises:
        RequestError: 415 `unsupported_pixels`, it is compressed as OS/2 alone does.
    """
    if len(data) < FILE_HEADER + 16:
        return data
    (size,) = struct.unpack_from("<I", data, FILE_HEADER)
    if not 16 <= size <= 64 or size % 4 or size in WINDOWS:
        return data
    header = data[FILE_HEADER : FILE_HEADER + size]
    what = OS2_COMPRESSIONS.get(int.from_bytes(header[16:20], "little"))
    if what:
        raise unsupported_pixels(what)
    if size == 64:
        return data
    (offset,) = struct.unpack_from("<I", data, 10)
    file = data[:10] + struct.pack("<I", max(0, offset + INFO_HEADER - size))
    info = struct.pack("<I", INFO_HEADER) + header[4:INFO_HEADER]
    return file + info.ljust(INFO_HEADER, b"\0") + data[FILE_HEADER + size :]


def unsupported(data: bytes) -> RequestError | None:
    """Name what a BMP is that Pillow does not open; None where its header makes no sense."""
    if len(data) < FILE_HEADER + INFO_HEADER:
        return None
    size, width, height = struct.unpack_from("<Iii", data, FILE_HEADER)
    bits, compression = struct.unpack_from("<HI", data, FILE_HEADER + 14)
    if size not in (*WINDOWS, 64) or width <= 0 or height == 0:
        return None
    if compression in COMPRESSIONS:
        return unsupported_pixels(COMPRESSIONS[compression])
    if bits in (2, 64):
        return unsupported_pixels(f"A BMP of {bits} bits a pixel")
    if compression == BIT_FIELDS and bits in (16, 24, 32):
        masks = struct.unpack_from("<3I", data.ljust(66, b"\0"), FILE_HEADER + INFO_HEADER)
        counts = ", ".join(str(mask.bit_count()) for mask in masks)
        return unsupported_pixels(f"A BMP with fields of {counts} bits")
    return None


def load(image: BmpImageFile) -> Image.Image:
    """Decode a BMP. Alpha that is zero everywhere is no alpha, as Windows shows such pictures."""
    load_pixels(image)
    if image.mode == "RGBA" and samples.largest(image)[3] == 0:
        image.putalpha(255)
    return image
