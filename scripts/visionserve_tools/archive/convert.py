"""Convert a trained network to the files that a runtime loads, and prove them against PyTorch."""

import itertools
import logging
import math
import random
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from visionserve.workarounds import torchvision_compiler  # noqa: F401

# isort: split

from torchvision.transforms import RandomResizedCrop

from visionserve import processor, runtimes
from visionserve.classifier import Classifier
from visionserve.config import Activation, CacheConfig, HandlerConfig, Precision
from visionserve.metadata import Metadata, Proof, Transforms
from visionserve.models import MODELS, FullyConvolutional
from visionserve.processor import overflows
from visionserve.runtimes import Runtime
from visionserve_tools import photos
from visionserve_tools.archive import alternatives, plain, proof, self_check, serving
from visionserve_tools.archive.declared import one_channel
from visionserve_tools.archive.expected import Expected
from visionserve_tools.archive.thresholds import of as thresholds_of
from visionserve_tools.archive.weights import (
    ClassCountError,
    Weights,
    WeightsError,
    load_state_dict,
)

SAMPLES = 300
TILES = (1, 2, 3)
SEED = 0
# If a model that is quantized as a whole differs from FP32 by more than CLOSE in the mean, its
# first convolutions may stay in FP32: at most three, with at most a tenth of all multiplications,
# so that the model stays fast.
CLOSE = 0.018
MOST_SPARED = 3
LARGEST_SHARE = 0.1
# FP32 and FP16 differ from PyTorch only by rounding, which a few photographs show well enough.
EXACT: tuple[Precision, ...] = ("fp32", "fp16")
EXACT_PHOTOGRAPHS = 3
LARGEST_PROOF = 30
FORM_DIFFERENCE = 1e-4


def convert(
    architecture: str,
    weights: Weights,
    categories: tuple[str, ...],
    config: HandlerConfig,
    photographs: Sequence[Path],
    directory: Path,
    transforms: Transforms | None = None,
    expected: Expected | None = None,
    groups: Sequence[Sequence[int]] = (),
    activation: Activation = "softmax",
    thresholds: Sequence[float] = (),
) -> Metadata:
    """Write a model for a runtime and precision, and prove that its probabilities match PyTorch's.

    Args:
        architecture: a key of `MODELS`.
        weights: a file of weights for that architecture.
        categories: labels in class-index order; with groups, the groups' names.
        config: gives the `runtime` and `precision`.
        photographs: images to calibrate INT8 with and to prove the model on; `divide` splits them.
        directory: where to write the model's files.
        transforms: the preprocessing; None for the registry's.
        expected: the owner's own predictions, if there are any.
        groups: the classes that each category is the sum of, by index; none where the categories
            are the network's classes.
        activation: what follows the network.
        thresholds: of a multi-label model, in class-index order; as `thresholds.of` takes them.

    Returns:
        The archive's metadata about the model, with the name of its file, the proof and the
        comparison.

    Raises:
        WeightsError: the weights do not fit the architecture.
        ExpectationError: the weights or the archive's answers are not those that the owner expects.
        ProofError: the model's probabilities differ too much from PyTorch's.
        ValueError: a photograph cannot be read, which the message names; or thresholds are given
            for a model that is not multi-label.
    """
    module, transforms = _load_head(
        *(architecture, weights, categories),
        *(transforms or MODELS[architecture].transforms, groups, activation),
    )
    metadata = Metadata(
        architecture=architecture,
        weights=weights.source,
        weights_sha256=weights.sha256,
        artifact="model.pt" if config.runtime == "pytorch" else "model.xml",
        transforms=transforms,
        categories=categories,
        groups=tuple(map(tuple, groups)),
        activation=module.activation,
        thresholds=thresholds_of(module.activation, thresholds, len(categories)),
        dense=module.dense,
        explains=module.linear is not None,
        half_range=config.precision == "int8" and overflows(),
    )
    check_form(module, transforms, groups)
    if expected:
        alternatives.check(
            *(plain.grouped(module.network, groups), transforms, categories, expected, config),
            *(module.activation, metadata.thresholds),
        )
    calibration, judges = divide(photographs)
    runs = processor.precision(config.precision)
    if runs in EXACT:
        judges = judges[:EXACT_PHOTOGRAPHS]
    pictures = [photos.read(path) for path in judges]
    reference = proof.refer(module, pictures, transforms, groups)
    if config.runtime == "pytorch":
        torch.save(module.network.state_dict(), directory / metadata.artifact)
        proved = _prove(directory, metadata, config, reference)
    elif config.precision == "int8":
        model = to_openvino(module, transforms.crop)
        proved = _search(model, calibration, directory, metadata, config, reference)
    else:
        save(to_openvino(module, transforms.crop), directory / metadata.artifact)
        proved = _prove(directory, metadata, config, reference)
        if config.precision == "auto" and not proof.is_close(proved, runs, module.activation):
            print(
                f"In BF16, {proof.describe(proved, module.activation)}: too far off, so that the "
                "archive computes in FP32 on every processor.",
                file=sys.stderr,
            )
            metadata, runs = metadata.model_copy(update={"bf16": False}), "fp32"
            proved = _prove(directory, metadata, config, reference)
    proof.check(proved, runs, module.activation)
    network = plain.grouped(module.network, groups)
    with _one_thread():
        runtime = _served(directory, metadata, config)
        loosest = processor.loosest(config.precision, metadata.bf16)
        checked = self_check.write(network, metadata, loosest, runtime, directory)
        metadata = metadata.model_copy(update={"proof": proved, "self_check": checked})
        if expected:
            uncached = config.model_copy(update={"cache": CacheConfig()})
            compared = serving.check(Classifier(runtime, metadata, uncached, ""), expected, config)
            metadata = metadata.model_copy(update={"comparison": compared})
    return metadata


def form(
    architecture: str,
    classes: int,
    transforms: Transforms,
    groups: Sequence[Sequence[int]] = (),
    activation: Activation = "softmax",
) -> FullyConvolutional:
    """Return an untrained network in its fully convolutional form.

    Raises:
        ValueError: it takes no pictures of this size.
    """
    fixed = not MODELS[architecture].any_size and MODELS[architecture].transforms.crop
    if fixed and transforms.crop != fixed:
        raise ValueError(f"{architecture} takes {fixed} × {fixed} pixels alone: give that --crop.")
    try:
        return FullyConvolutional(architecture, classes, transforms, groups, activation).eval()
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"{architecture} cannot take {transforms.crop} × {transforms.crop} pixels "
            f"({str(error).splitlines()[0]})."
        ) from None


def _load_head(
    architecture: str,
    weights: Weights,
    categories: Sequence[str],
    transforms: Transforms,
    groups: Sequence[Sequence[int]],
    activation: Activation,
) -> tuple[FullyConvolutional, Transforms]:
    """Load weights, and give a network of one output and two labels its second output.

    The one output's sigmoid is the second label's probability, as in Keras and scikit-learn, and
    the first label is the complement. Halves of the logit with opposite signs have the same
    softmax: sigmoid(z) = softmax(-z/2, z/2). So such a network is served like any other of two
    classes, and a map of either label shows what speaks for it. A network whose last layer is
    followed by another, as SqueezeNet's by a ReLU, has no maps, and gets softmax(0, z).

    Raises:
        WeightsError, ValueError: as `_load`; or the network has one output, which is no softmax.
    """
    classes = sum(map(len, groups)) or len(categories)
    if activation == "softmax" and classes == 1:
        raise WeightsError(
            f"A softmax of one output is 1 for every picture: give --activation sigmoid for "
            f"{weights.path}."
        )
    try:
        return _load(architecture, weights, classes, transforms, groups, activation)
    except ClassCountError as error:
        if error.classes != 1:
            raise
        if activation == "softmax":
            raise WeightsError(
                f"{weights.path} has one output, whose softmax is 1 for every picture: give "
                "--activation sigmoid, and as --labels what it finds, alone or after its opposite."
            ) from None
        if classes != 2:
            raise
    one, transforms = _load(architecture, weights, 1, transforms, (), activation)
    two = FullyConvolutional(architecture, 2, transforms).eval()
    expected, share = two.network.state_dict(), 0 if two.linear is None else 0.5
    state = {
        name: of if of.shape == expected[name].shape else torch.cat([-share * of, of - share * of])
        for name, of in one.network.state_dict().items()
    }
    two.network.load_state_dict(state)
    no, yes = categories
    print(f"One output and two labels: {yes} is sigmoid(z), {no} its complement.", file=sys.stderr)
    return two.requires_grad_(False), transforms


def _load(
    architecture: str,
    weights: Weights,
    classes: int,
    transforms: Transforms,
    groups: Sequence[Sequence[int]],
    activation: Activation,
) -> tuple[FullyConvolutional, Transforms]:
    """Load weights into their network, which takes grey in three channels, or in one.

    Returns:
        The network, and the transforms with as many means as it takes channels.

    Raises:
        WeightsError: the weights do not fit the architecture. If they would with one channel, the
            message says so.
        ValueError: the network takes no pictures of this size.
    """
    module = form(architecture, classes, transforms, groups, activation)
    try:
        state = load_state_dict(weights, module.network.state_dict(), architecture)
    except WeightsError:
        grey = transforms.model_copy(
            update={"channels": "grey", "mean": (0.0,), "std": (1.0,), "range": "0-1"}
        )
        module = FullyConvolutional(architecture, classes, grey, groups, activation).eval()
        try:
            state = load_state_dict(weights, module.network.state_dict(), architecture)
        except ClassCountError:
            raise
        except WeightsError:
            state = {}
        if not state:
            raise
        if (one := one_channel(transforms)) is None:
            raise WeightsError(
                f"{weights.path}: its network takes one channel, grey: give --channels grey, and "
                "--mean and --std of one number each."
            ) from None
        transforms = one
        module = FullyConvolutional(architecture, classes, one, groups, activation).eval()
    module.network.load_state_dict(state)
    return module.requires_grad_(False), transforms


def check_form(
    module: FullyConvolutional, transforms: Transforms, groups: Sequence[Sequence[int]] = ()
) -> None:
    """Compare the fully convolutional form with the plain network, on two crops of noise.

    Raises:
        ProofError: their probabilities differ by more than `FORM_DIFFERENCE`.
    """
    noise = torch.Generator().manual_seed(SEED)
    shape = (2, transforms.crop, transforms.crop, 3)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=noise)
    with torch.inference_mode():
        images = module.normalize(pixels)
        network = plain.grouped(module.network, groups)
        expected = plain.classify(network, images, module.activation)
        difference = float((module.classify(images) - expected).abs().max())
    if difference > FORM_DIFFERENCE:
        raise proof.ProofError(
            f"The fully convolutional form differs from the plain network by {difference:.1e}."
        )


def divide(photographs: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Split photographs into a part for calibration and a part for the proof.

    A fifth of them, 30 at most, serve the proof alone. Fewer than 20 photographs all serve both,
    because calibration needs each of them, and its random crops do not repeat the proof's views.

    Returns:
        The photographs for calibration, and the photographs for the proof.
    """
    held = min(len(photographs) // 5, LARGEST_PROOF) if len(photographs) >= 20 else 0
    shuffled = random.Random(SEED).sample(photographs, len(photographs))
    return shuffled[held:], shuffled[:held] or list(photographs)


def _prove(
    directory: Path, metadata: Metadata, config: HandlerConfig, reference: proof.Reference
) -> Proof:
    """Load the written model, and prove it."""
    with _one_thread():
        runtime = _served(directory, metadata, config)
        return proof.prove(runtime.passed, reference, metadata.thresholds, runtime.precision)


def _served(directory: Path, metadata: Metadata, config: HandlerConfig) -> Runtime:
    """Load the written model as a worker does; one in FP16 on the GPU if there is one."""
    gpu = 0 if config.precision == "fp16" and torch.cuda.is_available() else None
    return runtimes.load(directory, metadata, config, gpu, 1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Give PyTorch its threads back, of which a loaded model leaves one."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _search(
    model: Any,
    calibration: Sequence[Path],
    directory: Path,
    metadata: Metadata,
    config: HandlerConfig,
    reference: proof.Reference,
) -> Proof:
    """Quantize the whole model, and if it is not `CLOSE`, also with convolutions left in FP32.

    The quantized model that is closer to FP32 is written. More than these two tries would take too
    long.
    """
    crop = metadata.transforms.crop
    samples = calibration_samples(calibration, crop, SAMPLES)
    if metadata.transforms.channels == "grey":
        grey = (photos.in_channels(Image.fromarray(sample[0]), "grey") for sample in samples)
        samples = [np.asarray(image)[np.newaxis] for image in grey]
    candidates: list[tuple[Path, Proof]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for spared in ([], first_convolutions(model, crop)):
            folder = Path(scratch) / str(len(spared))
            folder.mkdir()
            quantized = quantize(model, samples, spared, metadata.half_range)
            save(quantized, folder / metadata.artifact)
            candidates.append((folder, _prove(folder, metadata, config, reference)))
            if candidates[-1][1].mean_difference <= CLOSE:
                break
        chosen, proved = min(candidates, key=lambda candidate: candidate[1].mean_difference)
        shutil.copytree(chosen, directory, dirs_exist_ok=True)
    return proved


def save(model: Any, path: Path) -> None:
    """Write an OpenVINO model without compressing its weights to FP16."""
    import openvino

    openvino.save_model(model, path, compress_to_fp16=False)


def to_openvino(module: FullyConvolutional, crop: int) -> Any:
    """Convert a module to an OpenVINO model for any batch size, and for any image size if dense.

    A function is traced, with the weights as constants, because PyTorch makes a script of each part
    of a traced module, which takes longer than the pass. It does not check the trace by tracing
    twice, because `_prove` compares the probabilities.
    """
    import openvino

    example = torch.zeros(2, crop, crop, 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=FutureWarning)
        module.requires_grad_(False)
        traced = torch.jit.trace(  # type: ignore[no-untyped-call]
            lambda pixels: module(pixels), example, check_trace=False
        )
        return openvino.convert_model(
            traced,
            input=openvino.PartialShape([-1, *([-1, -1] if module.dense else [crop, crop]), 3]),
            example_input=example,
        )


def quantize(
    model: Any,
    samples: Sequence[NDArray[np.uint8]],
    spared: Sequence[str],
    half_range: bool,
) -> Any:
    """Quantize an OpenVINO model to INT8, statically, with NNCF's default preset.

    The weights of each output channel get their own scale; activations get the ranges that they
    have on the samples. The operations after the last linear layer stay in FP32: NNCF would also
    quantize the mean over the windows, and 256 steps over the range of a few photographs are too
    coarse for probabilities.
    Source: https://docs.openvino.ai/2026/openvino-workflow/model-optimization-guide/quantizing-models-post-training.html

    Args:
        model: an OpenVINO model, which is not changed.
        samples: uint8 arrays of shape (1, crop, crop, 3), RGB.
        spared: names of further operations to keep in FP32.
        half_range: whether the weights of all layers use only half of INT8's range, for processors
            on which `visionserve.processor.overflows` is true. Otherwise only the first layer's do.
    """
    # With CUDA_HOME set, PyTorch's tools for extensions, which NNCF imports, warn of no device.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    import nncf

    nncf.set_log_level(logging.WARNING)
    fix = nncf.OverflowFix.ENABLE if half_range else nncf.OverflowFix.FIRST_LAYER
    return nncf.quantize(
        model,
        nncf.Dataset(samples),
        subset_size=len(samples),
        ignored_scope=nncf.IgnoredScope(names=[*behind_linear(model), *spared]),
        advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=fix),
    )


def behind_linear(model: Any) -> list[str]:
    """Return the names of the operations after an OpenVINO model's last linear layer.

    A convolution counts as a linear layer, because it is SqueezeNet's last layer. The model's last
    operation does not: a matrix product there sums up groups.
    """
    node = model.get_result().input_value(0).get_node()
    names: list[str] = []
    while not names or node.get_type_name() not in ("MatMul", "Convolution"):
        names.append(node.get_friendly_name())
        node = node.input_value(0).get_node()
    return names


def first_convolutions(model: Any, crop: int) -> list[str]:
    """Return the names of a model's first convolutions, as many as may stay in FP32.

    The limits are `MOST_SPARED` convolutions and `LARGEST_SHARE` of all multiplications.
    """
    still = model.clone()
    still.reshape([1, crop, crop, 3])
    multiplications = {
        node.get_friendly_name(): math.prod(node.input_value(1).get_shape())
        * math.prod(node.get_output_shape(0)[2:])
        for node in still.get_ordered_ops()
        if node.get_type_name() in ("Convolution", "GroupConvolution")
    }
    shares = np.cumsum(list(multiplications.values())) / sum(multiplications.values())
    return list(multiplications)[: min(MOST_SPARED, int((shares <= LARGEST_SHARE).sum()))]


def calibration_samples(
    photographs: Sequence[Path], crop: int, count: int
) -> list[NDArray[np.uint8]]:
    """Make INT8's calibration samples: random crops, and mosaics of four and nine crops, in turn.

    The random seed is fixed, so that the same photographs always give the same samples. A mosaic
    shows the network more kinds of things at once than a single photograph. With the ten packaged
    photographs, mosaics lowered the mean difference between INT8's and FP32's probability of the
    best class from 0.031 to 0.023.
    Source: mosaics are YOLOv4's augmentation, https://arxiv.org/abs/2004.10934

    Returns:
        uint8 arrays of shape (1, crop, crop, 3), RGB.

    Raises:
        ValueError: a photograph cannot be read; the message names it.
    """
    random.seed(SEED)
    torch.manual_seed(SEED)
    chosen = random.sample(photographs, min(len(photographs), count))
    images = [photos.read(path) for path in chosen]

    def mosaic(first: int, tiles: int) -> NDArray[np.uint8]:
        side = math.ceil(crop / tiles)
        cut = RandomResizedCrop(side)
        whole = Image.new("RGB", (crop, crop))
        corners = itertools.product(range(0, crop, side), range(0, crop, side))
        for number, corner in enumerate(corners, first):
            whole.paste(cut(images[number % len(images)]), corner)
        return np.asarray(whole)[np.newaxis]

    return [mosaic(index, TILES[index % len(TILES)]) for index in range(count)]
