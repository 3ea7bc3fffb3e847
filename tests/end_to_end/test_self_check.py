"""An archive that computes otherwise on this machine is not served."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional

from tests.helpers import REAL
from visionserve import processor, runtimes, self_check
from visionserve.classifier import Classifier
from visionserve.config import CacheConfig, HandlerConfig, ModelConfig
from visionserve.metadata import FILE, Metadata
from visionserve.models import IMAGENET_CATEGORIES, MODELS
from visionserve.processor import multiplies_bf16
from visionserve.runtimes import Passed, Runtime
from visionserve.self_check import SelfCheckError
from visionserve_tools import paths, photos
from visionserve_tools.archive import convert
from visionserve_tools.archive.weights import load_state_dict, resolve
from visionserve_tools.commands import verify

Factory = pytest.TempPathFactory
INT8 = HandlerConfig(runtime="openvino", precision="int8", decode="fast")


class Other(Runtime):
    """A processor on which each answer is the next picture's, or no number."""

    capacity = 16

    def __init__(self, runtime: Runtime, change: Callable[[Passed], Passed]) -> None:
        self._runtime = runtime
        self._change = change

    def passed(self, pixels: np.ndarray) -> Passed:
        return self._change(self._runtime.passed(pixels))


@pytest.fixture(scope="module")
def unpacked(int8_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("self-check")
    with zipfile.ZipFile(int8_archive) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def runtime(unpacked: Path) -> Runtime:
    return runtimes.load(unpacked, Metadata.load(unpacked), INT8, None, 1)


def test_the_pictures_have_pytorchs_answers(unpacked: Path) -> None:
    """By torchvision's own preprocessing, and a network that it has not been converted from."""
    transforms, network = MODELS[REAL].transforms, MODELS[REAL].build(1000).eval()
    network.load_state_dict(load_state_dict(resolve(REAL), network.state_dict()))
    with np.load(unpacked / self_check.FILE) as kept:
        assert kept["probabilities"].shape == (6, 1000)
        assert sum(array.nbytes for array in kept.values()) < 600_000
        for number, expected in enumerate(kept["probabilities"]):
            image = Image.open(io.BytesIO(kept[f"picture_{number}"].tobytes()))
            assert not image.getexif() and image.mode == "RGB"
            resized = functional.resize(
                image, [transforms.resize], functional.InterpolationMode(transforms.interpolation)
            )
            crop = functional.to_tensor(functional.center_crop(resized, [transforms.crop]))
            given = functional.normalize(crop, list(transforms.mean), list(transforms.std))
            with torch.inference_mode():
                found = network(given.unsqueeze(0)).softmax(1)[0].numpy()
            assert np.abs(found - expected).max() < 1e-5


def test_a_sound_archive_passes_by_its_own_figures(unpacked: Path, runtime: Runtime) -> None:
    metadata = Metadata.load(unpacked)
    found = self_check.check(unpacked, metadata, INT8, runtime)
    assert found is not None and found.passed and found.pictures == 6
    assert 0 < found.mean_difference < 0.06 and found.agreement == 1
    assert (
        self_check.check(unpacked, metadata.model_copy(update={"self_check": None}), INT8, runtime)
        is None
    )


def test_wrong_answers_are_refused_or_warned_of(
    unpacked: Path, runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    metadata = Metadata.load(unpacked)
    shifted = Other(runtime, lambda one: Passed(np.roll(one.probabilities, 1, axis=1)))
    unknown = Other(runtime, lambda one: Passed(one.probabilities * np.nan))
    for other in (shifted, unknown):
        with pytest.raises(SelfCheckError, match=r"wrong on this machine.*visionserve rebuild"):
            self_check.check(unpacked, metadata, INT8, other)
    warned = INT8.model_copy(update={"self_check": "warn"})
    found = self_check.check(unpacked, metadata, warned, shifted)
    assert found is not None and not found.passed
    assert "wrong on this machine" in caplog.text


@pytest.fixture(scope="module", params=paths.profiles())
def archive(
    request: pytest.FixtureRequest, int8_archive: Path, store: Path, tmp_path_factory: Factory
) -> tuple[Path, ModelConfig]:
    """The real classifier's files as a profile has them, and its configuration, without a cache."""
    config = ModelConfig.of(paths.CONFIG / request.param)
    handler = config.handler.model_copy(update={"cache": CacheConfig(size_mb=0)})
    if handler.precision == "auto":
        handler = handler.model_copy(update={"precision": "fp32"})  # BF16 has a test of its own.
    folder = tmp_path_factory.mktemp(request.param)
    packed = int8_archive if handler.precision == "int8" else store / f"{REAL}.mar"
    with zipfile.ZipFile(packed) as file:
        file.extractall(folder)
    if handler.runtime == "pytorch":
        network = MODELS[REAL].build(1000)
        torch.save(load_state_dict(resolve(REAL), network.state_dict()), folder / "network.pt")
        digest = self_check.sha256_of([folder / "network.pt"])
        change(folder, artifact="network.pt", self_check={"sha256": digest})
    return folder, config.model_copy(update={"handler": handler})


def change(folder: Path, **fields: object) -> None:
    """Change fields of a folder's metadata, and of what is in them."""
    file = folder / FILE
    metadata = json.loads(file.read_bytes())
    for name, value in fields.items():
        metadata[name] = metadata[name] | value if isinstance(value, dict) else value
    file.write_text(json.dumps(metadata))


def test_each_profile_loads_a_sound_archive_and_no_broken_one(
    archive: tuple[Path, ModelConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of half the range never overflow, and floats do not."""
    folder, config = archive
    is_int8 = config.handler.precision == "int8"

    def checked() -> self_check.Checked | None:
        return Classifier.from_archive(folder, config, None, "1.0").checked

    with monkeypatch.context() as other:
        found = checked()
        assert found is not None and found.passed and found.agreement == 1
        other.setattr(self_check, "overflows", lambda: True)
        if is_int8:
            change(folder, half_range=False)
            with pytest.raises(SelfCheckError, match=r"no VNNI.*visionserve rebuild"):
                checked()
            change(folder, half_range=True)
        found = checked()
        assert found is not None and found.passed
    sound = (folder / FILE).read_bytes()
    for wrong in ({"resize": 1024}, {"channels": "grey"}):
        change(folder, transforms=wrong)
        with pytest.raises(SelfCheckError, match=r"wrong on this machine.*visionserve rebuild"):
            checked()
        (folder / FILE).write_bytes(sound)
    (weights,) = [*folder.glob("model.bin"), *folder.glob("network.pt")][-1:]
    flipped = bytearray(weights.read_bytes())
    flipped[len(flipped) // 2] ^= 0x80
    weights.write_bytes(flipped)
    with pytest.raises(SelfCheckError, match="not those that were built"):
        checked()


@pytest.mark.skipif(not multiplies_bf16(), reason="this processor does not multiply BF16")
@pytest.mark.parametrize("built_with", [False, True])
def test_bf16_passes_whether_the_builders_processor_had_it_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built_with: bool
) -> None:
    """Of one archive of `precision: auto`, which is proved in what its builder computes in."""
    (cpuinfo := tmp_path / "cpuinfo").write_text("flags : fpu avx512f avx512_vnni\n")
    auto = HandlerConfig(runtime="openvino", precision="auto")
    if not built_with:
        monkeypatch.setattr(processor, "CPUINFO", cpuinfo)
    few = photos.packaged()[:1]
    metadata = convert.convert(REAL, resolve(REAL), IMAGENET_CATEGORIES, auto, few, tmp_path)
    assert metadata.proof and metadata.proof.precision == ("bf16" if built_with else "fp32")
    for precision, place in (("fp32", cpuinfo), ("bf16", Path("/proc/cpuinfo"))):
        monkeypatch.setattr(processor, "CPUINFO", place)
        runtime = runtimes.load(tmp_path, metadata, auto, None, 1)
        found = self_check.check(tmp_path, metadata, auto, runtime)
        assert runtime.precision == precision and found is not None and found.agreement == 1
        assert (found.mean_difference > 1e-4) == (precision == "bf16")
    wrong = Other(runtime, lambda one: Passed(one.probabilities * 0.95))
    with pytest.raises(SelfCheckError, match="wrong on this machine"):
        self_check.check(tmp_path, metadata, auto, wrong)


def test_one_flipped_bit_is_found_by_hand(
    int8_archive: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a file without a record; one that has it is refused by its hash."""
    sound, flipped = tmp_path / "sound.mar", tmp_path / "flipped.mar"
    with zipfile.ZipFile(int8_archive) as old, zipfile.ZipFile(flipped, "w") as new:
        for entry in old.infolist():
            data = bytearray(old.read(entry))
            if entry.filename == "model.bin":
                data[len(data) // 2] ^= 0x80
            new.writestr(entry, bytes(data))
    sound.write_bytes(int8_archive.read_bytes())
    for archive, code in ((sound, 0), (flipped, 1)):
        monkeypatch.setattr("sys.argv", ["visionserve verify", str(archive)])
        assert verify.main() == code
    out, err = capsys.readouterr()
    assert "6 pictures differ from PyTorch" in out
    assert err.count("\n") == 1 and "not those that were built" in err
