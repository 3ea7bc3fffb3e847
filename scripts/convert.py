"""A trained network to the file that the archive's runtime loads."""

import random
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from scripts.weights import Weights, load
from visionserve.config import HandlerConfig
from visionserve.metadata import Metadata
from visionserve.models import MODELS, FullyConvolutional
from visionserve.preprocessing import to_rgb

CALIBRATION_SAMPLES = 300
SEED = 0


def convert(
    architecture: str,
    weights: Weights,
    categories: tuple[str, ...],
    config: HandlerConfig,
    photographs: Sequence[Path],
    directory: Path,
) -> Metadata:
    """Write the model for a runtime and precision.

    Args:
        architecture: a key of `MODELS`.
        weights: a state dict of it.
        categories: labels in class-index order.
        config: `runtime` and `precision`.
        photographs: images to calibrate INT8 with.
        directory: where to write.

    Returns:
        What the archive knows of the model, the name of its file included.

    Raises:
        WeightsError: the weights are another model's.
    """
    transforms = MODELS[architecture].transforms
    module = FullyConvolutional(architecture, len(categories), transforms).eval()
    module.network.load_state_dict(load(weights, module.network.state_dict()))
    return Metadata(
        architecture=architecture,
        weights=weights.source,
        weights_sha256=weights.sha256,
        artifact=_write(module, transforms.crop, config, photographs, directory),
        transforms=transforms,
        categories=categories,
    )


def _write(
    module: FullyConvolutional,
    crop: int,
    config: HandlerConfig,
    photographs: Sequence[Path],
    directory: Path,
) -> str:
    if config.runtime == "pytorch":
        torch.save(module.network.state_dict(), directory / "model.pt")
        return "model.pt"
    import openvino

    model = to_openvino(module, crop)
    if config.precision == "int8":
        model = quantize(model, photographs, crop, CALIBRATION_SAMPLES)
    openvino.save_model(model, directory / "model.xml", compress_to_fp16=False)
    return "model.xml"


def to_openvino(module: FullyConvolutional, crop: int) -> Any:
    """Trace a module to an OpenVINO model that takes any batch of any size."""
    import openvino

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=FutureWarning)
        return openvino.convert_model(
            module.requires_grad_(False),
            input=openvino.PartialShape([-1, -1, -1, 3]),
            example_input=torch.zeros(2, crop, crop, 3, dtype=torch.uint8),
        )


def quantize(model: Any, photographs: Sequence[Path], crop: int, count: int) -> Any:
    """Quantize an OpenVINO model to INT8, statically, with NNCF's default preset.

    Weights get one scale per output channel; activations get the ranges that they show on
    random resized crops of the photographs. What follows the last linear layer stays in FP32:
    NNCF would also quantize the mean over the windows, and 256 steps over the range of a few
    photographs are too coarse for probabilities.
    Source: https://docs.openvino.ai/2026/openvino-workflow/model-optimization-guide/quantizing-models-post-training.html
    """
    import nncf

    samples = random_crops(photographs, crop, count)
    return nncf.quantize(
        model,
        nncf.Dataset(samples),
        subset_size=len(samples),
        ignored_scope=nncf.IgnoredScope(names=behind_linear(model)),
    )


def behind_linear(model: Any) -> list[str]:
    """Name the operations between the last linear layer and the result of an OpenVINO model."""
    node = model.get_result().input_value(0).get_node()
    names = []
    while node.get_type_name() != "MatMul":
        names.append(node.get_friendly_name())
        node = node.input_value(0).get_node()
    return names


def random_crops(
    photographs: Sequence[Path], crop: int, count: int = CALIBRATION_SAMPLES
) -> list[NDArray[np.uint8]]:
    """Cut random resized crops, the same ones each time.

    Returns:
        uint8 arrays of shape (1, crop, crop, 3), RGB.
    """
    random.seed(SEED)
    torch.manual_seed(SEED)
    cut = RandomResizedCrop(crop, scale=(0.25, 1.0))
    chosen = random.sample(photographs, min(len(photographs), count))
    images = [to_rgb(Image.open(path)) for path in chosen]
    return [np.asarray(cut(images[index % len(images)]))[np.newaxis] for index in range(count)]
