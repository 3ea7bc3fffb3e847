"""What is wrong with a picture, by measures of its own."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter
from scipy import ndimage

from tests.helpers import encode
from visionserve import hints
from visionserve.answer import Hint
from visionserve.metadata import Transforms
from visionserve.preprocessing import decode, to_views
from visionserve_tools import photos

TRANSFORMS = Transforms()


def found(data: bytes) -> list[Hint]:
    """The hints of an encoded upright image."""
    with Image.open(io.BytesIO(data)) as image:
        size, table = image.size, hints.luma_table(image)
        (view,) = to_views(decode(image, TRANSFORMS, "fast"), TRANSFORMS, "fast", "none").stacked()
    return hints.find(hints.measure(view), size, table, TRANSFORMS)


def test_sharpness_is_that_of_scipy_at_any_contrast() -> None:
    with Image.open(photos.greeting()) as image:
        pixels = np.asarray(image.convert("L"))
    grey = pixels[38:262, 113:337]  # Its middle.
    line = np.array([[0, 0, 0], [1, -2, 1], [0, 0, 0]])
    diagonal = np.diag([1, -2, 1])
    bends = [
        ndimage.correlate(grey.astype(float), kernel)[1:-1, 1:-1]
        for kernel in (line, line.T, diagonal, diagonal[::-1])
    ]
    least, bend = min((float(np.square(bend).mean()), i) for i, bend in enumerate(bends))
    look, paler, plain = (
        hints.measure(np.stack([of] * 3, axis=-1))
        for of in (pixels, pixels // 2, np.full((9, 9), 99, np.uint8))
    )
    assert look.detail == pytest.approx(least, rel=1e-4)
    assert look.bent == (bends[bend] != 0).mean()
    assert look.sharpness == pytest.approx(least / grey.astype(float).var(), rel=1e-4)
    assert paler.sharpness == pytest.approx(look.sharpness, rel=0.02)
    assert look.highlight == np.percentile(grey, 95, method="inverted_cdf")
    assert (plain.highlight, plain.detail, plain.bent, plain.sharpness) == (99, 0, 0, np.inf)


def test_motion_along_any_line_blurs() -> None:
    """Averages of 25 neighbours, as a moving camera takes them, by SciPy."""
    with Image.open(photos.packaged()[2]) as image:
        pixels = np.asarray(image.convert("RGB").crop((150, 50, 450, 350)), float)
    for turned in (0, 30, 90, 135):
        upright = np.eye(25)[12][:, None] * np.ones(25)
        kernel = np.clip(ndimage.rotate(upright, turned, reshape=False, order=1), 0, None)[
            ..., None
        ]
        moved = ndimage.correlate(pixels, kernel / kernel.sum(), mode="reflect")
        assert found(encode(Image.fromarray(moved.astype(np.uint8)))) == ["blurred"], turned


def test_only_a_jpegs_luminance_counts_whatever_the_number_of_its_table() -> None:
    """Most encoders number it 0, some 1; and no other format has one."""
    with Image.open(photos.greeting()) as image:
        cat = image.convert("RGB").resize((600, 400))
    fine, coarse = [2] * 64, [200] * 64
    for tables, expected in (([coarse, fine], ["poor_jpeg"]), ([fine, coarse], [])):
        data = encode(cat, "JPEG", qtables=tables)
        swapped = renumbered(data)
        with Image.open(io.BytesIO(data)) as one, Image.open(io.BytesIO(swapped)) as other:
            assert one.tobytes() == other.tobytes()
        assert found(data) == found(swapped) == expected
    for format in ("PNG", "WEBP"):
        assert found(encode(cat, format, quality=20)) == []


def renumbered(data: bytes) -> bytes:
    """Give the two quantization tables of a JPEG each other's number."""
    start = data.index(b"\xff\xc0") + 10
    components = bytearray(data[start : start + 9])
    components[2::3] = bytes(1 - number for number in components[2::3])
    tables = re.sub(
        rb"\xff\xdb\0\x43([\0\1])", lambda m: m[0][:4] + bytes([1 - m[1][0]]), data[:start]
    )
    return tables + components + data[start + 9 :]


def test_a_plain_surface_and_a_thumbnail_are_not_blurred() -> None:
    assert found(encode(Image.new("RGB", (400, 400), (200, 190, 180)))) == []
    assert found(encode(Image.new("RGB", (400, 400)))) == ["dark"]
    with Image.open(photos.packaged()[2]) as image:
        assert found(encode(image.convert("RGB").reduce(8))) == ["small"]


def test_few_sound_photographs_and_most_damaged_ones_have_hints(samples: list[Path]) -> None:
    """Whatever the model says of them: few of those that look blurred are a guess."""
    chosen = samples[1::40]
    counts = dict.fromkeys(["sound", "dark", "blurred", "small", "poor_jpeg"], 0)
    for path in chosen:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        image.thumbnail((480, 480))
        forms = {
            "dark": encode(ImageEnhance.Brightness(image).enhance(1 / 3), "JPEG", quality=90),
            "blurred": encode(image.filter(ImageFilter.GaussianBlur(5)), "JPEG", quality=90),
            "small": encode(image.resize((80, 60)), "JPEG", quality=90),
            "poor_jpeg": encode(image, "JPEG", quality=7),
        }
        counts["sound"] += bool(found(path.read_bytes()))
        for hint, data in forms.items():
            counts[hint] += hint in found(data)
    assert counts.pop("sound") <= 0.15 * len(chosen)
    assert min(counts.values()) >= 0.9 * len(chosen), counts
