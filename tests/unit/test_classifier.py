"""Images to answers, many at once, on a runtime that is quick."""

import io
import itertools
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import Any, get_args

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.helpers import encode
from visionserve import inputs, postprocessing
from visionserve.answer import Answer, Outcome
from visionserve.classifier import Classifier
from visionserve.config import TTA, CacheConfig, Decode, HandlerConfig, Options
from visionserve.deadline import too_slow
from visionserve.drawing import overlay
from visionserve.errors import RequestError
from visionserve.item import Budget, Item
from visionserve.metadata import Metadata, Transforms
from visionserve.preprocessing import Photograph, upright
from visionserve.runtimes import Passed, Runtime
from visionserve.semaphore import WeightedSemaphore
from visionserve.validation import open_image
from visionserve_tools import photos

CAT = photos.greeting().read_bytes()
CAT_JPEG = encode(Image.open(io.BytesIO(CAT)).convert("RGB"), "JPEG")
UPRIGHT = "PIL.ImageOps.exif_transpose"


class Brightness(Runtime):
    """A two-class runtime: how dark, how bright. It notes the views of each pass, and of maps."""

    capacity = 16

    def __init__(self) -> None:
        self.passes: list[int] = []
        self.mapped: list[int] = []

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.passes.append(len(pixels))
        bright = pixels.mean(axis=(1, 2, 3)) / 255
        return np.stack([1 - bright, bright], axis=1).astype(np.float32)

    def contributions(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        count, height, width, _ = pixels.shape
        self.mapped.append(count)
        cells = pixels.reshape(count, height // 32, 32, width // 32, 32, 3)
        bright = cells.mean(axis=(2, 4, 5)) / 255
        return np.stack([1 - bright, bright], axis=3).astype(np.float32)


def described(temperatures: dict[TTA, float] | None = None) -> Metadata:
    return Metadata(
        architecture="brightness",
        weights="none",
        weights_sha256="",
        artifact="",
        transforms=Transforms(),
        categories=("dark", "bright"),
        temperatures=temperatures or {},
    )


def test_a_model_without_a_dense_form_has_the_other_modes() -> None:
    plain = described().model_copy(update={"dense": False})
    assert plain.suited(Options(tta="dense")) == Options(tta="five_crop", top_k=2)
    assert plain.suited(Options(tta="none")) == Options(tta="none", top_k=2)
    assert described().suited(Options(tta="dense")) == Options(tta="dense", top_k=2)
    assert plain.modes(get_args(TTA)) == ["none", "five_crop", "ten_crop"]
    assert described().modes(["dense", "none"]) == ["dense", "none"]


def classifier(
    runtime: Brightness,
    directory: Path,
    size_mb: int = 1,
    temperatures: dict[TTA, float] | None = None,
    decoders: int = 1,
) -> Classifier:
    kept = CacheConfig(directory=directory, size_mb=size_mb)
    config = HandlerConfig(cache=kept, defaults=Options(top_k=2))
    return Classifier(runtime, described(temperatures), config, "1.0", decoders=decoders)


def test_a_hit_says_so_and_runs_nothing(tmp_path: Path) -> None:
    runtime = Brightness()
    classify = classifier(runtime, tmp_path).classify
    options = Options(top_k=2)
    (first,) = classify([Item(CAT, options)])
    assert isinstance(first, dict) and "cached" not in first and len(runtime.passes) == 1
    assert classify([Item(CAT, options)]) == [first | {"cached": True}]
    assert len(runtime.passes) == 1
    classify([Item(CAT, Options(top_k=2, tta="five_crop"))])
    assert len(runtime.passes) == 2


def test_readers_of_all_languages_share_an_answer(tmp_path: Path) -> None:
    runtime = Brightness()
    named = described().model_copy(update={"names": {"zh": ("黑暗", "明亮")}})
    kept = CacheConfig(directory=tmp_path, size_mb=1)
    config = HandlerConfig(cache=kept, defaults=Options(top_k=2))
    classify = Classifier(runtime, named, config, "1.0").classify

    def ask(accepted: str) -> Answer:
        headers = {"accept-language": accepted, "x-classify-threshold": "1"}
        (answer,) = classify(inputs.read({"data": bytearray(CAT)}, headers, config).items)
        assert isinstance(answer, dict)
        return answer

    german, chinese, english = ask("de"), ask("zh-CN"), ask("en-GB")
    assert "cached" not in german and chinese.pop("cached") and english.pop("cached")
    assert english == german and "treat it as a guess" in english.pop("warning")
    assert chinese.pop("warning").startswith("最佳结果")
    words = {"dark": "黑暗", "bright": "明亮"}
    assert all(p.pop("name") == words[p["label"]] for p in chinese["predictions"])
    assert chinese == english and len(runtime.passes) == 1


def test_a_kept_answer_has_its_hints_in_every_language(tmp_path: Path) -> None:
    runtime = Brightness()
    classify = classifier(runtime, tmp_path).classify
    dark = encode(Image.open(io.BytesIO(CAT)).convert("RGB").point(lambda level: level // 4))
    wanted = Options(top_k=2, threshold=1), Options(top_k=2, threshold=1, language="zh")
    english, chinese, sure = (Item(dark, one) for one in (*wanted, Options(top_k=2, threshold=0)))
    (first,), (again,), (unasked,) = classify([english]), classify([chinese]), classify([sure])
    assert isinstance(first, dict) and isinstance(again, dict) and isinstance(unasked, dict)
    assert "cached" not in first and again["cached"] and len(runtime.passes) == 2
    assert first["hints"] == again["hints"] == ["dark"] and "hints" not in unasked
    assert first["warning"].endswith(" The picture is dark.")
    assert again["warning"].endswith("仅供参考。图片太暗。")


def test_an_answer_is_kept_with_the_temperature_that_it_was_given_at(tmp_path: Path) -> None:
    item = Item(CAT, Options(top_k=2))
    (plain,) = classifier(Brightness(), tmp_path).classify([item])
    warm = classifier(Brightness(), tmp_path, temperatures={"none": 2.0}).classify
    (first,), (again,) = warm([item]), warm([item])
    assert isinstance(plain, dict) and isinstance(first, dict) and "cached" not in first
    assert again == first | {"cached": True}
    found = [one["probability"] for one in first["predictions"]]
    roots = np.sqrt([one["probability"] for one in plain["predictions"]])
    assert np.allclose(found, roots / roots.sum(), atol=1e-5)


def test_without_a_size_nothing_is_kept(tmp_path: Path) -> None:
    runtime = Brightness()
    classify = classifier(runtime, tmp_path, size_mb=0).classify
    for _ in range(2):
        (answer,) = classify([Item(CAT, Options(top_k=2))])
        assert isinstance(answer, dict) and "cached" not in answer
    assert len(runtime.passes) == 2 and not list(tmp_path.iterdir())


def test_a_fault_passes_through_in_its_place(tmp_path: Path) -> None:
    runtime = Brightness()
    fault = RequestError(400, "invalid_base64", "The image is not valid base64.")
    broken, sound = Item(b"", Options(top_k=2), fault=fault), Item(CAT, Options(top_k=2))
    for decoders in (1, 2):
        one = Classifier(runtime, described(), HandlerConfig(), "1.0", decoders=decoders)
        first, answer, last = one.classify([broken, sound, broken])
        assert first is last is fault and isinstance(answer, dict)
        assert one.classify([broken]) == [fault] and one.failures == 0
    assert runtime.passes == [1, 1] and not broken.trace.seconds


def test_a_probe_is_neither_looked_up_nor_kept(tmp_path: Path) -> None:
    runtime = Brightness()
    classify = classifier(runtime, tmp_path).classify
    probe, plain = (Item(CAT, Options(top_k=2), probe=probe) for probe in (True, False))
    for item in (probe, plain, probe):
        (answer,) = classify([item])
        assert isinstance(answer, dict) and "cached" not in answer
    assert len(runtime.passes) == 3


def test_errors_are_not_kept(tmp_path: Path) -> None:
    classify = classifier(Brightness(), tmp_path).classify
    bad = Item(b"bad", Options(top_k=2))
    for _ in range(2):
        (error,) = classify([bad])
        assert isinstance(error, RequestError) and error.code == "unsupported_format"
    with closing(sqlite3.connect(tmp_path / "cache.db")) as database:
        assert database.execute("SELECT count(*) FROM Cache").fetchone() == (0,)


def test_views_of_one_shape_share_a_forward_pass(tmp_path: Path) -> None:
    runtime = Brightness()
    modes = [Options(top_k=2, tta=mode) for mode in ("none", "five_crop", "ten_crop")]
    answers = classifier(runtime, tmp_path).classify([Item(CAT, options) for options in modes])
    assert len(runtime.passes) == 1
    alone = Brightness()
    for options, answer in zip(modes, answers, strict=True):
        assert classifier(alone, tmp_path, size_mb=0).classify([Item(CAT, options)]) == [answer]


def test_many_views_take_several_passes(tmp_path: Path) -> None:
    runtime = Brightness()
    items = [Item(CAT, Options(top_k=2, tta="ten_crop"))] * 5
    assert len(classifier(runtime, tmp_path, size_mb=0).classify(items)) == 5
    assert runtime.passes == [20, 20, 10]


class Announced(Brightness):
    """A runtime that tells of its first pass."""

    def __init__(self) -> None:
        super().__init__()
        self.ran = Event()

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.ran.set()
        return super().__call__(pixels)


def test_a_pass_waits_for_no_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second image is decoded only after the first is classified."""
    runtime = Announced()
    first, second = (encode(Image.new("RGB", (256, side))) for side in (256, 257))

    def late(data: bytes, config: HandlerConfig) -> Image.Image:
        assert data == first or runtime.ran.wait(30)
        return open_image(data, config)

    monkeypatch.setattr("visionserve.classifier.open_image", late)
    items = [Item(data, Options(top_k=2)) for data in (first, second)]
    answers = classifier(runtime, tmp_path, decoders=2).classify(items)
    assert all(isinstance(answer, dict) for answer in answers) and runtime.passes == [1, 1]


class Partial(Brightness):
    """A runtime that fails on all but the size of a crop."""

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        if pixels.shape[1:] != (224, 224, 3):
            raise RuntimeError("not that size")
        return super().__call__(pixels)


def test_a_fault_in_the_model_is_an_error_of_its_images_alone(tmp_path: Path) -> None:
    modes = [Options(top_k=2, tta=mode) for mode in ("none", "dense", "five_crop")]
    crop, dense, crops = classifier(Partial(), tmp_path).classify(
        [Item(CAT, options) for options in modes]
    )
    assert isinstance(dense, RequestError)
    assert (dense.status, dense.code) == (500, "internal_error")
    assert isinstance(crop, dict) and isinstance(crops, dict)


@pytest.mark.parametrize("tta", ["none", "ten_crop", "dense"])
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("resize", [256, (224, 224)], ids=["kept", "squashed"])
def test_a_map_lies_where_the_model_looked(
    tmp_path: Path, tta: TTA, orientation: int, resize: int | tuple[int, int]
) -> None:
    """A white square of 100 pixels on a dark photograph, which the camera stored turned."""
    upright = Image.new("RGB", (800, 600), (20, 20, 20))
    upright.paste((255, 255, 255), (350, 150, 450, 250))
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = upright if orientation == 1 else upright.transpose(Image.Transpose.ROTATE_90)
    data = encode(turned, "JPEG", exif=exif)
    item = Item(data, Options(top_k=2, tta=tta, explain=True))
    metadata = described().model_copy(update={"transforms": Transforms(resize=resize)})
    (answer,) = Classifier(Brightness(), metadata, HandlerConfig(), "1.0").classify([item])
    assert isinstance(answer, dict)
    for prediction in answer["predictions"]:
        found = prediction["explanation"]
        grid, (left, top, right, bottom) = np.array(found["grid"]), found["box"]
        place = grid.argmax() if prediction["label"] == "bright" else grid.argmin()
        row, column = np.unravel_index(place, grid.shape)
        x = left + (column + 0.5) * (right - left) / grid.shape[1]
        y = top + (row + 0.5) * (bottom - top) / grid.shape[0]
        assert 350 <= x <= 450 and 150 <= y <= 250
        whole = tta == "dense" or resize != 256
        width, height = (800, 600) if whole else (525, 525)
        assert abs(right - left - width) < 60 and abs(bottom - top - height) < 60
    stored = Image.open(io.BytesIO(data))
    drawn = Image.open(io.BytesIO(overlay(stored, answer["predictions"][0]["explanation"])))
    assert (drawn.format, drawn.size) == ("PNG", (800, 600))


def test_a_map_is_made_for_explanations_alone(tmp_path: Path) -> None:
    runtime = Brightness()
    explain = [False, True, False, True]
    items = [Item(CAT, Options(top_k=2, tta="five_crop", explain=chosen)) for chosen in explain]
    classifier(runtime, tmp_path, size_mb=0).classify(items)
    assert (runtime.passes, runtime.mapped) == ([20], [1, 1])


class Dazzled(Brightness):
    """A runtime that explains no bright image, and dark ones by NaN."""

    def contributions(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        found = super().contributions(pixels)
        if pixels.mean() > 250:
            raise RuntimeError("too bright")
        return np.where(found > 0.9, np.nan, found)


def test_an_explanation_that_fails_is_an_error_of_its_image_alone(tmp_path: Path) -> None:
    """The model itself did not fail, so that its worker goes on."""
    dark, bright = (encode(Image.new("L", (256, 256), level)) for level in (0, 255))
    explain, plain = Options(top_k=2, explain=True), Options(top_k=2)
    runtime = Dazzled()
    one = classifier(runtime, tmp_path)
    for _ in range(2):
        runtime.passes.clear()
        asked = [(bright, explain), (dark, explain), (CAT, explain), (bright, plain)]
        *failed, cat, sound = one.classify([Item(data, options) for data, options in asked])
        for error in failed:
            assert isinstance(error, RequestError)
            assert (error.status, error.code) == (500, "internal_error")
        assert isinstance(cat, dict) and cat["predictions"][0]["explanation"]
        assert isinstance(sound, dict) and sound["predictions"][0]["label"] == "bright"
        assert one.failures == 0 and runtime.passes in ([4], [2])
    one.classify([Item(bright, explain)])
    assert one.failures == 0


class Mad(Brightness):
    """A runtime that answers dark images by NaN, and bright ones by probabilities twice as high."""

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        found = super().__call__(pixels)
        found[found[:, 0] > 0.9] = np.nan
        found[found[:, 1] > 0.9] *= 2
        return found


def test_probabilities_that_are_none_are_an_error_of_their_image_alone(tmp_path: Path) -> None:
    one = classifier(Mad(), tmp_path)
    dark, bright = (encode(Image.new("L", (256, 256), level)) for level in (0, 255))
    mad, sound, high = one.classify([Item(data, Options(top_k=2)) for data in (dark, CAT, bright)])
    for error in (mad, high):
        assert isinstance(error, RequestError)
        assert (error.status, error.code) == (500, "internal_error")
    assert isinstance(sound, dict) and one.failures == 0
    for count in (1, 2, 3):
        one.classify([Item(dark, Options(top_k=2))])
        assert one.failures == count
    one.classify([Item(CAT, Options(top_k=1))])
    assert one.failures == 0


@pytest.mark.parametrize("decoders", [1, 2])
def test_after_the_deadline_only_what_is_known_is_answered(tmp_path: Path, decoders: int) -> None:
    one = classifier(Brightness(), tmp_path, decoders=decoders)
    known, new = Item(CAT, Options(top_k=2)), Item(CAT, Options(top_k=1))
    one.classify([known])
    answer, error = one.classify([known, new], deadline=0)
    assert isinstance(answer, dict) and answer["cached"]
    assert isinstance(error, RequestError)
    assert (error.status, error.code) == (503, "request_too_slow")


class Clock:
    """The time by `time.monotonic`, which passes only as a test says, on a slow machine, too."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


class Slow(Brightness):
    """A runtime whose passes take 3 seconds."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        self._clock.now += 3
        return super().__call__(pixels)


def test_no_stage_begins_after_the_deadline(tmp_path: Path, clock: Clock) -> None:
    """No pass, no map and no drawing; an answer that is known by then is given."""
    runtime = Slow(clock)
    one = classifier(runtime, tmp_path)
    small = encode(Image.new("RGB", (256, 300)))
    plain, mapped = Options(top_k=2, tta="dense"), Options(top_k=2, tta="dense", explain=True)
    asked = [(CAT, plain), (CAT, mapped), (small, plain)]
    answer, *late = one.classify([Item(data, options) for data, options in asked], clock.now + 2)
    assert isinstance(answer, dict) and (runtime.passes, runtime.mapped) == ([2], [])
    assert [getattr(error, "code", "") for error in late] == ["request_too_slow"] * 2
    item = Item(CAT, mapped)
    (answer,) = one.classify([item])
    assert isinstance(answer, dict) and one.draw(item, answer, clock.now)
    with pytest.raises(RequestError, match="Time ran out"):
        one.draw(item, answer, clock.now - 1)


def test_images_of_a_failed_pass_are_tried_alone_until_the_deadline(
    tmp_path: Path, clock: Clock
) -> None:
    class Failing(Slow):
        def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
            super().__call__(pixels)
            raise KeyError("a fault of ours")

    runtime = Failing(clock)
    items = [Item(CAT, Options(top_k=1)) for _ in range(4)]
    found = classifier(runtime, tmp_path).classify(items, clock.now + 4)
    assert runtime.passes == [4, 1]
    codes = [getattr(error, "code", "") for error in found]
    assert codes == ["internal_error", *["request_too_slow"] * 3]


def test_the_wait_for_memory_ends_at_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    """Of two images that each take all of the memory, the second has no turn in time."""
    decoded, refused = [], Event()

    def stuck(*arguments: Any) -> Photograph:
        decoded.append(arguments)
        assert refused.wait(30)
        return upright(*arguments)

    def late() -> RequestError:
        clock.now += 1
        refused.set()
        return too_slow()

    monkeypatch.setattr("visionserve.classifier.upright", stuck)
    monkeypatch.setattr("visionserve.classifier.too_slow", late)
    one = classifier(Brightness(), tmp_path, decoders=2)
    data = encode(Image.new("RGB", (6000, 4000)), "JPEG")
    errors = one.classify([Item(data, Options(top_k=2))] * 2, clock.now + 0.1)
    assert [getattr(error, "code", "") for error in errors] == ["request_too_slow"] * 2
    assert len(decoded) == 1


class Thousand(Brightness):
    """A runtime of a thousand classes."""

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.full((len(super().__call__(pixels)), 1000), 1e-3, np.float32)

    def contributions(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.repeat(super().contributions(pixels)[..., :1], 1000, axis=3)


def test_maps_that_cannot_be_sent_are_not_made(tmp_path: Path) -> None:
    """A thousand maps of the whole photograph have about 1 MB: the second image's are not made."""
    runtime = Thousand()
    thousand = described().model_copy(update={"categories": tuple(map(str, range(1000)))})
    kept = CacheConfig(directory=tmp_path, size_mb=10)
    one = Classifier(runtime, thousand, HandlerConfig(cache=kept), "1.0")
    options = Options(top_k=1000, tta="dense", explain=True)
    for mapped in (2, 3):
        budget = Budget(most_bytes=1_300_000)
        items = [
            Item(CAT, options, budget=budget),
            *(Item(CAT_JPEG + bytes([index]), options, budget=budget) for index in range(31)),
        ]
        first, *others = one.classify(items)
        assert isinstance(first, dict)
        assert {getattr(error, "code", "") for error in others} == {"answer_too_large"}
        assert len(runtime.mapped) == mapped and len(runtime.passes) < 4
    with pytest.raises(RequestError, match="at most 1300000 are allowed"):
        budget.check_bytes()


def test_features_that_cannot_be_sent_are_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand have 5,000 bytes at least, and count as the predictions do."""

    class Featured(Brightness):
        def passed(self, pixels: NDArray[np.uint8]) -> Passed:
            probabilities = self(pixels)
            return Passed(probabilities, np.full((len(pixels), 1000), 1 / 3, np.float32))

    made: list[int] = []

    def rounded(features: NDArray[np.float32]) -> list[float]:
        made.append(len(features))
        return [0.1234] * len(features)

    monkeypatch.setattr(postprocessing, "rounded", rounded)
    one = classifier(Featured(), tmp_path)
    budget = Budget(most_bytes=12_000)
    options = Options(top_k=2, features=True)
    items = [Item(CAT_JPEG + bytes([index]), options, budget=budget) for index in range(3)]
    first, *others = one.classify(items)
    assert isinstance(first, dict) and len(first["features"]) == 1000
    assert {getattr(error, "code", "") for error in others} == {"answer_too_large"}
    assert len(made) == 1
    one.classify([Item(CAT, Options(top_k=2))])
    assert len(made) == 1


def large(mode: str, format: str, keep: float = 0.7, **options: Any) -> bytes:
    """An image of 6 million pixels, or a part of its bytes."""
    data = encode(Image.new(mode, (3000, 2000)), format, **options)
    return data[: int(len(data) * keep)]


@pytest.fixture(scope="module")
def refused() -> list[bytes]:
    return [
        large("RGBA", "PNG"),
        large("RGB", "JPEG"),
        large("P", "GIF"),
        large("I;16", "PNG"),
        large("F", "TIFF", 1, compression="tiff_lzw"),
        large("RGB", "PNG", 1),
    ]


@pytest.mark.parametrize("decoders", [1, 4])
def test_a_refused_image_keeps_no_pixels(refused: list[bytes], decoders: int) -> None:
    """Each kind of refusal that comes after decoding, sound images between them."""
    one = Classifier(Brightness(), described(), HandlerConfig(), "1.0", decoders=decoders)
    one.classify([Item(CAT, Options(top_k=2))])
    before = psutil.Process().memory_info().rss
    outcomes = one.classify([Item(data, Options(top_k=2)) for data in refused] * 2)
    grown = psutil.Process().memory_info().rss - before
    assert [getattr(outcome, "code", "ok") for outcome in outcomes] == [
        *["truncated_image"] * 4,
        *["unsupported_pixels", "ok"],
    ] * 2
    assert grown < 30_000_000


@pytest.mark.parametrize("fault", [MemoryError(), AttributeError("x"), ZeroDivisionError()])
def test_what_no_decoder_raises_is_our_fault(
    fault: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """When an image is opened, decoded and turned upright."""

    def fail(*_: object, **__: object) -> None:
        raise fault

    one = Classifier(Brightness(), described(), HandlerConfig(), "1.0")
    for place in ("PIL.Image.open", "PIL.JpegImagePlugin.JpegImageFile.load", UPRIGHT):
        with monkeypatch.context() as patched:
            patched.setattr(place, fail)
            (error,) = one.classify([Item(CAT_JPEG, Options(top_k=2))])
        assert isinstance(error, RequestError)
        assert (error.status, error.code) == (500, "internal_error")
        assert "Traceback" in caplog.text
        caplog.clear()


@pytest.mark.parametrize("decoders", [1, 2])
def test_the_images_of_a_request_share_its_budget(tmp_path: Path, decoders: int) -> None:
    """Decoders that work side by side may spend it in another order."""
    one = classifier(Brightness(), tmp_path, size_mb=0, decoders=decoders)
    progressive = encode(Image.new("RGB", (100, 100)), "JPEG", progressive=True)
    baseline = encode(Image.new("RGB", (100, 100)), "JPEG")
    budget = Budget(130_000)
    items = [
        Item(data, Options(top_k=2), budget=budget)
        for data in (baseline, progressive, baseline, baseline, baseline)
    ]
    codes = [getattr(answer, "code", "ok") for answer in one.classify(items)]
    expected = [*["ok"] * 4, "too_much_work"]
    assert (codes if decoders == 1 else sorted(codes)) == expected
    other = Item(baseline, Options(top_k=2), budget=Budget(130_000))
    assert isinstance(one.classify([other])[0], dict)


def test_another_model_file_is_another_answer(tmp_path: Path) -> None:
    """Two archives of one version, metadata and configuration, that differ in calibration."""
    metadata, config = described(), HandlerConfig(cache=CacheConfig(directory=tmp_path, size_mb=1))
    item = Item(CAT, Options(top_k=2))
    answers = [
        Classifier(Brightness(), metadata, config, "1.0", files=files).classify([item])[0]
        for files in ("one", "another", "one")
    ]
    assert [isinstance(a, dict) and "cached" in a for a in answers] == [False, False, True]


@pytest.fixture(scope="module")
def mixed() -> list[bytes]:
    cat = Image.open(io.BytesIO(CAT)).convert("RGB")
    formats = ("JPEG", "PNG", "WEBP", "TIFF")
    images = [encode(cat.resize((300 + 9 * i, 400 - 5 * i)), formats[i % 4]) for i in range(9)]
    return [*images, images[0][:2000], b"bad", b"", CAT]


@pytest.mark.parametrize(
    ("decode", "count"), [("exact", 1), ("exact", 33), ("fast", 7)], ids=["one", "33", "fast"]
)
def test_a_pool_of_decoders_answers_as_one_thread_does(
    mixed: list[bytes], count: int, decode: Decode, tmp_path: Path
) -> None:
    """Every mode, format and shape mixed, with faults and known answers amid them."""
    choices = itertools.product(mixed, get_args(TTA))
    asked = [(data, Options(tta=tta, top_k=2)) for data, tta in choices]
    asked = [asked[7 * index % len(asked)] for index in range(count)]

    def answer(decoders: int) -> tuple[list[Outcome], list[set[str]]]:
        config = HandlerConfig(decode=decode)
        one = Classifier(Brightness(), described(), config, "1.0", decoders=decoders)
        items = [Item(data, options) for data, options in asked]
        return one.classify(items), [set(item.trace.seconds) for item in items]

    plain, pooled = answer(1), answer(4)
    assert [_comparable(a) for a in pooled[0]] == [_comparable(a) for a in plain[0]]
    assert pooled[1] == plain[1]
    assert count < 7 or {type(outcome) for outcome in plain[0]} == {dict, RequestError}


def _comparable(outcome: Outcome) -> object:
    return (outcome.status, outcome.code) if isinstance(outcome, RequestError) else outcome


def test_decoders_share_the_memory_of_the_largest_image() -> None:
    share, held, peaks = WeightedSemaphore(10), [0], []

    def hold(amount: int) -> None:
        with share.holding(amount):
            held[0] += min(amount, 10)
            peaks.append(held[0])
            time.sleep(0.001)
            held[0] -= min(amount, 10)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hold, [3, 4, 12, 1, 10, 5] * 10))
    assert 5 < max(peaks) <= 10 and len(peaks) == 60
