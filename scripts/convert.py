"""A trained network to the file that the archive's runtime loads."""

import random
import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from visionserve.config import HandlerConfig
from visionserve.metadata import Transforms
from visionserve.models import FullyConvolutional
from visionserve.preprocessing import to_rgb

CALIBRATION_SAMPLES = 300
SEED = 0


def convert(
    module: FullyConvolutional,
    transforms: Transforms,
    config: HandlerConfig,
    photographs: list[Path],
    directory: Path,
) -> str:
    """Write the model for a runtime and precision.

    Args:
        module: the network with its weights, in evaluation mode.
        transforms: give the crop.
        config: `runtime` and `precision`.
        photographs: images to calibrate INT8 with.
        directory: where to write.

    Returns:
        The name of the file that the runtime loads.
    """
    if config.runtime == "pytorch":
        torch.save(module.network.state_dict(), directory / "model.pt")
        return "model.pt"
    import openvino

    crop = transforms.crop
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=FutureWarning)
        model = openvino.convert_model(
            module.requires_grad_(False),
            input=openvino.PartialShape([-1, -1, -1, 3]),
            example_input=torch.zeros(2, crop, crop, 3, dtype=torch.uint8),
        )
    if config.precision == "int8":
        model = quantize(model, photographs, crop)
    openvino.save_model(model, directory / "model.xml", compress_to_fp16=False)
    return "model.xml"


def quantize(model: object, photographs: list[Path], crop: int) -> object:
    """Quantize an OpenVINO model to INT8, statically, with NNCF's default preset.

    Weights get one scale per output channel; activations get the ranges that they show on
    random resized crops of the photographs.
    Source: https://docs.openvino.ai/2026/openvino-workflow/model-optimization-guide/quantizing-models-post-training.html
    """
    import nncf

    samples = random_crops(photographs, crop)
    return nncf.quantize(model, nncf.Dataset(samples), subset_size=len(samples))


def random_crops(photographs: list[Path], crop: int) -> list[NDArray[np.uint8]]:
    """Cut `CALIBRATION_SAMPLES` random resized crops, the same ones each time.

    Returns:
        uint8 arrays of shape (1, crop, crop, 3), RGB.
    """
    random.seed(SEED)
    torch.manual_seed(SEED)
    cut = RandomResizedCrop(crop, scale=(0.25, 1.0))
    chosen = random.sample(photographs, min(len(photographs), CALIBRATION_SAMPLES))
    images = [to_rgb(Image.open(path)) for path in chosen]
    return [
        np.asarray(cut(images[index % len(images)]))[np.newaxis]
        for index in range(CALIBRATION_SAMPLES)
    ]
