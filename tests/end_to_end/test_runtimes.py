"""Runtimes that agree, and INT8 that is small and as accurate."""

import os
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from tests.helpers import REAL, SMALL, write_config
from visionserve import processor, runtimes
from visionserve.card import card
from visionserve.classifier import Classifier
from visionserve.config import HandlerConfig, ModelConfig, Wanted
from visionserve.metadata import FILE, Metadata, Transforms
from visionserve.models import IMAGENET_CATEGORIES, MODELS, FullyConvolutional
from visionserve.preprocessing import decode, to_views
from visionserve.processor import multiplies_bf16, overflows
from visionserve.runtimes import Runtime
from visionserve.runtimes.openvino import OpenVINORuntime
from visionserve_tools import photos
from visionserve_tools.archive import convert, proof
from visionserve_tools.archive.proof import Limits
from visionserve_tools.archive.recipe import Recipe, build
from visionserve_tools.archive.weights import Weights, load_state_dict, resolve
from visionserve_tools.quality.evaluate import Judgements, measure
from visionserve_tools.quality.labelled import label_of
from visionserve_tools.quality.models import Loaded
from visionserve_tools.quality.statistics import paired_difference

FP32 = HandlerConfig(runtime="openvino")
BF16 = HandlerConfig(runtime="openvino", precision="bf16")
INT8 = HandlerConfig(runtime="openvino", precision="int8", decode="fast")
NO_BF16 = "flags : fpu avx2 avx512f avx512_vnni\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runtimes")


def unpacked(archive: Path, folder: Path, config: HandlerConfig) -> tuple[Runtime, Metadata]:
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(folder)
    metadata = Metadata.load(folder)
    return runtimes.load(folder, metadata, config, None, threads=2), metadata


@pytest.fixture(scope="module")
def fp32(folder: Path, store: Path) -> tuple[Runtime, Metadata]:
    return unpacked(store / f"{REAL}.mar", folder / "fp32", FP32)


@pytest.fixture(scope="module")
def int8(folder: Path, int8_archive: Path) -> tuple[Runtime, Metadata]:
    return unpacked(int8_archive, folder / "int8", INT8)


@pytest.fixture(scope="module")
def classifier() -> FullyConvolutional:
    classifier = FullyConvolutional(REAL, 1000, MODELS[REAL].transforms).eval()
    classifier.network.load_state_dict(
        load_state_dict(resolve(REAL), classifier.network.state_dict())
    )
    return classifier


def pixels(*shape: int) -> NDArray[np.uint8]:
    crops = convert.calibration_samples(photos.packaged()[:1], 320, shape[0])
    return np.concatenate(crops)[:, : shape[1], : shape[2]]


@pytest.mark.parametrize("shape", [(1, 224, 224), (5, 224, 224), (1, 256, 320), (2, 320, 257)])
def test_openvino_equals_pytorch(
    fp32: tuple[Runtime, Metadata], classifier: FullyConvolutional, shape: tuple[int, ...]
) -> None:
    batch = pixels(*shape)
    with torch.inference_mode():
        expected = classifier(torch.from_numpy(batch)).numpy()
    found = fp32[0](batch)
    assert found.dtype == np.float32 and found.shape == (shape[0], 1000)
    assert np.abs(found - expected).max() < 1e-4
    assert np.allclose(found.sum(axis=1), 1, atol=1e-5)


def test_a_result_outlives_the_next_inference(fp32: tuple[Runtime, Metadata]) -> None:
    first = fp32[0](pixels(1, 224, 224))
    kept = first.copy()
    fp32[0](255 - pixels(1, 224, 224))
    assert np.array_equal(first, kept)


def test_fp16_without_cuda_runs_on_the_cpu(tmp_path: Path, random_weights: Path) -> None:
    metadata = Metadata(
        architecture="resnet18",
        weights="random",
        weights_sha256="",
        artifact=random_weights.name,
        transforms=MODELS["resnet18"].transforms,
        categories=IMAGENET_CATEGORIES,
    )
    config = HandlerConfig(runtime="pytorch", precision="fp16")
    half = runtimes.load(random_weights.parent, metadata, config, None, 1)
    full = runtimes.load(random_weights.parent, metadata, HandlerConfig(runtime="pytorch"), None, 1)
    assert np.array_equal(half(pixels(1, 224, 224)), full(pixels(1, 224, 224)))


@pytest.mark.skipif(not multiplies_bf16(), reason="this processor does not multiply BF16")
def test_bf16_is_as_close_to_fp32_as_pytorchs_own(fp32: tuple[Runtime, Metadata]) -> None:
    """From the files of FP32, in one window and several; maps and the last layer stay FP32's."""
    exact, metadata = fp32
    assert isinstance(exact, OpenVINORuntime) and exact.precision == "fp32"
    runtime = runtimes.load(exact._artifact.parent, metadata, BF16, None, threads=2)
    assert runtime.precision == "bf16"
    network = FullyConvolutional(REAL, 1000, metadata.transforms).eval()
    network.network.load_state_dict(load_state_dict(resolve(REAL), network.network.state_dict()))
    network.freeze(torch.bfloat16)
    for batch in (pixels(15, 224, 224), pixels(4, 256, 320)):
        expected, found = exact.passed(batch), runtime.passed(batch)
        with torch.inference_mode():
            theirs = network(torch.from_numpy(batch)).numpy()
        best = expected.probabilities.argmax(axis=1)[:, np.newaxis]
        ours, pytorchs = (
            np.abs(np.take_along_axis(one - expected.probabilities, best, axis=1)).mean()
            for one in (found.probabilities, theirs)
        )
        assert 1e-4 < ours <= 0.012 and ours <= 1.5 * pytorchs
        assert np.abs(found.probabilities.sum(axis=1) - 1).max() < 1e-5
        assert found.features is not None and expected.features is not None
        products = (found.features * expected.features).sum(axis=1)
        lengths = [np.linalg.norm(one, axis=1) for one in (found.features, expected.features)]
        assert (products / np.prod(lengths, axis=0)).mean() > 0.995
    assert np.array_equal(runtime.contributions(batch[:1]), exact.contributions(batch[:1]))
    assert all(map(np.array_equal, runtime.linear(), exact.linear()))


@pytest.mark.parametrize("wanted", ["bf16", "auto"])
def test_without_bf16_the_same_files_compute_in_fp32_and_say_so(
    fp32: tuple[Runtime, Metadata],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    wanted: Wanted,
) -> None:
    exact, metadata = fp32
    assert isinstance(exact, OpenVINORuntime)
    (tmp_path / "cpuinfo").write_text(NO_BF16)
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    folder = exact._artifact.parent
    (folder / FILE).write_text(metadata.model_dump_json())
    config = ModelConfig(handler=HandlerConfig(runtime="openvino", precision=wanted))
    with caplog.at_level("INFO"):
        classifier = Classifier.from_archive(folder, config, None, "1.0")
    told = "in FP32, as this processor does not multiply BF16 itself (no AMX, no AVX-512 BF16)"
    assert caplog.text.count(f"Precision {wanted}: the model computes {told}.") == 1
    assert classifier.precision == "fp32" and classifier.checked is not None
    described = card("m", "1.0", metadata, config.handler, classifier.precision)
    assert (described["precision"], described["computes"]) == ("fp32", told)
    runtime = runtimes.load(folder, metadata, config.handler, None, threads=2)
    batch = pixels(2, 224, 224)
    assert np.array_equal(runtime(batch), exact(batch))


def test_auto_is_fp32_for_a_model_that_bf16_would_be_too_far_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everywhere; and a model that is to be BF16 is refused."""
    known = {"bf16": Limits(difference=-1, agreement=1), "fp32": proof.LIMITS["fp32"]}
    monkeypatch.setattr(proof, "LIMITS", known)
    monkeypatch.setattr(processor, "multiplies_bf16", lambda: True)
    network, weights = "squeezenet1_1", tmp_path / "weights.pt"
    torch.save(MODELS[network].build(1000).state_dict(), weights)
    given = (network, Weights(weights, "random", ""), IMAGENET_CATEGORIES)
    for wanted in ("auto", "bf16"):
        (folder := tmp_path / wanted).mkdir()
        config = HandlerConfig(runtime="openvino", precision=wanted)
        if wanted == "bf16":
            with pytest.raises(proof.ProofError, match="The bf16 model's probabilities"):
                convert.convert(*given, config, photos.packaged()[:1], folder)
            continue
        metadata = convert.convert(*given, config, photos.packaged()[:1], folder)
        assert "too far off" in capsys.readouterr().err
        assert not metadata.bf16 and metadata.proof and metadata.proof.precision == "fp32"
        assert metadata.self_check and metadata.self_check.difference < 0.012
        assert runtimes.load(folder, metadata, config, None, threads=1).precision == "fp32"


# Shows a model the four sizes that nearly all photographs have, three times, and prints how many
# files were written to its folder in each round.
ROUNDS = """
import os, sys
from pathlib import Path
import numpy as np
from visionserve.runtimes.openvino import OpenVINORuntime
runtime = OpenVINORuntime(Path(sys.argv[1]), 224, 1, features=True)
written = [0]
for _ in range(3):
    for height, width in ((224, 224), (256, 256), (256, 320), (320, 256)):
        runtime.passed(np.zeros((1, height, width, 3), np.uint8))
    written.append(len(os.listdir()))
print(*np.diff(written).tolist())
"""


def test_an_int8_resnet18_has_at_most_12_mb_and_keeps_the_kernels_of_four_sizes(
    tmp_path: Path, random_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An archive's size depends neither on the samples nor on how close it comes."""
    monkeypatch.setattr(convert, "SAMPLES", 2)
    monkeypatch.setattr(convert, "CLOSE", 1)
    config, cat = write_config(tmp_path, precision="int8"), photos.greeting()
    recipe = Recipe("resnet18", "small", "1.0", config, random_weights, calibration=cat.parent)
    archive = build(recipe, tmp_path / "store")
    assert archive.stat().st_size <= 12_000_000
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(tmp_path)
    behind_nothing(openvino.Core().read_model(tmp_path / "model.xml"))
    (kernels := tmp_path / "kernels").mkdir()
    dumps = os.environ | {"ONEDNN_JIT_DUMP": "1"}  # oneDNN writes each kernel that it makes.
    command = [sys.executable, "-c", ROUNDS, str(tmp_path / "model.xml")]
    done = subprocess.run(command, cwd=kernels, env=dumps, capture_output=True, text=True)
    first, *later = map(int, done.stdout.splitlines()[-1].split())
    assert first > 60 and later == [0, 0], done.stderr


@cache
def drawn(crop: int) -> tuple[FullyConvolutional, Any]:
    """The smallest network with ten classes, and its OpenVINO model."""
    torch.manual_seed(0)
    transforms = Transforms(resize=crop, crop=crop)
    module = FullyConvolutional(SMALL, 10, transforms).eval().requires_grad_(False)
    return module, convert.to_openvino(module, crop)


@pytest.mark.parametrize(
    ("close", "spoiled", "tries", "quantized"), [(1, 0, 1, 26), (0, 0, 2, 25), (0, 1, 2, 26)]
)
def test_of_two_tries_the_closer_one_is_written(
    close: float,
    spoiled: int,
    tries: int,
    quantized: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The whole model, and if it is not close another one, whose first convolution stays in FP32.

    One of them is spoiled by samples without light.
    """
    (module, model), quantize = drawn(64), convert.quantize
    spared: list[list[str]] = []

    def spoiling(model: Any, samples: Any, names: list[str], half_range: bool) -> Any:
        spared.append(names)
        dark = [0 * sample for sample in samples] if len(spared) == spoiled + 1 else samples
        return quantize(model, dark, names, half_range)

    monkeypatch.setattr(convert, "SAMPLES", 2)
    monkeypatch.setattr(convert, "CLOSE", close)
    monkeypatch.setattr(convert, "quantize", spoiling)
    metadata = Metadata(
        architecture=SMALL,
        weights="",
        weights_sha256="",
        artifact="model.xml",
        transforms=Transforms(resize=64, crop=64),
        categories=tuple("abcdefghij"),
        explains=False,
    )
    cat = [photos.greeting()]
    reference = proof.refer(module, [photos.read(cat[0])], metadata.transforms)
    convert._search(model, cat, tmp_path, metadata, INT8, reference)
    assert [len(names) for names in spared] == [0, 1][:tries]
    assert (tmp_path / "model.xml").read_text().count('"i8"') == quantized


def test_int8_probabilities_are_those_of_fp32(
    fp32: tuple[Runtime, Metadata], int8: tuple[Runtime, Metadata]
) -> None:
    """On crops that are larger than those of the calibration, one window and several."""
    for batch in (pixels(20, 224, 224), pixels(8, 320, 320)):
        exact, rounded = fp32[0](batch), int8[0](batch)
        assert np.abs(rounded.sum(axis=1) - 1).max() < 1e-3
        best = exact.argmax(axis=1)[:, np.newaxis]
        difference = np.take_along_axis(rounded - exact, best, axis=1)
        assert np.abs(difference).mean() < 0.06


def behind_nothing(model: Any) -> list[Any]:
    """Return a model's operations before its last linear layer, behind which none is quantized."""
    operations: list[Any] = model.get_ordered_ops()
    kinds = [operation.get_type_name() for operation in operations]
    last = max(index for index, kind in enumerate(kinds) if kind == "MatMul")
    assert "FakeQuantize" in kinds[:last] and "FakeQuantize" not in kinds[last:]
    return operations[:last]


def test_nothing_behind_the_linear_layer_is_quantized() -> None:
    """EfficientNet-B0 has means of its own, in squeeze-and-excitation, which are quantized."""
    name = "efficientnet_b0"
    module = FullyConvolutional(name, 10, MODELS[name].transforms).eval()
    samples = convert.calibration_samples(photos.packaged()[:1], 224, 2)
    model = convert.quantize(convert.to_openvino(module, 224), samples, [], False)
    squeezed = [o for o in behind_nothing(model) if o.get_type_name() == "ReduceMean"]
    sources = {o.input_value(0).get_node().get_type_name() for o in squeezed}
    assert len(squeezed) == 16 and sources == {"FakeQuantize"}


@pytest.mark.parametrize("half_range", [False, True])
def test_weights_of_half_the_range_fit_processors_without_vnni(half_range: bool) -> None:
    samples = convert.calibration_samples(photos.packaged()[:1], 64, 2)
    weights = [
        np.abs(operation.data.astype(int)).max()
        for operation in convert.quantize(drawn(64)[1], samples, [], half_range).get_ordered_ops()
        if operation.get_type_name() == "Constant"
        and operation.get_element_type().get_type_name() == "i8"
    ]
    assert len(weights) == 26
    assert (max(weights) <= 64) == half_range


@pytest.fixture(scope="module")
def judged(
    fp32: tuple[Runtime, Metadata], int8: tuple[Runtime, Metadata], samples: list[Path]
) -> tuple[Judgements, Judgements]:
    """Of FP32, and of INT8 with fast decode, on half of the photographs, one crop each."""
    ways = {"fp32": Loaded(*fp32, FP32), "int8": Loaded(*int8, INT8)}
    photographs = [(path, label_of(path, 1000)) for path in samples[::2]]
    exact, rounded = measure(ways, photographs, ["none"]).values()
    return exact, rounded


def test_int8_with_fast_decode_answers_as_fp32_does(judged: tuple[Judgements, Judgements]) -> None:
    """Calibrated with the packaged ten photographs, and judged on 250, 0.4 points each."""
    exact, int8 = judged
    assert exact.right.mean() > 0.85
    difference, width, _ = paired_difference(int8.right, exact.right)
    assert difference >= -0.006 and difference + width >= 0
    assert abs(int8.confident.mean() - exact.confident.mean()) <= 0.05
    assert np.abs(int8.difference).mean() <= (0.03 if overflows() else 0.025)


def test_dense_tta_is_no_worse_than_one_crop(
    fp32: tuple[Runtime, Metadata], judged: tuple[Judgements, Judgements], samples: list[Path]
) -> None:
    photographs = [(path, label_of(path, 1000)) for path in samples[::6]]
    (dense,) = measure({"fp32": Loaded(*fp32, FP32)}, photographs, ["dense"]).values()
    difference, width, _ = paired_difference(dense.right, judged[0].right[::3])
    assert difference + width >= 0


def test_the_same_calibration_gives_the_same_crops() -> None:
    first = convert.calibration_samples(photos.packaged(), 224, 30)
    again = convert.calibration_samples(photos.packaged(), 224, 30)
    assert len(first) == 30 and first[0].shape == (1, 224, 224, 3)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_an_openvino_worker_imports_no_torch_of_its_own() -> None:
    code = """
import sys
import visionserve.classifier, visionserve.page, visionserve.inputs
import visionserve.runtimes.openvino
print(sorted({"torch", "torchvision", "nncf"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_openvinos_converter_sends_nothing() -> None:
    """It has a stub in place of the package that forks a process for each event."""
    from openvino.tools.ovc import convert_impl, telemetry_utils

    assert convert_impl.tm is telemetry_utils.tm
    assert telemetry_utils.tm.__name__ == "openvino.tools.ovc.telemetry_stub"


def test_a_plain_prediction_computes_no_map(fp32: tuple[Runtime, Metadata]) -> None:
    """The model of the map is another one, which an explanation compiles."""
    assert isinstance(fp32[0], OpenVINORuntime)
    runtime = OpenVINORuntime(fp32[0]._artifact, 224, threads=2, features=True)
    runtime(pixels(1, 224, 224))
    assert "_mapping_request" not in vars(runtime)
    runtime.contributions(pixels(1, 224, 224))
    assert runtime._mapping_request is not runtime._request
    assert len(runtime._request.get_compiled_model().outputs) == 2


def test_features_leave_the_probabilities_as_they_are(
    fp32: tuple[Runtime, Metadata], int8: tuple[Runtime, Metadata]
) -> None:
    """To the bit, for one window and several; INT8's features are nearly those of FP32."""
    for shape in ((2, 224, 224), (1, 256, 320)):
        batch, features = pixels(*shape), []
        for runtime, _ in (fp32, int8):
            assert isinstance(runtime, OpenVINORuntime)
            passed = runtime.passed(batch)
            plain = OpenVINORuntime(runtime._artifact, 224, threads=2).passed(batch)
            assert plain.features is None and passed.features is not None
            assert np.array_equal(passed.probabilities, plain.probabilities)
            features.append(passed.features / np.linalg.norm(passed.features, axis=1)[:, None])
        assert (features[0] * features[1]).sum(axis=1).min() > 0.9


def test_contributions_add_up_to_the_logits(fp32: tuple[Runtime, Metadata]) -> None:
    network = MODELS[REAL].build(1000).eval()
    network.load_state_dict(load_state_dict(resolve(REAL), network.state_dict()))
    batch = pixels(2, 224, 224)
    scaled = (torch.from_numpy(batch).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    with torch.inference_mode():
        logits = network(scaled).numpy()
    found = fp32[0].contributions(batch)
    assert found.shape == (2, 7, 7, 1000)
    bias = network.get_parameter("_fc.bias").detach().numpy()
    assert np.abs(found.mean(axis=(1, 2)) + bias - logits).max() < 1e-3


def test_the_map_of_int8_is_that_of_fp32(
    fp32: tuple[Runtime, Metadata], int8: tuple[Runtime, Metadata], samples: list[Path]
) -> None:
    correlations = []
    for path in samples[::20]:
        image = decode(Image.open(path), fp32[1].transforms, "exact")
        view = to_views(image, fp32[1].transforms, "exact", "none").stacked()
        best = int(fp32[0](view)[0].argmax())
        maps = [runtime.contributions(view)[0, ..., best].ravel() for runtime, _ in (fp32, int8)]
        correlations.append(np.atleast_2d(np.corrcoef(np.stack(maps)))[0, 1])
    assert min(correlations) > 0.9 and np.median(correlations) > 0.95
