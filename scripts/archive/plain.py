"""The preprocessing as its owner would write it: with torchvision, before the network.

What an archive serves is compared with this, so nothing here uses the handler's own resize, crop
or normalization.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchvision.transforms import InterpolationMode, functional

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor, nn

    from visionserve.metadata import Transforms


def resized(image: Image.Image, transforms: Transforms) -> Image.Image:
    """Return an RGB photograph in the mode and size that its crops are cut from."""
    if transforms.channels == "grey":
        image = functional.to_grayscale(image, len(transforms.mean))
    size = transforms.resize
    shape = [size] if isinstance(size, int) else list(size)
    found: Image.Image = functional.resize(
        image, shape, InterpolationMode(transforms.interpolation)
    )
    return found


def tensor(crop: Image.Image, transforms: Transforms) -> Tensor:
    """Return a crop as the network takes it: float32 of shape (channels, height, width)."""
    scaled = (
        functional.to_tensor(crop)
        if transforms.range == "0-1"
        else functional.pil_to_tensor(crop).float()
    )
    ordered = scaled[[2, 1, 0]] if transforms.channels == "bgr" else scaled
    normalized: Tensor = functional.normalize(ordered, list(transforms.mean), list(transforms.std))
    return normalized


def centre(image: Image.Image, transforms: Transforms) -> Tensor:
    """Return what the network takes of an RGB photograph: (channels, crop, crop)."""
    return tensor(functional.center_crop(resized(image, transforms), [transforms.crop]), transforms)


def classify(network: nn.Module, images: Tensor) -> Tensor:
    """Return the plain network's probabilities: float32 of shape (N, classes)."""
    probabilities: Tensor = network(images).softmax(-1)
    return probabilities
