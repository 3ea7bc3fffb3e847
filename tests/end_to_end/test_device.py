"""PyTorch's path to a device: on the CPU, and on CUDA where there is one."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, functional

from tests.bench import device as bench
from tests.helpers import REAL, encode
from visionserve import tta
from visionserve.answer import Outcome
from visionserve.classifier import Classifier
from visionserve.config import TTA, HandlerConfig, Options
from visionserve.errors import RequestError
from visionserve.item import Item
from visionserve.metadata import Metadata
from visionserve.models import IMAGENET_CATEGORIES, MODELS, FullyConvolutional
from visionserve.preprocessing import decode, to_views
from visionserve.runtimes.pytorch import BUCKETS, PyTorchRuntime
from visionserve.runtimes.transfer import Transfer
from visionserve_tools import photos
from visionserve_tools.archive.weights import load_state_dict, resolve

MODES: tuple[TTA, ...] = get_args(TTA)
CPU = torch.device("cpu")
MODEL = MODELS[REAL]
CROP = 112
# Half of the model's own sizes, so that a pass takes a quarter of the time.
TRANSFORMS = MODEL.transforms.model_copy(update={"resize": 128, "crop": CROP})
METADATA = Metadata(
    architecture=REAL,
    weights="packaged",
    weights_sha256="",
    artifact="model.pt",
    transforms=TRANSFORMS,
    categories=IMAGENET_CATEGORIES,
)

Start = Callable[..., PyTorchRuntime]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """The plain network, untouched by this project."""
    plain = MODEL.build(1000).eval()
    plain.load_state_dict(load_state_dict(resolve(REAL), plain.state_dict()))
    return plain


@pytest.fixture(scope="module")
def start(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Loads the network as a worker does."""
    artifact = tmp_path_factory.mktemp("device") / METADATA.artifact
    torch.save(network.state_dict(), artifact)

    def started(
        gpu_id: int | None = None, half: bool = False, metadata: Metadata = METADATA
    ) -> PyTorchRuntime:
        return PyTorchRuntime(artifact, metadata, gpu_id, half, threads=1)

    return started


@pytest.fixture(scope="module")
def runtime(start: Start) -> PyTorchRuntime:
    return start()


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    """Photographs of several shapes, a panorama among them whose crops share no pixel."""
    sizes = [(300, 401), (128, 128), (1000, 131), (341, 257)]
    found = photos.packaged()
    opened = [Image.open(found[i % len(found)]).convert("RGB") for i in range(len(sizes))]
    return [image.resize(size) for image, size in zip(opened, sizes, strict=True)]


def by_torchvision(network: nn.Module, image: Image.Image, mode: TTA) -> NDArray[np.float32]:
    """Answer an image with torchvision's own transforms and the plain network, crop by crop."""
    small = functional.resize(image, [TRANSFORMS.resize], InterpolationMode.BICUBIC)
    cuts: dict[TTA, Callable[[], Sequence[Image.Image]]] = {
        "none": lambda: [functional.center_crop(small, [CROP])],
        "five_crop": lambda: functional.five_crop(small, [CROP]),
        "ten_crop": lambda: functional.ten_crop(small, [CROP]),
    }
    batch = torch.stack([functional.to_tensor(crop) for crop in cuts[mode]()])
    with torch.inference_mode():
        logits = network(functional.normalize(batch, [0.5] * 3, [0.5] * 3))
    averaged: NDArray[np.float32] = logits.softmax(-1).mean(0).numpy()
    return averaged


def densely(image: Image.Image) -> NDArray[np.float32]:
    """Answer an image with the module that is not frozen; other tests prove that form itself."""
    module = FullyConvolutional(REAL, 1000, TRANSFORMS).eval()
    module.network.load_state_dict(load_state_dict(resolve(REAL), module.network.state_dict()))
    views = to_views(image, TRANSFORMS, "exact", "dense").stacked()
    with torch.inference_mode():
        found: NDArray[np.float32] = module(torch.from_numpy(views)).numpy()[0]
    return found


@pytest.fixture(scope="module")
def expected(
    network: nn.Module, images: list[Image.Image]
) -> dict[tuple[int, TTA], NDArray[np.float32]]:
    return {
        (index, mode): densely(image) if mode == "dense" else by_torchvision(network, image, mode)
        for index, image in enumerate(images)
        for mode in MODES
    }


def distribution(answer: Outcome) -> NDArray[np.float32]:
    assert isinstance(answer, dict)
    found = np.zeros(1000, np.float32)
    for prediction in answer["predictions"]:
        found[prediction["class_id"]] = prediction["probability"]
    return found


def test_groups_are_summed_up_on_the_device(
    start: Start, runtime: PyTorchRuntime, images: list[Image.Image]
) -> None:
    """Their probabilities, and their classes' maps by each one's share of these."""
    odd, even = (tuple(range(first, 1000, 2)) for first in (1, 0))
    groups = {"categories": ("odd", "even"), "groups": (odd, even)}
    grouped = start(metadata=METADATA.model_copy(update=groups))
    for mode in ("none", "dense"):
        views = to_views(images[0], TRANSFORMS, "exact", mode)
        classes, found = (one.averaged([views]).probabilities[0] for one in (runtime, grouped))
        maps, of_groups = (one.contributions(views.stacked())[0] for one in (runtime, grouped))
        for group, members in enumerate((odd, even)):
            assert abs(found[group] - classes[list(members)].sum()) < 1e-6
            mean = np.average(maps[..., members], axis=-1, weights=classes[list(members)])
            assert np.abs(of_groups[..., group] - mean).max() < 1e-4


@pytest.mark.parametrize("count", [1, 7, 33])
def test_a_batch_is_answered_as_by_torchvision(
    count: int,
    runtime: PyTorchRuntime,
    images: list[Image.Image],
    expected: dict[tuple[int, TTA], NDArray[np.float32]],
) -> None:
    """Modes and shapes mixed, every fifth image broken, all 1,000 probabilities compared."""
    config = HandlerConfig(runtime="pytorch")
    one = Classifier(runtime, METADATA, config, "1.0", decoders=2)
    keys = [*itertools.product(range(len(images)), MODES)]
    asked = [keys[7 * turn % len(keys)] for turn in range(count)]
    items = [
        Item(b"broken" if turn % 5 == 3 else encode(images[index]), Options(tta=mode, top_k=1000))
        for turn, (index, mode) in enumerate(asked)
    ]
    for turn, (key, answer) in enumerate(zip(asked, one.classify(items), strict=True)):
        if turn % 5 == 3:
            assert isinstance(answer, RequestError) and answer.code == "unsupported_format"
        else:
            assert np.abs(distribution(answer) - expected[key]).max() < 1e-5, key


@pytest.mark.parametrize("mode", MODES)
def test_images_of_one_mode_share_a_pass(
    mode: TTA,
    runtime: PyTorchRuntime,
    images: list[Image.Image],
    expected: dict[tuple[int, TTA], NDArray[np.float32]],
) -> None:
    chosen = range(1) if mode == "dense" else range(len(images))
    views = [to_views(images[index], TRANSFORMS, "exact", mode) for index in chosen]
    found, features = runtime.averaged(views)
    assert found.dtype == np.float32 and found.shape == (len(views), 1000)
    assert features is not None and features.dtype == np.float32
    for index in chosen:
        assert np.abs(found[index] - expected[index, mode]).max() < 1e-5
        alone = runtime.averaged(views[index : index + 1]).features
        assert alone is not None and np.allclose(features[index], alone[0], atol=1e-5)


def test_no_batch_norm_is_left(runtime: PyTorchRuntime) -> None:
    layers = [*runtime._module.modules()]
    assert any(isinstance(layer, nn.Conv2d) for layer in layers)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in layers)


def noise(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("mode", MODES)
def test_what_is_cut_on_the_device_is_what_is_cut_on_the_host(mode: TTA) -> None:
    """Images of several widths in one buffer, which held another batch before."""
    transfer = Transfer(32, 1024**2, CPU)
    transfer.send([tta.cut(noise(256, 256, 3), "ten_crop", 224)] * 3)
    sides = [(256, 341)] if mode == "dense" else [(256, 341), (300, 256), (256, 2000)]
    images = [tta.cut(noise(*side, 3), mode, 224) for side in sides]
    transfer.send(images)
    stacked = np.concatenate([views.stacked() for views in images])
    assert np.array_equal(transfer.cut(len(stacked), images[0].shape).numpy(), stacked)
    probabilities = torch.rand(len(stacked), 5)
    averages = transfer.average(probabilities, len(images)).numpy()
    split = np.split(probabilities.numpy(), len(images))
    assert np.allclose(averages, [of_image.mean(axis=0) for of_image in split], atol=1e-6)


def test_views_share_pixels_where_that_takes_less_memory() -> None:
    photograph, panorama = noise(256, 341, 3), noise(256, 12_800, 3)
    for mode in ("five_crop", "ten_crop"):
        shared = tta.cut(photograph, mode, 224)
        assert shared.pixels.shape == photograph.shape
        assert tta.cut(panorama, mode, 224).pixels.nbytes == shared.size
    assert tta.cut(photograph, "none", 224).pixels.shape == (224, 224, 3)


def test_batches_fit_the_buffer_and_keep_their_order() -> None:
    transfer = Transfer(32, 32 * 224**2, CPU)
    crops = [tta.cut(noise(224, 224, 3), "none", 224) for _ in range(33)]
    large = [tta.cut(noise(1024, 1024, 3), "dense", 224) for _ in range(3)]
    tens = [tta.cut(noise(256, 341, 3), "ten_crop", 224) for _ in range(4)]
    for images, counts in ((crops, [32, 1]), (large, [1, 1, 1]), (tens, [3, 1]), (tens[:1], [1])):
        batches = [*transfer.batches(images)]
        assert [len(batch) for batch in batches] == counts
        assert [id(one) for batch in batches for one in batch] == [id(one) for one in images]


@pytest.mark.parametrize("mode", MODES)
def test_the_benchmark_counts_what_it_classifies(mode: TTA) -> None:
    """A device that waits 0.1 s for 32 crops cannot be faster: 150,528 bytes a crop."""
    images = bench.photographs(2)
    one, two = bench.compare(bench.Simulated(0.1), [1, 2], images, mode, 0.01)
    views = {"none": 1, "five_crop": 5, "ten_crop": 10, "dense": 256 * 320 / 224**2}[mode]
    for row in (one, two):
        assert (row["tta"], row["batch"]) == (mode, 2) and 0 < row["utilization"] <= 1
        assert row["images_per_s"] <= 320 / views and row["device_alone"] <= 320 / views
        assert row["ms"].keys() >= {"validate", "decode", "preprocess", "infer"}
    assert one["ratio"] == 1 and (one["decoders"], two["decoders"]) == (1, 2)


def test_rounds_are_summed_up_by_their_medians() -> None:
    """Three rounds with one decoder and with two: rates, and those of both halves alone."""
    rates = [
        [(100, 200, 900), (300, 400, 600)],
        [(200, 250, 900), (220, 440, 200)],
        [(150, 200, 900), (240, 480, 300)],
    ]
    keys = ("images_per_s", "decoders_alone", "device_alone")
    one, two = bench.summarize([[dict(zip(keys, row, strict=True)) for row in r] for r in rates])
    assert one == {**dict(zip(keys, (150, 200, 900), strict=True)), "ratio": 1, "share": 0.75}
    assert two == {**dict(zip(keys, (240, 440, 300), strict=True)), "ratio": 1.6, "share": 0.8}


def test_the_benchmark_compares_with_the_slower_half() -> None:
    """One device takes 12.5 ms a crop, the other none: no decoder is as slow or as quick."""
    images = bench.photographs(8)
    (slow,) = bench.compare(bench.Simulated(0.4), [2], images, "none", 0.01)
    assert slow["device_alone"] < slow["decoders_alone"] and 0.2 < slow["share"] < 2
    (quick,) = bench.compare(bench.Simulated(0), [2], images, "none", 0.01)
    assert quick["decoders_alone"] < quick["device_alone"] and 0.2 < quick["share"] < 2


class Hungry(nn.Conv2d):
    """A convolution that takes a petabyte for anything but a crop."""

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-1] != 224:
            if images.device == CPU:
                raise torch.cuda.OutOfMemoryError("no petabyte")
            torch.empty(2**50, dtype=torch.uint8, device=images.device)
        return super().forward(images)


class Waiting(nn.Conv2d):
    """A convolution that waits for the device, as no recording may."""

    def forward(self, images: Tensor) -> Tensor:
        images.sum().item()
        return super().forward(images)


def resnet18_with(first: type[nn.Conv2d]) -> Any:
    def build(classes: int) -> nn.Module:
        torch.manual_seed(0)
        network = MODELS["resnet18"].build(classes)
        network.conv1 = first(3, 64, 7, 2, 3, bias=False)
        return network

    return replace(MODELS["resnet18"], build=build)


def altered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, first: type[nn.Conv2d], gpu_id: int | None
) -> tuple[PyTorchRuntime, Metadata]:
    """Load a ResNet-18 whose first convolution is another one."""
    monkeypatch.setitem(MODELS, "altered", resnet18_with(first))
    transforms = MODELS["altered"].transforms
    metadata = METADATA.model_copy(update={"architecture": "altered", "transforms": transforms})
    torch.save(MODELS["altered"].build(1000).state_dict(), tmp_path / METADATA.artifact)
    runtime = PyTorchRuntime(tmp_path / METADATA.artifact, metadata, gpu_id, False, threads=1)
    return runtime, metadata


@pytest.fixture(scope="session")
def cuda() -> int:
    """The index of a CUDA device."""
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device: nothing of CUDA is tested here")
    return 0


DEVICES = [None, pytest.param(0, marks=pytest.mark.cuda)]


@pytest.mark.parametrize("gpu_id", DEVICES, ids=["cpu", "cuda"])
def test_out_of_memory_is_the_error_of_its_pass_alone(
    gpu_id: int | None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    if gpu_id is not None:
        request.getfixturevalue("cuda")
    runtime, metadata = altered(monkeypatch, tmp_path, Hungry, gpu_id)
    one = Classifier(runtime, metadata, HandlerConfig(runtime="pytorch"), "1.0")
    data = encode(Image.fromarray(noise(300, 400, 3)))
    alone = [one.classify([Item(data, Options(tta=mode))])[0] for mode in ("none", "five_crop")]
    modes: tuple[TTA, ...] = ("none", "dense", "five_crop")
    for _ in range(2):
        crop, dense, crops = one.classify([Item(data, Options(tta=mode)) for mode in modes])
        assert isinstance(dense, RequestError)
        assert (dense.status, dense.code) == (507, "internal_error")
        for found, expected in zip((crop, crops), alone, strict=True):
            assert np.allclose(distribution(found), distribution(expected), atol=1e-5)
    one.classify([Item(data, Options())])
    assert one.failures == 0


@pytest.mark.cuda
def test_fp16_answers_as_fp32_does(cuda: int, start: Start, samples: list[Path]) -> None:
    half, full = start(cuda, half=True), start()
    modes: tuple[TTA, ...] = ("none", "five_crop")
    views = [
        to_views(decode(Image.open(path), TRANSFORMS, "fast"), TRANSFORMS, "fast", mode)
        for mode in modes
        for path in samples[::5]
    ]
    found = np.concatenate([half.averaged([of]).probabilities for of in views])
    exact = np.concatenate([full.averaged([of]).probabilities for of in views])
    best = exact.argmax(axis=1)
    rows = np.arange(len(views))
    assert (found.argmax(axis=1) == best).mean() >= 0.99
    assert np.abs(found[rows, best] - exact[rows, best]).mean() <= 0.01


@pytest.mark.cuda
@pytest.mark.parametrize("half", [False, True])
def test_a_graph_answers_as_the_eager_module_does(
    half: bool, cuda: int, start: Start, images: list[Image.Image]
) -> None:
    """Batches of each bucket, filled up or not, one after another through one buffer."""
    runtime = start(cuda, half)
    assert set(runtime.graphs) == set(BUCKETS)
    asked: list[tuple[TTA, int]] = [("ten_crop", 3), ("none", 1), ("five_crop", 2), ("none", 3)]
    batches = [
        [to_views(image, TRANSFORMS, "exact", mode) for image in images[:count]]
        for mode, count in asked
    ]
    recorded = [runtime.averaged(batch) for batch in batches]
    runtime.graphs = {}
    for batch, found in zip(batches, recorded, strict=True):
        for graphs, eager in zip(found, runtime.averaged(batch), strict=True):
            assert graphs is not None and eager is not None
            assert np.abs(graphs - eager).max() < (0.01 if half else 1e-4)


@pytest.mark.cuda
def test_a_module_that_cannot_be_recorded_runs_eagerly(
    cuda: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    runtime, _ = altered(monkeypatch, tmp_path, Waiting, cuda)
    assert not runtime.graphs and "the model runs eagerly" in caplog.text
    plain, _ = altered(monkeypatch, tmp_path, Waiting, None)
    crops = noise(3, 224, 224, 3)
    assert np.abs(runtime(crops) - plain(crops)).max() < 1e-3


@pytest.mark.cuda
def test_a_worker_keeps_to_its_device(cuda: int, start: Start) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one CUDA device alone")
    crops = noise(3, CROP, CROP, 3)
    first = start(cuda)(crops)
    before = torch.cuda.memory_allocated(cuda)
    second = start(cuda + 1)
    assert np.abs(second(crops) - first).max() < 1e-4
    assert {weight.device.index for weight in second._module.parameters()} == {cuda + 1}
    assert torch.cuda.memory_allocated(cuda) <= before
