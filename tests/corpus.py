"""Hostile and lying inputs, built from small images, each with the answer it must get."""

import base64
import io
import json
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pillow_heif
from PIL import Image

SIZE = (96, 64)
OK = (200, "")
EMPTY = (400, "empty_request")
CORRUPT = (422, "corrupt_image")
TRUNCATED = (422, "truncated_image")
UNDECODABLE = (500, "ErrorDataDecoderException")
INVALID_HTTP = (400, "BadRequestException")
UNSUPPORTED = (415, "unsupported_format")
UNSUPPORTED_PIXELS = (415, "unsupported_pixels")
TOO_LARGE = (413, "image_too_large")
TOO_MANY_PIXELS = (413, "too_many_pixels")
TOO_MUCH_WORK = (413, "too_much_work")
ELONGATED = (422, "extreme_aspect_ratio")
INVALID_JSON = (400, "invalid_json")
INVALID_OPTION = (400, "invalid_option")
RAW = {"Content-Type": "application/octet-stream"}
JSON = {"Content-Type": "application/json"}
MEBIBYTE = 1024 * 1024
HALF = -1
NO_TAGS: Mapping[int, int | list[int]] = {}


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
        name: says what is wrong with it.
        expected: HTTP status, and the error's code: none for an answer; TorchServe's `type` where
            its frontend refuses the request before the handler sees it.
        data: an encoded image, or the body of a request.
        headers: HTTP headers of the request.
        frontend: whether the frontend refuses it.
    """

    name: str
    expected: tuple[int, str]
    data: bytes
    headers: dict[str, str] = field(default_factory=lambda: RAW)
    frontend: bool = False

    @property
    def is_image(self) -> bool:
        """Whether the data is the whole of what is wrong with it."""
        return self.headers is RAW


def picture(mode: str = "RGB", size: tuple[int, int] = SIZE) -> Image.Image:
    """A gradient."""
    rows, columns = np.mgrid[0 : size[1], 0 : size[0]]
    planes = [rows * 5 % 256, columns * 4 % 256, (rows + columns) * 2 % 256]
    return Image.fromarray(np.stack(planes, -1).astype(np.uint8)).convert(mode)


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    if format == "HEIC":
        pillow_heif.from_pillow(image).save(buffer, **options)
    else:
        image.save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def zeros(count: int) -> bytes:
    """Deflated zeros: one block many times (RFC 1950), as deflating all of them takes a second."""
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    blocks, rest = divmod(count, MEBIBYTE)
    block = deflate.compress(bytes(MEBIBYTE)) + deflate.flush(zlib.Z_FULL_FLUSH)
    end = deflate.compress(bytes(rest)) + deflate.flush()
    return b"\x78\x9c" + blocks * block + end + struct.pack(">HH", count % 65_521, 1)


def png(size: tuple[int, int], pixels: bytes, *before: bytes, kind: bytes = b"\x08\x02") -> bytes:
    """A PNG of any declared size; `kind` is its bit depth and colour type."""
    header = chunk(b"IHDR", struct.pack(">II", *size) + kind + bytes(3))
    body = b"".join(before) + chunk(b"IDAT", pixels)
    return b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b"")


def sound_png(*before: bytes) -> bytes:
    """A PNG with good pixels after the given chunks."""
    rows = b"".join(b"\0" + row.tobytes() for row in np.asarray(picture()))
    return png(SIZE, zlib.compress(rows), *before)


def segment(marker: int, body: bytes) -> bytes:
    """A segment of a JPEG."""
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def jpeg(*before: bytes, size: tuple[int, int] | None = None, **options: Any) -> bytes:
    """A JPEG with segments before its own, that may declare another size."""
    data = encode(picture(), "JPEG", **options)
    data = data[:2] + b"".join(before) + data[2:]
    if size is None:
        return data
    frame = re.search(rb"\xff[\xc0\xc2]\0\x11\x08", data)
    assert frame is not None
    return data[: frame.end()] + struct.pack(">HH", *reversed(size)) + data[frame.end() + 4 :]


def scans(count: int, arithmetic: bool) -> bytes:
    """A progressive JPEG whose first scan is followed by empty ones."""
    data = jpeg(progressive=True, size=(4000, 4000))
    head = data[: data.index(b"\xff\xda")]
    if arithmetic:
        head = head.replace(b"\xff\xc2", b"\xff\xca", 1)
    first = segment(0xDA, bytes([3, 1, 0, 2, 0, 3, 0, 0, 0, 0]))
    return head + first + count * segment(0xDA, bytes([1, 1, 0, 1, 63, 0])) + b"\xff\xd9"


def gif(screen: tuple[int, int], frame: tuple[int, int], *before: bytes) -> bytes:
    """A GIF whose one frame need not fit its screen."""
    data = encode(picture("P"), "GIF")
    start = data.index(b"\x2c\0\0\0\0" + struct.pack("<HH", *SIZE))
    head = data[:6] + struct.pack("<HH", *screen) + data[10:start] + b"".join(before)
    return head + b"\x2c\0\0\0\0" + struct.pack("<HH", *frame) + data[start + 9 :]


def tiff(tags: Mapping[int, int | list[int]], data: bytes = b"") -> bytes:
    """A TIFF of LONG tags; `data` begins at byte 8."""
    entries, tail = b"", b""
    directory = 8 + len(data)
    end = directory + 2 + 12 * len(tags) + 4
    for tag, value in sorted(tags.items()):
        values = [value] if isinstance(value, int) else value
        packed = struct.pack(f"<{len(values)}I", *values)
        place = packed if len(packed) == 4 else struct.pack("<I", end + len(tail))
        tail += b"" if len(packed) == 4 else packed
        entries += struct.pack("<HHI", tag, 4, len(values)) + place
    count = struct.pack("<H", len(tags))
    return b"II*\0" + struct.pack("<I", directory) + data + count + entries + bytes(4) + tail


def grey_tiff(
    size: tuple[int, int],
    strip: bytes,
    compression: int,
    more: Mapping[int, int | list[int]] = NO_TAGS,
) -> bytes:
    """A TIFF of one strip of 8-bit grey."""
    tags = {256: size[0], 257: size[1], 258: 8, 259: compression, 262: 1, 277: 1}
    place = {} if 324 in more else {273: 8, 278: size[1], 279: len(strip)}
    return tiff({**tags, **place, **more}, strip)


def tiled_tiff(side: int) -> bytes:
    """A TIFF of 100x100 pixels in one tile of another side."""
    tile = zeros(side * side)
    return grey_tiff((100, 100), tile, 8, {322: side, 323: side, 324: 8, 325: len(tile)})


def overlapping_tags() -> bytes:
    """A TIFF directory of 200 values of 1 MB, all of them in the same place."""
    data = bytes(MEBIBYTE)
    count = 200
    entries = b"".join(struct.pack("<HHII", 40_000 + tag, 7, len(data), 8) for tag in range(count))
    directory = struct.pack("<H", count) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    """A WebP of chunks."""
    body = b"".join(
        kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2) for kind, data in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def animated_webp(canvas: int, frame: int) -> bytes:
    """An animated WebP of a square canvas, whose frames declare their own side."""
    pixels = encode(picture(size=(64, 64)), "WEBP")[12:]

    def u24(value: int) -> bytes:
        return struct.pack("<I", value)[:3]

    animation = bytes(6) + u24(frame - 1) * 2 + u24(100) + b"\0" + pixels
    extended = b"\x02\0\0\0" + u24(canvas - 1) * 2
    return riff(
        (b"VP8X", extended), (b"ANIM", bytes(6)), (b"ANMF", animation), (b"ANMF", animation)
    )


def bmp(size: tuple[int, int], offset: int = 54, bits: int = 24, header: int = 40) -> bytes:
    """A BMP of 96x64 pixels that declares what it likes."""
    data = encode(picture(), "BMP")
    file = b"BM" + struct.pack("<IHHI", len(data), 0, 0, offset)
    return file + struct.pack("<IiiHH", header, *size, 1, bits) + data[30:]


def heic(size: tuple[int, int] = SIZE, **options: Any) -> bytes:
    """A HEIC; `tile_size` makes it a grid."""
    return encode(picture(size=size), "HEIC", **options)


def avif(size: tuple[int, int] = SIZE, **options: Any) -> bytes:
    """An AVIF."""
    return encode(picture(size=size), "AVIF", speed=10, **options)


def sized(data: bytes, size: tuple[int, int]) -> bytes:
    """A HEIF whose boxes tell another size (ISO/IEC 23008-12, section 6.5.3.1)."""
    return re.sub(rb"ispe\0{4}.{8}", b"ispe\0\0\0\0" + struct.pack(">II", *size), data, flags=re.S)


def rewritten(data: bytes, after: bytes, bit: int, bits: str) -> bytes:
    """Overwrite bits, counted from the end of the first place of some bytes."""
    start = 8 * (data.index(after) + len(after)) + bit
    whole = f"{int.from_bytes(data):0{8 * len(data)}b}"
    whole = whole[:start] + bits + whole[start + len(bits) :]
    return int(whole, 2).to_bytes(len(data))


def grown(format: str) -> bytes:
    """A HEIF whose coded picture says that it has 16,384 pixels a side, and whose boxes do not."""
    if format == "AVIF":  # A sequence header, at its sides (AV1, section 5.5.1).
        return rewritten(avif(), b"\x12\0\x0a\x09", 10, "11111111" + "0011111111111111" * 2)
    # A sequence parameter set, at its sides in Exp-Golomb's code (ITU-T H.265, section 7.3.2.2).
    return rewritten(heic(), b"\x42\1", 132, ("0" * 14 + "100000000000001") * 2)


def heifs() -> Iterator[Case]:
    """AVIF and HEIC: boxes that lie, and pictures larger than their boxes say."""
    for name, make in (("AVIF", avif), ("HEIC", heic)):
        data = make()
        codec, config = (b"av01", b"av1C") if name == "AVIF" else (b"hvc1", b"hvcC")
        yield Case(f"{name}", OK, data)
        yield Case(f"{name} of half a meta box", CORRUPT, data[:60])
        yield Case(f"{name} of half a picture", CORRUPT, data[: -len(data) // 4])
        yield Case(f"{name} of huge sides", TOO_MANY_PIXELS, sized(data, (2**31, 2**31)))
        yield Case(f"{name} of no sides", CORRUPT, sized(data, (0, 0)))
        yield Case(f"{name} larger than its boxes say", TOO_MANY_PIXELS, grown(name))
        yield Case(f"{name} of a broken header", CORRUPT, data.replace(config, b"free"))
        yield Case(f"{name} of an unknown codec", UNSUPPORTED_PIXELS, data.replace(codec, b"vvc1"))
        yield Case(f"{name} without a primary item", CORRUPT, data.replace(b"pitm", b"free"))
        place = data.index(b"meta") - 4
        beyond = data[:place] + b"\x7f" + data[place + 1 :]
        yield Case(f"{name} of a box beyond its end", CORRUPT, beyond)
    grid = heic((256, 192), tile_size=64)
    yield Case("HEIC in tiles", OK, grid)
    canvas = b"\0\0\2\3" + struct.pack(">HH", 256, 192)
    lying = b"\0\0\2\3" + struct.pack(">HH", 60_000, 60_000)
    assert grid.count(canvas) == 1
    yield Case("HEIC in tiles of a huge canvas", TOO_MANY_PIXELS, grid.replace(canvas, lying))
    yield Case("animated AVIF", OK, frames("AVIF"))


def broken_exif() -> bytes:
    """EXIF data whose directory lies outside of it."""
    return b"Exif\0\0II*\0\xff\xff\xff\x7f"


def looping_exif() -> bytes:
    """EXIF data whose sub-directory is the directory itself."""
    entry = struct.pack("<HHII", 0x8769, 4, 1, 8)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 8)


def frames(format: str) -> bytes:
    """An animation."""
    more = [picture().transpose(Image.Transpose.ROTATE_180)] * 3
    return encode(picture(), format, save_all=True, append_images=more)


def flipped(data: bytes, position: float) -> bytes:
    """Change one byte, at a part of the length."""
    changed = bytearray(data)
    changed[int(len(data) * position)] ^= 0xFF
    return bytes(changed)


def truncations() -> Iterator[Case]:
    """Each format, cut at its markers, chunks or blocks."""
    for name, data in (("JPEG", jpeg()), ("progressive JPEG", jpeg(progressive=True))):
        scan = data.index(b"\xff\xda")
        for marker in re.finditer(rb"\xff[\xc0-\xcf\xd9-\xfe]", data):
            place = marker.start()
            expected = UNSUPPORTED if place == 2 else CORRUPT if place <= scan else TRUNCATED
            yield Case(f"{name} cut before {marker[0].hex()} at {place}", expected, data[:place])
    data = sound_png(chunk(b"gAMA", bytes(4)))
    for kind, expected in ((b"IHDR", CORRUPT), (b"gAMA", CORRUPT), (b"IDAT", TRUNCATED)):
        place = data.index(kind) + 6
        yield Case(f"PNG cut in {kind.decode()}", expected, data[:place])
    yield Case("PNG without its end", OK, data[: data.index(b"IEND")])
    for format, places in {
        "GIF": {4: UNSUPPORTED, 8: CORRUPT, 30: CORRUPT, HALF: TRUNCATED},
        "WEBP": {8: UNSUPPORTED, 13: UNSUPPORTED, 30: CORRUPT, HALF: CORRUPT},
        "TIFF": {2: UNSUPPORTED, 4: CORRUPT, 60: CORRUPT, HALF: TRUNCATED},
        "BMP": {1: UNSUPPORTED, 2: CORRUPT, 30: CORRUPT, HALF: TRUNCATED},
    }.items():
        data = encode(picture(), format)
        for place, expected in places.items():
            end = len(data) // 2 if place == HALF else place
            yield Case(f"{format} cut at {end}", expected, data[:end])


def bombs() -> Iterator[Case]:
    """Few bytes that ask for much memory or time."""
    deflated = zeros(4_000_000)
    yield Case("PNG of 20000x20000 in few bytes", TOO_MANY_PIXELS, png((20_000, 20_000), deflated))
    yield Case("PNG of no side", CORRUPT, png((0, 100), deflated))
    yield Case("PNG of the largest sides", TOO_MANY_PIXELS, png((2**31 - 1,) * 2, deflated))
    yield Case("PNG with more pixels than declared", OK, png((64, 64), deflated))
    profile = chunk(b"iCCP", b"a\0\0" + zeros(50_000_000))
    yield Case("PNG with a bomb as its profile", OK, sound_png(profile))
    text = chunk(b"zTXt", b"a\0\0" + zeros(50_000_000))
    yield Case("PNG with a bomb as its text", OK, sound_png(text))
    text = chunk(b"zTXt", b"a\0\0" + zeros(MEBIBYTE))
    yield Case("PNG with 1000 texts of 1 MB", OK, sound_png(*[text] * 1000))
    yield Case("PNG with 100000 empty chunks", OK, sound_png(*[chunk(b"teSt", b"")] * 100_000))
    yield Case("PNG in 100000 empty pieces", OK, sound_png(*[chunk(b"IDAT", b"")] * 100_000))
    yield Case("GIF of a huge screen", TOO_MANY_PIXELS, gif((65_535, 65_535), SIZE))
    yield Case("GIF with a frame beyond its screen", TOO_MANY_PIXELS, gif(SIZE, (65_000, 65_000)))
    comment = b"\x21\xfe" + b"\x01a" * 1_000_000 + b"\0"
    yield Case("GIF with a comment in a million pieces", OK, gif(SIZE, SIZE, comment))
    yield Case("animated WebP of a huge canvas", TOO_MANY_PIXELS, animated_webp(16_383, 64))
    yield Case("WebP frame beyond its canvas", OK, animated_webp(64, 16_000))
    yield Case("WebP of a canvas for other formats", TOO_MANY_PIXELS, animated_webp(5100, 64))
    yield Case("TIFF of huge sides", TOO_MANY_PIXELS, grey_tiff((60_000, 60_000), deflated, 8))
    yield Case("TIFF of huge sides in LZW", TOO_MANY_PIXELS, grey_tiff((2**31,) * 2, b"", 5))
    yield Case("small TIFF in a huge tile", TOO_MANY_PIXELS, tiled_tiff(20_000))
    yield Case("TIFF with its tags in one place", CORRUPT, overlapping_tags())
    many = {273: [8] * 100_000, 279: [8] * 100_000}
    yield Case("TIFF in 100000 strips", CORRUPT, grey_tiff(SIZE, bytes(96), 1, many))
    rational = struct.pack("<HHHII", 1, 33_434, 5, 100_000, 26) + bytes(4)
    listed = rational + bytes(800_000)
    yield Case(
        "TIFF with a list in its EXIF data", CORRUPT, grey_tiff(SIZE, listed, 1, {34_665: 8})
    )
    yield Case("JPEG of huge sides", TOO_MANY_PIXELS, jpeg(size=(65_500, 65_500)))
    yield Case("progressive JPEG of 100000 scans", CORRUPT, scans(100_000, arithmetic=False))
    yield Case("arithmetic JPEG of 100000 scans", CORRUPT, scans(100_000, arithmetic=True))
    yield Case("arithmetic JPEG of 11 scans", OK, scans(10, arithmetic=True))
    yield Case("arithmetic JPEG of 99 scans", TOO_MUCH_WORK, scans(98, arithmetic=True))
    sequential = scans(98, arithmetic=True).replace(b"\xff\xca", b"\xff\xc9", 1)
    yield Case("sequential arithmetic JPEG of 99 scans", TOO_MUCH_WORK, sequential)
    yield Case("PNG of 400000 chunks", CORRUPT, sound_png(chunk(b"teSt", b"") * 400_000))
    pieces = [segment(0xE1, b"Exif\0\0" + bytes(10))] * 200_000
    yield Case("JPEG with EXIF data in 200000 pieces", CORRUPT, jpeg(*pieces))
    yield Case("JPEG with EXIF data after an end", CORRUPT, jpeg(b"\xff\xd9", *pieces))
    skipped = b"\xff\xf0\xff\xff" + b"".join(pieces[:3000])
    yield Case("JPEG with EXIF data in no segment", CORRUPT, jpeg(*[skipped] * 70))
    tags = [b"Exif\0\0" + overlapping_tags()[at : at + 60_000] for at in range(0, MEBIBYTE, 60_000)]
    yield Case(
        "JPEG with EXIF tags in one place", CORRUPT, jpeg(*[segment(0xE1, tag) for tag in tags])
    )
    yield Case("BMP of huge sides", TOO_MANY_PIXELS, bmp((60_000, 60_000)))
    yield Case("too many bytes", TOO_LARGE, sound_png() + bytes(5 * MEBIBYTE))


def lies() -> Iterator[Case]:
    """Headers that do not fit their pixels."""
    noise = encode(Image.effect_noise((200, 200), 50), "PNG")
    yield Case("PNG with a wrong byte", CORRUPT, flipped(noise, 0.5))
    yield Case("PNG without pixels", TRUNCATED, png((64, 64), b""))
    yield Case("PNG of an unknown colour type", CORRUPT, png((64, 64), b"", kind=b"\x08\x05"))
    yield Case("PNG of a wrong checksum", CORRUPT, flipped(sound_png(), 30 / 16_000))
    yield Case("JPEG of more rows than it has", OK, jpeg(size=(96, 640)))
    yield Case("JPEG of no rows", CORRUPT, jpeg(size=(96, 0)))
    yield Case("JPEG without tables", CORRUPT, re.sub(rb"\xff\xdb.{67}", b"", jpeg(), flags=re.S))
    yield Case("JPEG of a segment beyond its end", CORRUPT, jpeg(b"\xff\xe5\xff\xff"))
    yield Case("JPEG of a segment of no length", OK, jpeg(b"\xff\xe5\0\0"))
    yield Case(
        "JPEG of two frames", CORRUPT, jpeg(segment(0xC0, b"\x08\0\x40\0\x60\x01\x01\x11\0"))
    )
    yield Case("GIF of no screen", OK, gif((0, 0), SIZE))
    yield Case("GIF of an empty frame", CORRUPT, gif(SIZE, (0, 0)))
    yield Case("GIF of no frame", CORRUPT, gif(SIZE, SIZE, b"\x3b"))
    yield Case("TIFF of no sides", CORRUPT, grey_tiff((0, 0), b"", 1))
    largest = grey_tiff(SIZE, bytes(6144), 1, {281: 65})
    text = largest.replace(struct.pack("<HH", 281, 4), struct.pack("<HH", 281, 2))
    yield Case("TIFF whose largest sample is a text", CORRUPT, text)
    unknown = grey_tiff(SIZE, bytes(6144), 12_345)
    yield Case("TIFF of an unknown compression", UNSUPPORTED_PIXELS, unknown)
    yield Case("TIFF of bytes that are not deflated", CORRUPT, grey_tiff(SIZE, bytes(6144), 8))
    yield Case("TIFF of bytes that are not LZMA", CORRUPT, grey_tiff(SIZE, bytes(6144), 34_925))
    yield Case(
        "TIFF of bytes that are not Zstandard", CORRUPT, grey_tiff(SIZE, bytes(6144), 50_000)
    )
    yield Case("TIFF of bytes that are not JPEG", CORRUPT, grey_tiff(SIZE, bytes(6144), 7))
    yield Case("TIFF whose directory is elsewhere", CORRUPT, b"II*\0\xff\xff\xff\x7f" + bytes(99))
    yield Case("WebP of no length", CORRUPT, b"RIFF\0\0\0\0" + encode(picture(), "WEBP")[8:])
    yield Case("WebP without pixels", CORRUPT, riff((b"VP8X", bytes(4) + b"\x3f\0\0" * 2)))
    yield Case("BMP whose pixels are elsewhere", TRUNCATED, bmp(SIZE, offset=2**31))
    yield Case("BMP of an unknown header", CORRUPT, bmp(SIZE, header=41))
    yield Case("BMP of 3 bits a pixel", CORRUPT, bmp(SIZE, bits=3))
    yield Case("BMP of no sides", CORRUPT, bmp((0, 0)))
    yield Case("1x3000", ELONGATED, encode(Image.new("1", (1, 3000)), "PNG"))


def answerable() -> Iterator[Case]:
    """Good pixels in odd company."""
    yield Case("JPEG with a broken profile", OK, jpeg(icc_profile=b"nonsense"))
    yield Case("PNG with a broken profile", OK, sound_png(chunk(b"iCCP", b"a\0\0nonsense")))
    yield Case("JPEG with broken EXIF data", OK, jpeg(segment(0xE1, broken_exif())))
    yield Case("JPEG with looping EXIF data", OK, jpeg(segment(0xE1, looping_exif())))
    yield Case("PNG with broken EXIF data", OK, sound_png(chunk(b"eXIf", broken_exif()[6:])))
    webp = encode(picture(), "WEBP", exif=broken_exif())
    yield Case("WebP with broken EXIF data", OK, webp)
    for format in ("GIF", "WEBP", "PNG", "TIFF", "MPO"):
        yield Case(f"animated {format}", OK, frames(format))
    yield Case("GIF and HTML", OK, encode(picture(), "GIF") + b"<script>alert(1)</script>")
    yield Case("JPEG and ZIP", OK, jpeg() + b"PK\x03\x04" + bytes(100))
    yield Case("JPEG with a script as its comment", OK, jpeg(comment=b"<?php system($_GET[0]) ?>"))
    yield Case("HTML and PNG", UNSUPPORTED, b"<html>" + sound_png())
    yield Case("1x1", OK, encode(Image.new("RGB", (1, 1)), "PNG"))


def others() -> Iterator[Case]:
    """What is no image of the formats that are read."""
    yield Case("HTML", UNSUPPORTED, b"<!doctype html><title>x</title>")
    yield Case("SVG", UNSUPPORTED, b'<svg xmlns="http://www.w3.org/2000/svg"/>')
    yield Case("PDF", UNSUPPORTED, b"%PDF-1.7\n")
    yield Case("ZIP", UNSUPPORTED, b"PK\x03\x04" + bytes(100))
    yield Case("zeros", UNSUPPORTED, bytes(10_000))
    yield Case("PostScript", UNSUPPORTED, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    for format in ("PPM", "ICO", "TGA", "JPEG2000"):
        yield Case(format, UNSUPPORTED, encode(picture(size=(64, 64)), format))


def multipart(*parts: tuple[str, bytes]) -> bytes:
    """A form; each part has a line of headers."""
    lines = [
        b"--x\r\n" + head.encode(errors="surrogateescape") + b"\r\n\r\n" + data + b"\r\n"
        for head, data in parts
    ]
    return b"".join(lines) + b"--x--\r\n"


def named(name: str, more: str = '; filename="a"') -> str:
    """The headers of a form's part."""
    return f'Content-Disposition: form-data; name="{name}"{more}'


def forms() -> Iterator[Case]:
    """Forms that are none, and forms without an image."""
    image = sound_png()
    option = (named("top_k", ""), b"1")
    whole = multipart((named("data"), image))
    kind = "multipart/form-data"
    bounded = {"Content-Type": f"{kind}; boundary=x"}
    for name, expected, body in (
        ("of no parts", EMPTY, multipart()),
        ("of an empty part", EMPTY, multipart((named("data"), b""))),
        ("of an empty field", EMPTY, multipart((named("data", ""), b""))),
        ("of options alone", EMPTY, multipart(option)),
        ("without data", INVALID_OPTION, multipart((named("image"), image))),
        ("of an option twice", INVALID_OPTION, multipart((named("data"), image), option, option)),
        ("of a name of no text", INVALID_OPTION, multipart((named("\udc80"), image))),
        ("with a part `body`", OK, multipart((named("body"), image))),
        ("of a file elsewhere", OK, multipart((named("data", '; filename="../../x"'), image))),
        ("cut in two", EMPTY, whole[: len(whole) // 2]),
        ("that is an image", EMPTY, image),
    ):
        yield Case(f"form {name}", expected, body, bounded)
    for name, head in {"name": named(""), "disposition": "X-Y: z"}.items():
        body = multipart((head, image))
        yield Case(f"form of no {name}", UNDECODABLE, body, bounded, frontend=True)
    unbounded, other, long = {"Content-Type": kind}, f"{kind}; boundary=y", "y" * 10_000
    yield Case("form of no boundary", UNSUPPORTED, whole, unbounded)
    yield Case("form of another boundary", EMPTY, whole, {"Content-Type": other})
    yield Case(
        "form of a long boundary",
        INVALID_HTTP,
        whole,
        {"Content-Type": other + long},
        frontend=True,
    )
    urlencoded = {"Content-Type": "application/x-www-form-urlencoded"}
    yield Case("field of no image", UNSUPPORTED, b"data=eA%3D%3D", urlencoded)
    yield Case("image as a field", UNDECODABLE, image, urlencoded, frontend=True)
    yield Case("field of a broken escape", UNDECODABLE, b"data=%zz", urlencoded, frontend=True)


def headers() -> Iterator[Case]:
    """Good pixels under bad headers."""
    image = sound_png()
    yield Case("nothing", EMPTY, b"", {"Content-Type": "image/png"})
    for name, value in {
        "TTA": "x" * 4000,
        "Top-K": "-1",
        "Threshold": "1e999",
        "Colour": "red",
        "": "1",
        "Farbe": "rosé",
    }.items():
        given = {f"X-Classify-{name}": value}
        yield Case(f"header {name}: {value[:9]}", INVALID_OPTION, image, RAW | given)
    yield Case("image as JSON", INVALID_JSON, image, JSON)
    yield Case("image as text", OK, image, {"Content-Type": "text/plain; charset=utf-8"})
    yield Case("image of no type", OK, image, {"Content-Type": ""})
    long = RAW | {"X-Long": "x" * 100_000}
    yield Case("header of 100000 letters", INVALID_HTTP, image, long, frontend=True)


def jsons() -> Iterator[Case]:
    """Bodies that are no JSON, or no such JSON."""
    text = base64.b64encode(sound_png()).decode()
    for name, body in {
        "nothing": b"",
        "an option of half a character": b'{"data": "eA==", "\\ud800": 1}',
        "a value of half a character": b'{"data": "eA==", "tta": "\\ud800"}',
        "no number": b'{"data": "eA==", "threshold": NaN}',
        "half": b'{"data": "eA==',
        "of 100000 levels": b"[" * 100_000,
        "of a million members": b'{"data": [' + b"{}," * 1_000_000 + b"{}]}",
        "of bytes that are no text": b'{"data": "\xff"}',
        "of a number of 5000 digits": b'{"data": "eA==", "top_k": ' + b"9" * 5000 + b"}",
        "a list": b'["eA=="]',
        "a number": b"7",
    }.items():
        yield Case(f"JSON: {name}", INVALID_JSON, body, JSON)
    for name, member, expected in (
        ("null", None, EMPTY),
        ("an empty list", [], EMPTY),
        ("an object", {"b64": text}, (400, "invalid_data")),
        ("no base64", "&&&&", (400, "invalid_base64")),
        ("base64 cut", text[:-3], (400, "invalid_base64")),
        ("an address", "http://127.0.0.1:8081/models", (400, "invalid_base64")),
        ("an empty string", "", (400, "empty_image")),
        ("a data URI of nothing", "data:image/png;base64,", (400, "empty_image")),
        ("33 images", ["eA=="] * 33, (413, "too_many_images")),
    ):
        yield Case(f"JSON: {name}", expected, json.dumps({"data": member}).encode(), JSON)
    options: dict[str, dict[str, Any]] = {
        "an option of 7000000 letters": {"x" * 7_000_000: 1},
        "an option in a list": {"top_k": [1]},
        "a number of 4000 digits": {"top_k": 10**3999},
    }
    for name, given in options.items():
        body = json.dumps({"data": text} | given).encode()
        yield Case(f"JSON: {name}", INVALID_OPTION, body, JSON)
    nested = b'{"data": ' + b"[" * 900 + b"]" * 900 + b"}"
    yield Case("JSON: of 900 levels", (207, ""), nested, JSON)


CASES = [
    case
    for group in (truncations, bombs, lies, answerable, heifs, others, forms, headers, jsons)
    for case in group()
]
