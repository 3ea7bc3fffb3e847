"""Pixels equal to torchvision's."""

import io
import itertools
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngImageFile
from torchvision import models as tv
from torchvision.transforms import functional

from tests.corpus import png, tiff
from tests.helpers import TURNS, encode
from visionserve import preprocessing, tta
from visionserve.errors import RequestError
from visionserve.metadata import Transforms
from visionserve.models import MODELS
from visionserve_tools import photos

PHOTOGRAPHS = photos.packaged()
NOISE = np.random.default_rng(0).integers(0, 256, (900, 1400, 3), dtype=np.uint8)


def decode(data: bytes) -> Image.Image:
    return preprocessing.to_rgb(Image.open(io.BytesIO(data)))


def gradient(mode: str = "RGB", size: tuple[int, int] = (64, 48)) -> Image.Image:
    rows, columns = np.mgrid[0 : size[1], 0 : size[0]]
    planes = [rows * 5 % 256, columns * 4 % 256, (rows + columns) * 2 % 256]
    return Image.fromarray(np.stack(planes, -1).astype(np.uint8)).convert(mode)


@pytest.mark.parametrize(
    ("name", "weights", "photographs"),
    [
        ("resnet18", tv.ResNet18_Weights.IMAGENET1K_V1, PHOTOGRAPHS),
        ("resnet34", tv.ResNet34_Weights.IMAGENET1K_V1, PHOTOGRAPHS[:1]),
        ("resnet50", tv.ResNet50_Weights.IMAGENET1K_V2, PHOTOGRAPHS[::3]),
        ("efficientnet_b0", tv.EfficientNet_B0_Weights.IMAGENET1K_V1, PHOTOGRAPHS[1::3]),
    ],
)
def test_equals_the_weights_own_transforms(
    name: str, weights: tv.WeightsEnum, photographs: list[Path]
) -> None:
    transforms = MODELS[name].transforms
    mean, std = (torch.tensor(of).view(3, 1, 1) for of in (transforms.mean, transforms.std))
    for photograph in photographs:
        image = preprocessing.to_rgb(Image.open(photograph))
        pixels = preprocessing.resize(image, transforms)
        (crop,) = tta.views(pixels, "none", transforms.crop)
        ours = (torch.from_numpy(crop).permute(2, 0, 1).float() / 255 - mean) / std
        theirs = weights.transforms()(Image.open(photograph).convert("RGB"))
        assert (ours - theirs).abs().max() == 0, photograph


@pytest.mark.parametrize("size", [(1, 1), (3, 100), (224, 224), (256, 256), (257, 255), (640, 31)])
def test_odd_sizes_equal_torchvisions_resize(size: tuple[int, int]) -> None:
    image = gradient(size=size)
    theirs = np.asarray(functional.resize(image, [256]))
    assert np.array_equal(preprocessing.resize(image, Transforms()), theirs)


@pytest.mark.parametrize(
    ("how", "has_resizer", "levels"), [("exact", True, 0), ("fast", True, 2), ("fast", False, 0)]
)
@pytest.mark.parametrize("channels", ["rgb", "grey"])
@pytest.mark.parametrize("resize", [256, (256, 256), (224, 320)])
@pytest.mark.parametrize("size", [(640, 480), (90, 400), (3, 30)])
def test_squashed_and_grey_views_equal_torchvisions(
    size: tuple[int, int],
    resize: Any,
    channels: Any,
    how: Any,
    has_resizer: bool,
    levels: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preprocessing, "HAS_RESIZER", has_resizer)
    transforms = Transforms(resize=resize, channels=channels)
    image = Image.fromarray(NOISE[: size[1], : size[0]])
    theirs = functional.to_grayscale(image, 3) if channels == "grey" else image
    resized = functional.resize(theirs, [resize] if isinstance(resize, int) else list(resize))
    *corners, centre = functional.five_crop(resized, [224])
    expected = np.stack([np.asarray(crop) for crop in (centre, *corners)])
    found = preprocessing.to_views(image, transforms, how, "five_crop").stacked()
    assert np.abs(found.astype(int) - expected).max() <= levels


def test_a_large_jpeg_that_is_squashed_is_decoded_at_twice_the_size_at_least() -> None:
    image = Image.open(io.BytesIO(encode(Image.new("RGB", (4096, 1024)), "JPEG")))
    preprocessing.shrink_on_load(image, Transforms(resize=(128, 512), crop=128))
    assert image.size == (1024, 256)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_png_modes_become_rgb(mode: str) -> None:
    source = gradient("L" if mode == "I;16" else mode)
    if mode == "I;16":
        wide = np.asarray(source).astype(np.uint16) * 257
        decoded = decode(encode(Image.fromarray(wide)))
        assert np.array_equal(np.asarray(decoded), np.asarray(source.convert("RGB")))
        return
    decoded = decode(encode(source))
    assert decoded.mode == "RGB"
    assert np.array_equal(np.asarray(decoded), np.asarray(source.convert("RGB")))


def test_cmyk_becomes_rgb() -> None:
    decoded = np.asarray(decode(encode(gradient("CMYK"), "JPEG", quality=100))).astype(int)
    assert np.abs(decoded - np.asarray(gradient()).astype(int)).mean() < 4


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_lies_on_white(mode: str) -> None:
    image = Image.new(mode, (8, 8), (0, 0, 0, 0)[: len(mode) if mode == "RGBA" else 2])
    assert decode(encode(image)).getpixel((3, 3)) == (255, 255, 255)


def test_half_transparency_is_blended() -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 128))
    assert decode(encode(image)).getpixel((3, 3)) == (127, 127, 127)


def test_a_palette_with_a_transparent_colour_lies_on_white() -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30] + [0] * 765)
    assert decode(encode(image, transparency=0)).getpixel((3, 3)) == (255, 255, 255)
    assert decode(encode(image)).getpixel((3, 3)) == (10, 20, 30)


def test_the_first_frame_of_an_animation_is_read() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for format in ("GIF", "WEBP", "PNG", "TIFF"):
        data = encode(frames[0], format, save_all=True, append_images=frames[1:])
        red, green, blue = np.asarray(decode(data))[3, 3]
        assert red > 200 and green < 50 and blue < 50, format


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(orientation: int) -> None:
    upright = gradient()
    stored = upright.transpose(TURNS[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(np.asarray(decode(encode(stored, exif=exif))), np.asarray(upright))
    # At half the size, both sides have 513 pixels.
    data = encode(Image.new("RGB", (1026, 1025)), "JPEG", exif=exif)
    image, expected = (Image.open(io.BytesIO(data)) for _ in range(2))
    preprocessing.shrink_on_load(image, Transforms())
    found = preprocessing.upright(image, (1026, 1025))
    assert found.rgb.size == (513, 513) and found.orientation == orientation
    assert found.size == ImageOps.exif_transpose(expected).size


def test_a_decoder_without_memory_blames_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(image: Image.Image) -> None:
        raise OSError("out of memory error when reading image file")

    data = encode(gradient(), "PNG")
    monkeypatch.setattr(PngImageFile, "load", load)
    with pytest.raises(MemoryError):
        decode(data)


def test_truncated_and_corrupt_images_are_a_422() -> None:
    data = encode(gradient(size=(200, 200)), "JPEG")
    for bad, code in ((data[: len(data) // 2], "truncated_image"), (_scrambled(), "corrupt_image")):
        with pytest.raises(RequestError) as caught:
            decode(bad)
        assert (caught.value.status, caught.value.code) == (422, code)


def _scrambled() -> bytes:
    """A PNG with a wrong byte amid its pixels."""
    data = bytearray(encode(Image.effect_noise((200, 200), 50)))
    data[len(data) // 2] ^= 0xFF
    return bytes(data)


SIZES = (
    *((300, 400), (301, 457), (481, 640), (340, 700), (58, 139)),
    *((204, 93), (21, 9), (1, 1), (3, 30)),
)
# The longest ones become pictures of 5,000 columns or rows.
ELONGATED = [((3, 60), 256), ((450, 19), 224), ((900, 19), (256, 320))]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("size", "resize"),
    [*itertools.product(SIZES, (256, 224, 232, (224, 224), (256, 320))), *ELONGATED],
)
def test_the_fast_resize_differs_by_rounding(
    size: tuple[int, int], resize: Any, interpolation: Any
) -> None:
    transforms = Transforms(interpolation=interpolation, resize=resize)
    image = Image.fromarray(NOISE[: size[1], : size[0]])
    exact = preprocessing.resize(image, transforms)
    whole = preprocessing.resize_fast(image, transforms)
    assert np.abs(whole.astype(int) - exact).max() <= 2
    (crop,) = tta.views(exact, "none", 224)
    centre = preprocessing.resize_fast(image, transforms, centre=True)
    assert np.abs(centre.astype(int) - crop).max() <= 2


def grey(value: bytes, bits: int, format: int = 1, white_is_zero: bool = False) -> bytes:
    """A TIFF of 8x8 pixels, `value` being two of them."""
    pixels = value * 32
    tags = {256: 8, 257: 8, 258: bits, 259: 1, 262: int(not white_is_zero), 277: 1, 339: format}
    return tiff({**tags, 273: 8, 278: 8, 279: len(pixels)}, pixels)


def deep_png(kind: bytes, value: bytes) -> bytes:
    """A PNG of 8x8 pixels; `kind` is its bit depth and colour type, `value` a row's bytes."""
    return png((8, 8), zlib.compress((b"\0" + value) * 8), kind=kind)


COLOUR = (64, 128, 192)
PIXELS: dict[str, tuple[bytes, tuple[int, int, int] | None]] = {
    "TIFF grey 8": (grey(b"\x40" * 2, 8), (64, 64, 64)),
    "TIFF grey 8, white is zero": (grey(b"\x40" * 2, 8, white_is_zero=True), (191, 191, 191)),
    "TIFF grey 12": (grey(b"\x40\x04\x00", 12), (64, 64, 64)),
    "TIFF grey 16": (grey(b"\x40\x40" * 2, 16), (64, 64, 64)),
    "TIFF grey 16, white is zero": (grey(b"\x40\x40" * 2, 16, white_is_zero=True), (191,) * 3),
    "TIFF grey 16 signed": (grey(b"\x40\x40" * 2, 16, 2), None),
    "TIFF grey 32": (grey(struct.pack("<II", 64, 64), 32), None),
    "TIFF grey 32 signed": (grey(struct.pack("<ii", 64, 64), 32, 2), None),
    "TIFF float": (grey(struct.pack("<ff", 0.25, 0.25), 32, 3), None),
    "PNG grey 2": (deep_png(b"\x02\0", b"\x55\x55"), (85, 85, 85)),
    "PNG grey 4": (deep_png(b"\x04\0", b"\x44" * 4), (68, 68, 68)),
    "PNG grey 16": (deep_png(b"\x10\0", b"\x40\x40" * 8), (64, 64, 64)),
    "PNG RGB 16": (deep_png(b"\x10\x02", b"\x40\x40\x80\x80\xc0\xc0" * 8), COLOUR),
    "PNG grey and alpha 16": (deep_png(b"\x10\x04", b"\x40\x40\xff\xff" * 8), (64, 64, 64)),
    **{
        f"{format} {mode}": (encode(Image.new("RGB", (8, 8), COLOUR).convert(mode), format), mean)
        for formats, mode, mean in (
            (("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"), "RGB", COLOUR),
            (("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"), "L", (116,) * 3),
            (("PNG", "WEBP", "TIFF", "GIF"), "RGBA", COLOUR),
            (("PNG", "TIFF"), "LA", (116,) * 3),
            (("JPEG", "TIFF"), "CMYK", COLOUR),
            (("TIFF",), "YCbCr", COLOUR),
        )
        for format in formats
    },
}


@pytest.mark.parametrize("name", PIXELS)
def test_pixels_have_their_mean_colour_or_are_refused(name: str) -> None:
    data, expected = PIXELS[name]
    try:
        found = np.asarray(decode(data)).mean(axis=(0, 1))
    except RequestError as error:
        assert expected is None and (error.status, error.code) == (415, "unsupported_pixels")
    else:
        assert expected is not None and np.abs(found - expected).max() <= 3


def test_a_large_jpeg_is_decoded_small_and_stays_close() -> None:
    large = Image.open(PHOTOGRAPHS[0]).convert("RGB").resize((2048, 2048), Image.Resampling.BICUBIC)
    fast = Image.open(io.BytesIO(encode(large, "JPEG", quality=95)))
    transforms = Transforms(resize=128, crop=112)
    preprocessing.shrink_on_load(fast, transforms)
    shrunk = preprocessing.to_rgb(fast)
    assert shrunk.size == (256, 256)
    ours = preprocessing.resize(shrunk, transforms).astype(int)
    exact = preprocessing.resize(large, transforms).astype(int)
    assert np.abs(ours - exact).mean() < 3
