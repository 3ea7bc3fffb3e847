"""Pixels equal to torchvision's."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models as tv
from torchvision.transforms import functional

from scripts import photos
from tests.conftest import encode
from visionserve import preprocessing, tta
from visionserve.errors import RequestError
from visionserve.metadata import Transforms
from visionserve.models import MODELS

PHOTOGRAPHS = photos.packaged()


def decode(data: bytes) -> Image.Image:
    import io

    return preprocessing.to_rgb(Image.open(io.BytesIO(data)))


def gradient(mode: str = "RGB", size: tuple[int, int] = (64, 48)) -> Image.Image:
    rows, columns = np.mgrid[0 : size[1], 0 : size[0]]
    planes = [rows * 5 % 256, columns * 4 % 256, (rows + columns) * 2 % 256]
    return Image.fromarray(np.stack(planes, -1).astype(np.uint8)).convert(mode)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("resnet18", tv.ResNet18_Weights.IMAGENET1K_V1),
        ("resnet34", tv.ResNet34_Weights.IMAGENET1K_V1),
        ("resnet50", tv.ResNet50_Weights.IMAGENET1K_V2),
        ("efficientnet_b0", tv.EfficientNet_B0_Weights.IMAGENET1K_V1),
    ],
)
@pytest.mark.parametrize("photograph", PHOTOGRAPHS, ids=lambda path: path.stem)
def test_equals_the_weights_own_transforms(
    name: str, weights: tv.WeightsEnum, photograph: Path
) -> None:
    transforms = MODELS[name].transforms
    image = preprocessing.to_rgb(Image.open(photograph))
    pixels = preprocessing.resize(image, transforms)
    (crop,) = tta.views(pixels, "none", transforms.crop)
    scaled = torch.from_numpy(crop).permute(2, 0, 1).float() / 255
    ours = (scaled - torch.tensor(transforms.mean).view(3, 1, 1)) / torch.tensor(
        transforms.std
    ).view(3, 1, 1)
    theirs = weights.transforms()(Image.open(photograph).convert("RGB"))
    assert (ours - theirs).abs().max() == 0


@pytest.mark.parametrize("size", [(1, 1), (3, 100), (224, 224), (256, 256), (257, 255), (640, 31)])
def test_odd_sizes_equal_torchvisions_resize(size: tuple[int, int]) -> None:
    image = gradient(size=size)
    theirs = np.asarray(functional.resize(image, [256]))
    assert np.array_equal(preprocessing.resize(image, Transforms()), theirs)


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
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(turns[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(np.asarray(decode(encode(stored, exif=exif))), np.asarray(upright))


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


@pytest.mark.parametrize("photograph", PHOTOGRAPHS, ids=lambda path: path.stem)
def test_the_centre_alone_differs_by_rounding(photograph: Path) -> None:
    image = preprocessing.to_rgb(Image.open(photograph))
    (exact,) = tta.views(preprocessing.resize(image, Transforms()), "none", 224)
    centre = preprocessing.resize_centre(image, Transforms())
    assert np.abs(centre.astype(int) - exact).max() <= 1


def test_a_large_jpeg_is_decoded_small_and_stays_close() -> None:
    large = Image.open(PHOTOGRAPHS[0]).convert("RGB").resize((4096, 4096), Image.Resampling.BICUBIC)
    import io

    fast = Image.open(io.BytesIO(encode(large, "JPEG", quality=95)))
    preprocessing.shrink_on_load(fast, Transforms())
    shrunk = preprocessing.to_rgb(fast)
    assert shrunk.size == (512, 512)
    ours = preprocessing.resize(shrunk, Transforms()).astype(int)
    exact = preprocessing.resize(large, Transforms()).astype(int)
    assert np.abs(ours - exact).mean() < 3
