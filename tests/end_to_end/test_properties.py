"""What holds for any bytes: an answer or a 4xx, within bounded memory."""

import io
import math
import multiprocessing
import string
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.corpus import CASES, OK, SIZE, Case, chunk, encode, picture, png, tiff
from tests.helpers import REAL
from visionserve import heap, inputs, preprocessing, validation
from visionserve.answer import Explanation
from visionserve.classifier import Classifier
from visionserve.config import TTA, Decode, HandlerConfig, ModelConfig, Options
from visionserve.drawing import overlay
from visionserve.errors import RequestError
from visionserve.formats import FORMATS, samples
from visionserve.item import Budget, Item
from visionserve.metadata import Transforms
from visionserve_tools import paths

CONFIG = HandlerConfig()
MEGABYTES = 300
VIEWS = {"none": 1, "five_crop": 5, "ten_crop": 10}
IMAGES = [case for case in CASES if case.is_image]
SOUND = [case.data for case in IMAGES if case.expected == OK and len(case.data) < 20_000]
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I;16", "I", "F")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
settings.load_profile("fixed")


def outcome(data: bytes, mode: TTA = "none", how: Decode = "exact") -> tuple[int, str]:
    """Bring an image to the model's door: the status, and the code of the error."""
    transforms = Transforms()
    try:
        image = validation.open_image(data, CONFIG)
        Budget(CONFIG.max_work).spend(validation.work(image))
        rgb = preprocessing.decode(image, transforms, how, CONFIG.max_image_pixels)
        views = preprocessing.to_views(rgb, transforms, how, mode).stacked()
    except RequestError as error:
        assert 400 <= error.status < 500
        return error.status, error.code
    assert views.dtype == np.uint8
    if mode == "dense":
        assert views.shape[0] == 1 and min(views.shape[1:3]) == transforms.resize
    else:
        assert views.shape == (VIEWS[mode], transforms.crop, transforms.crop, 3)
    return OK


modes = st.sampled_from(["none", "five_crop", "ten_crop", "dense"])


@pytest.mark.parametrize("how", ["exact", "fast"])
@pytest.mark.parametrize("case", IMAGES, ids=lambda case: case.name)
def test_the_corpus_has_its_status(case: Case, how: Decode) -> None:
    assert outcome(case.data, how=how) == case.expected


@pytest.mark.parametrize(
    "case", [case for case in IMAGES if case.expected == OK], ids=lambda c: c.name
)
def test_what_is_answered_can_be_drawn_on(case: Case) -> None:
    """Pictures of explanations read the image anew, where nothing judges it."""
    explained: Explanation = {
        "method": "",
        "grid": [[0, 1], [2, 3]],
        "box": [0, 0, *SIZE],
        "orientation": 1,
    }
    drawn = Image.open(io.BytesIO(overlay(validation.open_image(case.data, CONFIG), explained)))
    assert drawn.format == "PNG" and drawn.mode == "RGB"


@settings(max_examples=200)
@given(st.binary(max_size=400), st.sampled_from([b"", *(data[:12] for data in SOUND)]), modes)
def test_any_bytes(tail: bytes, signature: bytes, mode: TTA) -> None:
    outcome(signature + tail, mode)


@settings(max_examples=300)
@given(
    st.sampled_from(SOUND),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
    st.floats(0, 1),
    st.binary(max_size=20),
)
def test_changed_images(
    data: bytes, changes: list[tuple[float, int]], kept: float, tail: bytes
) -> None:
    changed = bytearray(data)
    for place, value in changes:
        changed[int(place * len(data))] = value
    outcome(bytes(changed[: math.ceil(kept * len(data))]) + tail)


def drawn(mode: str, size: tuple[int, int]) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(np.asarray(picture("L", size)).astype(np.uint16) * 257)
    return picture(mode if mode != "PA" else "P", size).convert(mode)


@settings(max_examples=200)
@given(
    st.sampled_from(sorted(FORMATS)),
    st.sampled_from(MODES),
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    modes,
)
def test_any_size_and_mode(format: str, pixels: str, size: tuple[int, int], mode: TTA) -> None:
    try:
        data = encode(drawn(pixels, size), format)
    except (OSError, ValueError, KeyError):
        return
    if max(size) > validation.MAX_ASPECT_RATIO * min(size):
        expected = (422, "extreme_aspect_ratio")
    else:
        wide = format == "TIFF" and pixels in ("I", "F")
        expected = (415, "unsupported_pixels") if wide else OK
    assert outcome(data, mode) == expected


@settings(max_examples=30)
@given(st.sampled_from(["RGBA", "LA", "P"]), st.integers(1, 3 * samples.STRIP))
def test_strips_equal_the_whole(mode: str, height: int) -> None:
    image = picture("RGBA", (20, height))
    image.putalpha(picture("L", (20, height)))
    image = image.quantize(9) if mode == "P" else image.convert(mode)
    opaque = Image.new("RGBA", image.size, preprocessing.WHITE)
    opaque.alpha_composite(image.convert("RGBA"))
    decoded = preprocessing.to_rgb(Image.open(io.BytesIO(encode(image, "PNG"))))
    assert np.array_equal(np.asarray(decoded), np.asarray(opaque.convert("RGB")))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=40) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
names = st.sampled_from(["data", "body", "instances", "inputs", "tta", "top_k"]) | st.text(
    max_size=9
)
types = st.sampled_from(["", "application/json", "APPLICATION/JSON; x", "multipart/form-data"])
header_names = st.sampled_from(["x-classify-tta", "x-classify-top-k"]) | st.text(
    string.ascii_lowercase + "-", max_size=9
).map("x-classify-".__add__)


def read(row: dict[str, Any], headers: dict[str, str]) -> None:
    """The request, and each of its images, is read or has an error that can be sent."""
    request = inputs.read(row, headers, CONFIG)
    assert request.items
    for item in request.items:
        assert isinstance(item.options, Options) and isinstance(item.data, bytes)
        if item.fault:
            assert 400 <= item.fault.status < 500 and item.fault.message.encode()


@settings(max_examples=150)
@given(
    st.dictionaries(names, values | st.binary().map(bytearray), max_size=5),
    st.dictionaries(header_names, st.text(), max_size=3),
    types,
)
def test_any_row(row: dict[str, Any], headers: dict[str, str], content_type: str) -> None:
    read(row, headers | {"content-type": content_type})


@settings(max_examples=200)
@given(st.binary(max_size=100), st.sampled_from([b'{"data":', b"[", b'"', b""]))
def test_any_body_of_json(tail: bytes, head: bytes) -> None:
    read({"body": bytearray(head + tail)}, {"content-type": "application/json"})


def largest() -> Iterator[bytes]:
    """The images that take the most memory of their formats, at the limit of pixels."""
    side = math.isqrt(CONFIG.max_image_pixels)
    square = (side, side)
    turned = Image.Exif()
    turned[0x0112] = 6
    yield encode(Image.new("CMYK", square), "JPEG", progressive=True, subsampling=0)
    # As many pixels as fit at half the size: of a phone, and with whole colours, in several scans.
    for size, how in (((8160, 6120), {}), ((7400, 5540), {"progressive": True, "subsampling": 0})):
        yield encode(Image.new("RGB", size), "JPEG", exif=turned, **how)
    yield encode(Image.new("RGB", square), "JPEG", exif=turned)
    yield encode(Image.new("RGBA", square), "PNG", exif=turned, compress_level=1)
    yield encode(Image.new("I;16", square), "PNG", compress_level=1)
    row = b"\0" + bytes(side * 8)
    for kind, told in ((2, chunk(b"tRNS", bytes(6))), (6, chunk(b"sBIT", b"\x0c" * 4))):
        rows = zlib.compress((row[: 1 + side * 6] if kind == 2 else row) * side, 1)
        yield png(square, rows, told, kind=bytes([16, kind]))
    clear = Image.new("RGBA", (5200, 3900), (9, 9, 9, 100))
    yield encode(clear, "AVIF", speed=10, subsampling="4:4:4", exif=turned)
    quick = {"enc_params": {"preset": "ultrafast"}, "tile_size": 512}
    yield encode(Image.new("RGB", (5712, 4284)), "HEIC", quality=20, **quick)
    half = math.isqrt(CONFIG.max_image_pixels // 2)
    yield encode(Image.new("RGBA", (half, half)), "WEBP", lossless=True, method=0, exif=turned)
    strip = zlib.compress(bytes(side * side * 8), 1)
    tags = {256: side, 257: side, 258: 16, 259: 8, 262: 2, 273: 8, 277: 4, 278: side, 338: 2}
    yield tiff(tags | {258: [16] * 4, 279: len(strip)}, strip)


def peak() -> float:
    """The most memory that this process has held so far, in megabytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def growth(folder: Path) -> dict[str, float]:
    """How far memory has risen after each image of a folder, in megabytes."""
    for format in FORMATS:
        outcome(encode(picture(), format), "ten_crop")
    before, risen = peak(), {}
    for path in sorted(folder.iterdir()):
        outcome(path.read_bytes(), "ten_crop")
        risen[path.name] = peak() - before
    return risen


def test_no_image_takes_over_300_mb(tmp_path: Path) -> None:
    images = [*(case.data for case in IMAGES), *largest()]
    for index, data in enumerate(images):
        (tmp_path / f"{index:03}").write_bytes(data)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        risen = pool.apply(growth, (tmp_path,))
    assert len(risen) == len(images) and max(risen.values()) > 100
    assert [name for name in risen if risen[name] > MEGABYTES] == []


def growth_in_the_model(archive: Path, folder: Path, photograph: bytes) -> list[float]:
    """How far memory has risen after each of two long requests, in megabytes."""
    with zipfile.ZipFile(archive) as file:
        file.extractall(folder)
    config = ModelConfig.load(folder / "model-config.yaml")
    classify = Classifier.from_archive(folder, config, None, "1.0").classify
    long = encode(Image.new("RGB", (3000, 60)), "PNG")
    classify([Item(encode(picture(), "PNG"), Options())])
    before, risen = peak(), []
    for data, options in (
        (long, Options(tta="dense")),
        (photograph, Options(tta="ten_crop")),
    ):
        items = [Item(data, options)] * 8
        assert all(isinstance(answer, dict) for answer in classify(items))
        risen.append(peak() - before)
    return risen


def test_no_list_of_images_takes_what_all_of_them_take(store: Path, tmp_path: Path) -> None:
    """Eight photographs take 92 MB once they are decoded."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        given = store / f"{REAL}.mar", tmp_path, encode(picture(size=(2400, 1600)), "JPEG")
        risen = pool.apply(growth_in_the_model, given)
    assert risen[0] > 20 and max(risen) < 92


# The activations of a crop and of a dense view of two, and 64 kernels with what they have packed.
GROWTH = 65


def memory_by_shape(archive: Path, folder: Path) -> list[float]:
    """A worker's memory with its model loaded, after a large shape and after many, in megabytes.

    What loading has freed does not count.
    """
    with zipfile.ZipFile(archive) as file:
        file.extractall(folder)
    config = ModelConfig.load(folder / "model-config.yaml")
    classify = Classifier.from_archive(folder, config, None, "1.0").classify

    def memory() -> float:
        return psutil.Process().memory_full_info().uss / 1e6

    def ask(size: tuple[int, int], mode: TTA, count: int = 1) -> None:
        items = [Item(encode(picture(size=size), "PNG"), Options(tta=mode))] * count
        assert all(isinstance(answer, dict) for answer in classify(items))

    heap.trim()
    loaded = memory()
    for _ in range(3):
        ask((1024, 256), "dense")
    large = memory()
    for side in range(256, 1025, 64):
        ask((side, 256), "dense")
        ask((256, side), "dense")
    ask((256, 256), "ten_crop", 2)
    return [loaded, large, memory()]


def test_memory_does_not_grow_with_the_shapes_that_were_seen(store: Path, tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        loaded, large, many = pool.apply(memory_by_shape, (store / f"{REAL}.mar", tmp_path))
    assert max(large, many) - loaded <= GROWTH


def test_the_fuzzer_finds_nothing_in_the_corpus_and_its_next_of_kin() -> None:
    command = [sys.executable, "-m", "tests.stress.fuzz", "--runs", "500"]
    done = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
