"""What Pillow would misread, against the samples that the files were written from."""

import io
import itertools
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pillow_heif
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from tests.corpus import bmp, chunk, encode, png, sound_png, tiff, zeros
from tests.helpers import TURNS
from visionserve.answer import Explanation
from visionserve.drawing import overlay
from visionserve.errors import RequestError
from visionserve.formats import Format
from visionserve.formats.heif_tiles import TiledImage
from visionserve.metadata import Transforms
from visionserve.preprocessing import shrink_on_load, to_rgb, upright
from visionserve.validation import memory, validate
from visionserve_tools import photos

CAT = Image.open(photos.greeting()).convert("RGB")
SMALL = np.asarray(CAT.resize((23, 19)))
Pixels = NDArray[Any]
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))


def decoded(data: bytes, formats: tuple[Format, ...] | None = None) -> Pixels:
    limits = (10_000_000, 24_000_000, 50_000_000)
    image = validate(data, *limits, formats) if formats else validate(data, *limits)
    return np.asarray(to_rgb(image))


def refusal(data: bytes) -> tuple[int, str, str]:
    with pytest.raises(RequestError) as caught:
        decoded(data)
    return caught.value.status, caught.value.code, caught.value.message


def rows(samples: Pixels, depth: int) -> bytes:
    """Rows of a PNG, without a filter."""
    flat = samples.reshape(len(samples), -1)
    if depth == 16:
        packed = flat.astype(">u2").view(np.uint8)
    else:
        bits = (flat[..., None] >> np.arange(depth - 1, -1, -1)) & 1
        packed = np.packbits(bits.reshape(len(flat), -1).astype(np.uint8), axis=1)
    return b"".join(b"\0" + row.tobytes() for row in packed)


def written(samples: Pixels, depth: int, kind: int, *before: bytes, interlaced: bool) -> bytes:
    """A PNG of samples of shape (height, width, samples of a pixel)."""
    passes = [*ADAM7, (0, 1, 1, 2)] if interlaced else [(0, 0, 1, 1)]
    parts = [samples[top::down, left::right] for left, top, right, down in passes]
    body = zlib.compress(b"".join(rows(part, depth) for part in parts if part.size))
    size = samples.shape[1::-1]
    data = png(size, body, *before, kind=bytes([depth, kind]))
    header = struct.pack(">II", *size) + bytes([depth, kind, 0, 0, interlaced])
    return data[:8] + chunk(b"IHDR", header) + data[33:]


def to_eight(samples: Pixels, bits: int) -> Pixels:
    scaled = samples >> (bits - 8) if bits > 8 else samples * (255 // (2**bits - 1))
    return np.broadcast_to(scaled, (*samples.shape[:2], 3)).astype(np.uint8)


def transparent_pngs() -> Iterator[tuple[str, bytes, Pixels]]:
    """PNGs with one transparent sample or colour, and what they look like on white."""
    random = np.random.default_rng(0)
    for kind, count in ((0, 1), (2, 3)):
        for depth in (1, 2, 4, 8, 16) if kind == 0 else (8, 16):
            levels = random.integers(0, 2**depth, 4)
            samples = levels[random.integers(0, 4, (19, 23, count))].astype(np.uint16)
            key = samples[3, 3]
            # At 16 bits, another colour has the same high bytes.
            samples[5] = key ^ (1 if depth == 16 else 0)
            for above in {0, 2**depth % 2**16}:
                told = chunk(
                    b"tRNS", b"".join(struct.pack(">H", int(part) + above) for part in key)
                )
                expected = to_eight(samples, depth).copy()
                expected[(samples == key).all(axis=-1)] = 255
                for interlaced in (False, True):
                    name = f"type {kind} of {depth} bits, {interlaced=}, {above} above"
                    yield name, written(samples, depth, kind, told, interlaced=interlaced), expected


def recorded_pngs() -> Iterator[tuple[str, bytes, Pixels]]:
    """PNGs of 16 bits whose samples have fewer, at the low end or, as they should, spread."""
    wide = SMALL.astype(np.uint16) << 4 | SMALL.astype(np.uint16) >> 4
    alpha = np.full((*SMALL.shape[:2], 1), 4095, np.uint16)
    for kind, samples in {0: wide[..., :1], 2: wide}.items():
        colours = samples.shape[-1]
        told = chunk(b"sBIT", b"\x0c" * colours)
        yield f"{kind}", written(samples, 16, kind, told, interlaced=False), to_eight(samples, 12)
        spread = samples << 4 | samples >> 8
        yield (
            f"{kind}, spread",
            written(spread, 16, kind, told, interlaced=False),
            to_eight(samples, 12),
        )
        yield f"{kind}, untold", written(samples, 16, kind, interlaced=True), to_eight(samples, 16)
        if kind == 2:  # fewer bits of green than of the others
            mixed = samples >> np.array([0, 2, 0], np.uint16)
            told = chunk(b"sBIT", b"\x0c\x0a\x0c")
            yield "mixed", written(mixed, 16, 2, told, interlaced=False), to_eight(samples, 12)
        with_alpha = np.concatenate([samples, alpha], axis=-1)
        told = chunk(b"sBIT", b"\x0c" * (colours + 1))
        yield (
            f"{kind} and alpha",
            written(with_alpha, 16, kind + 4, told, interlaced=False),
            to_eight(samples, 12),
        )


@pytest.mark.parametrize("cases", [transparent_pngs, recorded_pngs])
def test_the_samples_of_a_png_are_what_it_says(cases: Any) -> None:
    wrong = {
        name: np.abs(found.astype(int) - expected).max()
        for name, data, expected in cases()
        if not np.array_equal(found := decoded(data), expected)
    }
    assert wrong == {}


def test_only_what_makes_the_picture_counts_in_a_png() -> None:
    plain = decoded(sound_png())
    large = zeros(50_000_000)
    wrong = bytearray(chunk(b"gAMA", struct.pack(">I", 45_455)))
    wrong[-1] ^= 1
    for chunks in (
        [chunk(b"iCCP", b"a\0\0" + large)],
        [chunk(b"zTXt", b"a\0\0" + large)],
        [chunk(b"zTXt", b"Raw profile type exif\0\0" + large)],
        [chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + large)],
        [chunk(b"tEXt", b"transparency\0" + b"x")],
        [chunk(b"tEXt", b"interlace\0" + b"x")],
        [bytes(wrong)],
        [chunk(b"tRNS", b"\0")],
        [chunk(b"tRNS", bytes(6))[:-1] + b"x"],
        [chunk(b"gAMA", b"")],
        [chunk(b"cHRM", b"")],
        [chunk(b"pHYs", b"")],
        [chunk(b"sRGB", b"")],
        [chunk(b"acTL", b""), chunk(b"fcTL", bytes(26))],
        [chunk(b"eXIf", bytes(2_000_000))],
        [chunk(b"sBIT", b"\0\0\0")],
    ):
        assert np.array_equal(decoded(sound_png(*chunks)), plain), chunks[0][4:40]
    palette = CAT.quantize(7)
    colours = chunk(b"PLTE", bytes(palette.getpalette() or ())[:21])
    rows_ = zlib.compress(rows(np.asarray(palette), 8))
    opaque = decoded(png(CAT.size, rows_, colours, kind=b"\x08\x03"))
    for told in ([colours, chunk(b"tRNS", bytes(8))], [chunk(b"tRNS", bytes(2)), colours]):
        assert np.array_equal(decoded(png(CAT.size, rows_, *told, kind=b"\x08\x03")), opaque)
    with pytest.raises(RequestError) as caught:
        decoded(png(CAT.size, rows_, kind=b"\x08\x03"))
    assert caught.value.code == "corrupt_image"
    late = sound_png().replace(b"\0\0\0\0IEND", chunk(b"tRNS", bytes(6)) + b"\0\0\0\0IEND")
    assert np.array_equal(decoded(late), plain)


def test_an_apples_png_is_named() -> None:
    data = sound_png()
    status, code, message = refusal(data[:8] + chunk(b"CgBI", bytes(4)) + data[8:])
    assert (status, code) == (415, "unsupported_format") and "Apple" in message


def tiffs() -> Iterator[tuple[str, Pixels, dict[str, Any]]]:
    """Samples and how tifffile writes them."""
    grey, colour = SMALL[..., 0], SMALL
    planes = np.moveaxis(colour, -1, 0).copy()
    for order in ("<", ">"):
        for bits, kind in ((8, np.uint8), (16, np.uint16)):
            factor = 257 if bits == 16 else 1
            for tile in (None, (16, 16)):
                for compression in (None, "zlib"):
                    how = {"byteorder": order, "tile": tile, "compression": compression}
                    label = f"{order} {bits} {tile} {compression}"
                    for planar in ("contig", "separate"):
                        pixels = (planes if planar == "separate" else colour).astype(kind) * factor
                        yield (
                            f"RGB {planar} {label}",
                            pixels,
                            {"photometric": "rgb", "planarconfig": planar, **how},
                        )
                    for shown in ("minisblack", "miniswhite"):
                        yield (
                            f"{shown} {label}",
                            grey.astype(kind) * factor,
                            {"photometric": shown, **how},
                        )
    for other in (np.int8, np.int16, np.int32, np.uint32, np.float32, np.float64, np.float16):
        for pixels, photometric in ((grey, "minisblack"), (colour, "rgb")):
            yield (
                f"{other.__name__} {photometric}",
                pixels.astype(other),
                {"photometric": photometric},
            )


def test_a_tiff_is_read_as_tifffile_reads_it_or_refused() -> None:
    faults, refused = [], 0
    for name, pixels, how in tiffs():
        file = io.BytesIO()
        try:
            tifffile.imwrite(file, pixels, **how)
        except (ValueError, ImportError, KeyError) as error:
            pytest.fail(f"{name}: {error}")
        theirs = tifffile.imread(io.BytesIO(file.getvalue()))
        if how.get("planarconfig") == "separate":
            theirs = np.moveaxis(theirs, 0, -1)
        if theirs.dtype == np.uint16:
            theirs = theirs >> 8
        expected = theirs if theirs.ndim == 3 else np.stack([theirs] * 3, -1)
        if how["photometric"] == "miniswhite":
            expected = 255 - expected
        try:
            ours = decoded(file.getvalue())
        except RequestError as error:
            refused += 1
            if (error.status, error.code) != (415, "unsupported_pixels"):
                faults.append((name, error.code))
        else:
            if pixels.dtype not in (np.uint8, np.uint16) or not np.array_equal(ours, expected):
                faults.append((name, np.abs(ours.astype(int) - expected).max()))
    assert faults == [] and refused == 14 + 4


def test_planes_of_alpha_and_inks_are_read_as_pixels_of_them_are() -> None:
    four = np.random.default_rng(0).integers(0, 256, (19, 23, 4), dtype=np.uint8)
    alpha = four[..., 3:].astype(int)
    multiplied = four.copy()
    multiplied[..., :3] = (four[..., :3] * alpha + 127) // 255
    on_white = (four[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
    inks = np.asarray(Image.fromarray(four, "CMYK").convert("RGB"))
    for name, pixels, how, expected in (
        ("alpha", four, {"photometric": "rgb", "extrasamples": ["unassalpha"]}, on_white),
        (
            "multiplied",
            multiplied,
            {"photometric": "rgb", "extrasamples": ["assocalpha"]},
            on_white,
        ),
        ("inks", four, {"photometric": "separated"}, inks),
    ):
        for bits, compression in itertools.product((8, 16), (None, "zlib")):
            for planar in ("contig", "separate"):
                file = io.BytesIO()
                wide = pixels.astype(np.uint16) * 257 if bits == 16 else pixels
                data = np.moveaxis(wide, -1, 0).copy() if planar == "separate" else wide
                tifffile.imwrite(file, data, planarconfig=planar, compression=compression, **how)
                difference = np.abs(decoded(file.getvalue()).astype(int) - expected).max()
                assert difference <= 3, (name, bits, compression, planar)


def test_grey_with_alpha_and_colour_maps_of_tiffs() -> None:
    """What libtiff does, and answers rightly or not at all; WebP is not compiled into Pillow's."""
    grey, alpha = SMALL[..., 0], np.random.default_rng(0).integers(0, 256, (19, 23), dtype=np.uint8)
    multiplied = ((grey.astype(int) * alpha + 127) // 255).astype(np.uint8)
    on_white = (grey.astype(int) * alpha + 255 * (255 - alpha.astype(int)) + 127) // 255
    for compression in (None, "zlib"):
        for kind, pixels in (("unassalpha", grey), ("assocalpha", multiplied)):
            how: dict[str, Any] = {
                "photometric": "minisblack",
                "extrasamples": [kind],
                "compression": compression,
            }
            both = np.stack([pixels, alpha])
            file, planes = io.BytesIO(), io.BytesIO()
            tifffile.imwrite(file, np.moveaxis(both, 0, -1).copy(), planarconfig="contig", **how)
            found = decoded(file.getvalue()).astype(int)
            assert np.abs(found - on_white[..., None]).max() <= 3, (compression, kind)
            tifffile.imwrite(planes, both, planarconfig="separate", **how)
            assert refusal(planes.getvalue())[:2] == (415, "unsupported_pixels"), compression
        five = np.stack([*np.moveaxis(SMALL, -1, 0), alpha, grey])
        more: dict[str, Any] = {
            "photometric": "rgb",
            "planarconfig": "separate",
            "compression": compression,
        }
        file = io.BytesIO()
        tifffile.imwrite(file, five, extrasamples=["unassalpha", "unspecified"], **more)
        if compression:
            assert refusal(file.getvalue())[:2] == (415, "unsupported_pixels")
        else:
            on_paper = (SMALL.astype(int) - 255) * (alpha[..., None] / 255) + 255
            assert np.abs(decoded(file.getvalue()) - on_paper).max() <= 1
    palette = CAT.resize((23, 19)).quantize(256)
    colours = np.array(palette.getpalette(), np.uint16).reshape(-1, 3).T
    colours = np.pad(colours, ((0, 0), (0, 256 - colours.shape[1])))
    for factor in (1, 257):  # Old programs wrote 8 bits of each colour.
        file = io.BytesIO()
        mapped: dict[str, Any] = {"photometric": "palette", "colormap": colours * factor}
        tifffile.imwrite(file, np.asarray(palette), **mapped)
        assert np.array_equal(decoded(file.getvalue()), np.asarray(palette.convert("RGB"))), factor
    webp = {256: 4, 257: 4, 258: 8, 259: 50_001, 262: 1, 273: 8, 277: 1, 279: 16}
    status, code, message = refusal(tiff(webp, bytes(16)))
    assert (status, code) == (415, "unsupported_pixels") and "50001" in message


def test_what_a_gif_leaves_free_of_its_screen_is_white() -> None:
    """As browsers show it: neither the colour that it names for that, nor its first one."""
    small = CAT.resize((20, 10)).quantize(16)
    data = encode(small, "GIF")
    place = data.index(b"\x2c\0\0\0\0")
    head = data[:6] + struct.pack("<HH", 30, 24) + data[10:11] + b"\3" + data[12:place]
    offset = head + b"\x2c" + struct.pack("<HH", 7, 5) + data[place + 5 :]
    expected = np.full((24, 30, 3), 255, np.uint8)
    expected[5:15, 7:27] = np.asarray(small.convert("RGB"))
    assert np.array_equal(decoded(offset), expected)
    clear = encode(small, "GIF", transparency=int(np.asarray(small)[4, 4]))
    place = clear.index(b"\x2c\0\0\0\0")
    head = clear[:6] + struct.pack("<HH", 30, 24) + clear[10:place]
    expected[5:15, 7:27][np.asarray(small) == np.asarray(small)[4, 4]] = 255
    found = decoded(head + b"\x2c" + struct.pack("<HH", 7, 5) + clear[place + 5 :])
    assert np.array_equal(found, expected)


def deflated(pages: list[dict[str, Any]], **options: Any) -> bytes:
    """A TIFF of pages, each `data` and how tifffile writes it."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file, **options) as writer:
        for page in pages:
            writer.write(photometric="rgb", metadata=None, **page)
    return file.getvalue()


def test_a_thumbnail_is_not_what_a_tiff_shows() -> None:
    """Whether the file says so or not, before its picture or around it, in a BigTIFF or not."""
    full = np.asarray(CAT)
    small, other = (np.asarray(image.resize((90, 60))) for image in (CAT, CAT.rotate(180)))
    thumbnail: dict[str, Any] = {"data": small, "subfiletype": 1}
    cases: list[tuple[str, list[dict[str, Any]], Pixels]] = [
        ("told", [thumbnail, {"data": full}], full),
        ("in another shape, told", [{**thumbnail, "data": small[:40]}, {"data": full}], full),
        ("untold", [{"data": small}, {"data": full}], full),
        ("of two pages", [{"data": small}, {"data": other}, {"data": full}], full),
        ("around", [{**thumbnail, "subifds": 1}, {"data": full}], full),
        ("after", [{"data": full}, thumbnail], full),
        ("alone", [thumbnail], small),
        ("another picture", [{"data": other}, {"data": full}], other),
        ("of other sides", [{"data": small[:40]}, {"data": full}], small[:40]),
        (
            "numbered pages",
            [{"data": small, "subfiletype": 2}, {"data": full, "subfiletype": 2}],
            small,
        ),
    ]
    choices: list[dict[str, Any]] = [{}, {"byteorder": ">"}, {"bigtiff": True}]
    for name, pages, expected in cases:
        for options in choices:
            assert np.array_equal(decoded(deflated(pages, **options)), expected), (name, options)


def test_a_tiff_of_few_bits_is_scaled_by_what_it_says() -> None:
    wide = SMALL.astype(np.uint16) << 4
    expected = {2**12 - 1: SMALL, 2**16 - 1: SMALL >> 4, 3000: SMALL >> 4}
    for pixels, photometric in ((wide, "rgb"), (wide[..., 0], "minisblack")):
        for order in ("<", ">"):
            for compression in (None, "zlib"):
                for most, right in expected.items():
                    file = io.BytesIO()
                    count = 3 if photometric == "rgb" else 1
                    tifffile.imwrite(
                        file,
                        pixels,
                        photometric=photometric,
                        compression=compression,
                        byteorder=order,
                        extratags=[(281, "H", count, (most,) * count, True)],
                    )
                    right = np.stack([right[..., 0]] * 3, -1) if count == 1 else right
                    assert np.array_equal(decoded(file.getvalue()), right), (photometric, order)
    file = io.BytesIO()
    tags: dict[str, Any] = {
        "photometric": "rgb",
        "planarconfig": "separate",
        "extratags": [(281, "H", 3, (2**12 - 1,) * 3, True)],
    }
    tifffile.imwrite(file, np.moveaxis(wide, -1, 0), **tags)
    assert refusal(file.getvalue())[:2] == (415, "unsupported_pixels")


def test_subsampled_colours_without_compression_are_not_read_as_whole_ones() -> None:
    """A block of 2 x 2 luma, then Cb and Cr (TIFF 6.0, section 21)."""
    blocks = bytes([100, 100, 100, 100, 90, 160]) * 4
    tags: dict[int, int | list[int]] = {256: 4, 257: 4, 258: [8, 8, 8], 259: 1, 262: 6, 277: 3}
    tags |= {273: 8, 278: 4, 279: len(blocks), 530: [2, 2]}
    found = decoded(tiff(tags, blocks))
    red, green, blue = 100 + 1.402 * 32, 100 + 0.344 * 38 - 0.714 * 32, 100 - 1.772 * 38
    assert np.abs(found - np.array([red, green, blue])).max() <= 3


def v5(pixels: bytes, masks: tuple[int, ...], bits: int = 32, header: int = 124) -> bytes:
    """A BMP of 4 x 2 pixels with bit fields."""
    fields = struct.pack("<IiiHHIIiiII", header, 4, 2, 1, bits, 3, len(pixels), 0, 0, 0, 0)
    after = struct.pack(f"<{len(masks)}I", *masks)
    info = (fields + after).ljust(max(header, 40 + len(after)), b"\0")
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + len(info)) + info + pixels


def test_alpha_that_is_zero_everywhere_is_none_and_bit_fields_are_named() -> None:
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    for header in (56, 108, 124):
        bare, half = (struct.pack("<8I", *[alpha << 24 | 0x204060] * 8) for alpha in (0, 128))
        assert (decoded(v5(bare, masks, header=header)) == (0x20, 0x40, 0x60)).all()
        assert decoded(v5(half, masks, header=header))[0, 0].tolist() == [143, 159, 175]
    deep = v5(bytes(32), (0x3FF00000, 0xFFC00, 0x3FF))
    four = v5(bytes(16), (0xF00, 0xF0, 0xF), bits=16)
    inner = [bmp((8, 8), bits=0)[:30] + bytes([kind]) + bytes(99) for kind in (4, 5)]
    for data, words in (
        (deep, "fields of 10, 10, 10 bits"),
        (four, "fields of 4, 4, 4 bits"),
        (inner[0], "A JPEG within a BMP"),
        (inner[1], "A PNG within a BMP"),
        (bmp((8, 8), bits=64), "64 bits"),
    ):
        status, code, message = refusal(data)
        assert (status, code) == (415, "unsupported_pixels") and words in message


def test_a_bmp_of_os2_may_leave_fields_of_its_header_out() -> None:
    plain = encode(CAT, "BMP")
    for size in (12, *range(16, 64, 4), 64):
        fields = plain[18:54].ljust(60, b"\0")
        if size == 12:
            fields = struct.pack("<HHHH", *CAT.size, 1, 24)
        elif size in (52, 56):
            continue
        info = struct.pack("<I", size) + fields[: size - 4]
        file = plain[:10] + struct.pack("<I", 14 + size)
        assert np.array_equal(decoded(file + info + plain[54:]), np.asarray(CAT)), size
    runs = plain[:14] + struct.pack("<I", 64) + plain[18:30] + struct.pack("<I", 4) + bytes(99)
    assert refusal(runs)[:2] == (415, "unsupported_pixels")


def test_a_jpeg_gets_its_lines_after_its_first_scan_or_is_named() -> None:
    data = encode(CAT, "JPEG")
    frame = data.index(b"\xff\xc0") + 5
    lines = data[frame : frame + 2]
    late = data[:frame] + b"\0\0" + data[frame + 2 : -2] + b"\xff\xdc\0\4" + lines + data[-2:]
    assert np.array_equal(decoded(late), decoded(data))
    status, code, message = refusal(data.replace(b"\n", b"\r\n"))
    assert (status, code) == (422, "corrupt_image") and "send it as binary" in message
    for change, words in (
        ({-4: 0xC3}, "lossless"),
        ({-4: 0xC7}, "lossless"),
        ({-4: 0xC5}, "hierarchical"),
        ({-4: 0xCE}, "hierarchical"),
        ({-4: 0xF7}, "JPEG-LS"),
        ({-1: 12}, "12 bits"),
        ({4: 2}, "2 components"),
    ):
        changed = bytearray(data)
        for place, value in change.items():
            changed[frame + place] = value
        status, code, message = refusal(bytes(changed))
        assert (status, code) == (415, "unsupported_pixels") and words in message, words


def test_what_a_file_is_that_is_not_read() -> None:
    cfa = tiff({256: 4, 257: 4, 258: 8, 259: 1, 262: 32803, 273: 8, 277: 1, 279: 16}, bytes(16))
    nef = io.BytesIO()
    with tifffile.TiffWriter(nef) as writer:
        writer.write(SMALL, photometric="rgb", subfiletype=1, subifds=1, metadata=None)
        writer.write(SMALL[..., 0].astype(np.uint16), photometric="cfa", metadata=None)
    for raw in (
        cfa,
        nef.getvalue(),
        b"II*\0\x10\0\0\0CR\2\0" + bytes(99),
        b"IIU\0" + bytes(99),
        b"FUJIFILMCCD-RAW " + bytes(99),
        b"\0\0\0\x18ftypcrx " + bytes(99),
        b"IIRO" + bytes(99),
    ):
        status, code, message = refusal(raw)
        assert (status, code) == (415, "unsupported_format") and "export it as JPEG" in message, raw
    for data, words in (
        (b"\xff\x0a" + bytes(99), "JPEG XL"),
        (encode(CAT, "JPEG2000"), "JPEG 2000"),
        (b"8BPS" + bytes(99), "Photoshop"),
        (b"%PDF-1.7", "PDF"),
        (b"\0\0\0\x18ftypqt  " + bytes(99), "video"),
        (b"hello", "none of JPEG, PNG"),
    ):
        status, code, message = refusal(data)
        assert (status, code) == (415, "unsupported_format") and words in message
    odd = tiff({256: 4, 257: 4, 258: 8, 259: 34712, 262: 1, 273: 8, 277: 1, 279: 16}, bytes(16))
    status, code, message = refusal(odd)
    assert (status, code) == (415, "unsupported_pixels") and "compression 34712" in message


def test_formats_that_a_profile_leaves_out_are_not_read() -> None:
    with pytest.raises(RequestError) as caught:
        decoded(encode(CAT, "PNG"), ("JPEG",))
    assert caught.value.code == "unsupported_format"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIC"])
def test_a_picture_is_turned_once_and_says_how_it_lay(format: str) -> None:
    """By its EXIF data, or by `irot` and `imir`, which both encoders write; never by its XMP."""
    xmp = b'<x xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    small = CAT.resize((96, 64))
    for orientation, turn in {1: None, **TURNS}.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = small if turn is None else small.transpose(turn)
        told = exif.tobytes() if format in ("AVIF", "HEIC") else exif
        data = encode(stored, format, exif=told, quality=95)
        image = validate(data, 10_000_000, 24_000_000)
        photograph = upright(image, image.size)
        found = np.asarray(photograph.rgb).astype(int)
        assert found.shape == (64, 96, 3), orientation
        assert np.abs(found - np.asarray(small)).mean() < 6, orientation
        mine = 1 if format in ("TIFF", "AVIF", "HEIC") else orientation
        assert (photograph.size, photograph.orientation) == ((96, 64), mine)
    if format in ("JPEG", "WEBP", "AVIF"):
        assert decoded(encode(small, format, xmp=xmp)).shape == (64, 96, 3)
    if format == "PNG":
        text = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
        assert decoded(sound_png(text)).shape == (64, 96, 3)
    if format == "TIFF":
        tags = {256: 6, 257: 4, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 279: 24}
        whole = tiff(tags | {700: [int.from_bytes(b"    ")] * 4}, bytes(24))
        assert decoded(whole).shape == (4, 6, 3)


def test_an_avif_or_heic_is_read_as_its_own_decoder_reads_it() -> None:
    """Grids, several pictures, alpha, ten bits."""
    tolerance, cat = 6.0, CAT.resize((180, 120))
    turned, clear = cat.rotate(180), cat.convert("RGBA")
    clear.putalpha(0)
    deep = pillow_heif.from_bytes(
        "RGB;16", cat.size, (np.asarray(cat).astype(np.uint16) * 257).tobytes()
    )
    ten = io.BytesIO()
    deep.save(ten, quality=95)
    grey = pillow_heif.from_bytes(
        "I;16", cat.size, (np.asarray(cat.convert("L")).astype(np.uint16) * 257).tobytes()
    )
    deep_grey = io.BytesIO()
    grey.save(deep_grey, quality=95)
    both = pillow_heif.from_pillow(turned)
    both.add_from_pillow(cat)
    several = io.BytesIO()
    both.save(several, quality=95, primary_index=1)
    for name, data, expected in (
        ("grid", encode(cat, "HEIC", quality=95, tile_size=64), cat),
        ("ten bits", ten.getvalue(), cat),
        ("ten bits of grey", deep_grey.getvalue(), cat.convert("L").convert("RGB")),
        ("primary", several.getvalue(), cat),
        ("animated", encode(cat, "AVIF", quality=95, save_all=True, append_images=[turned]), cat),
        ("clear AVIF", encode(clear, "AVIF"), Image.new("RGB", cat.size, "white")),
        ("clear HEIC", encode(clear, "HEIC"), Image.new("RGB", cat.size, "white")),
    ):
        found = decoded(data).astype(int)
        assert np.abs(found - np.asarray(expected)).mean() < tolerance, name
    for format in ("AVIF", "HEIC"):
        with pytest.raises(RequestError) as caught:
            decoded(encode(cat, format), ("JPEG", "PNG"))
        assert (caught.value.status, caught.value.code) == (415, "unsupported_format")


def test_a_jpeg_of_over_the_limit_is_decoded_at_half_its_size() -> None:
    """The limits are a hundredth of the real ones: 240,000 pixels, and 500,000 of a JPEG.

    A progressive one may have as many as its coefficients let it.
    """
    limits, transforms = (10_000_000, 240_000, 500_000), Transforms(resize=64, crop=64)
    for subsampling, size in {"4:2:0": (806, 604), "4:4:4": (740, 550)}.items():
        for how in ({}, {"progressive": True}):
            data = encode(Image.new("RGB", size), "JPEG", subsampling=subsampling, **how)
            image = validate(data, *limits)
            shrink_on_load(image, transforms, "exact", limits[1])
            assert image.size == (size[0] // 2, size[1] // 2)
            assert memory(image) <= limits[1]
    large = encode(Image.new("RGB", (806, 604)), "JPEG", progressive=True, subsampling="4:4:4")
    with pytest.raises(RequestError) as caught:
        validate(large, *limits)
    assert caught.value.code == "too_many_pixels" and "411428" in caught.value.message
    narrow = validate(encode(Image.new("L", (2000, 200)), "JPEG"), *limits)
    with pytest.raises(RequestError) as caught:
        shrink_on_load(narrow, transforms, "exact", limits[1])
    assert caught.value.code == "too_many_pixels"
    whole = validate(encode(Image.new("L", (600, 400)), "JPEG"), *limits)
    shrink_on_load(whole, transforms, "exact", limits[1])
    assert whole.size == (600, 400)


def test_a_heic_in_tiles_of_over_the_limit_is_decoded_tile_by_tile() -> None:
    """As libheif decodes it whole. The limits are a thousandth of the real ones."""
    limits, transforms = (10_000_000, 24_000, 50_000), Transforms(resize=32, crop=32)
    cat, tiled = CAT.resize((240, 160)), {"tile_size": 64, "enc_params": {"preset": "ultrafast"}}
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for picture in (cat, cat.convert("L")) if orientation == 1 else (cat,):
            data = encode(picture, "HEIC", exif=exif.tobytes(), **tiled)
            whole = to_rgb(validate(data, *limits[:1], 24_000_000))
            image = validate(data, *limits)
            assert isinstance(image, TiledImage) and image.size == whole.size
            shrink_on_load(image, transforms, "exact", limits[1])
            assert memory(image) <= limits[1]
            found, expected = np.asarray(to_rgb(image)).astype(int), np.asarray(whole.reduce(2))
            assert found.shape == expected.shape, orientation
            assert np.abs(found - expected).mean() < 1, orientation
    place = data.index(b"\0\0\2\3" + struct.pack(">HH", 240, 160))
    for at, value in ((place + 2, 1), (place + 3, 9)):  # too few rows; more columns than tiles
        lying = bytearray(data)
        lying[at] = value
        with pytest.raises(RequestError) as caught:
            validate(bytes(lying), *limits)
        assert caught.value.code == "too_many_pixels"
    with pytest.raises(RequestError) as caught:
        validate(data[:-3000], *limits)
    assert caught.value.code == "corrupt_image"
    narrow = encode(CAT.resize((640, 64)), "HEIC", tile_size=64)
    with pytest.raises(RequestError) as caught:
        shrink_on_load(validate(narrow, *limits), Transforms(resize=64, crop=64), "exact", 24_000)
    assert caught.value.code == "too_many_pixels"


def test_the_picture_of_an_explanation_holds_nothing_of_the_clients() -> None:
    explained: Explanation = {
        "method": "",
        "grid": [[0, 1], [2, 3]],
        "box": [0, 0, *CAT.size],
        "orientation": 1,
    }
    told = {"icc_profile": b"profile", "comment": b"secret", "exif": b"Exif\0\0secret"}
    for data in (
        encode(CAT, "JPEG", **told),
        encode(CAT, "PNG", icc_profile=b"profile"),
        encode(CAT, "WEBP", icc_profile=b"profile", exif=b"Exif\0\0secret"),
    ):
        drawn = overlay(validate(data, 10_000_000, 24_000_000), explained)
        assert b"iCCP" not in drawn and b"secret" not in drawn and b"eXIf" not in drawn
