"""What an owner would write around the network: torchvision before it, an activation after it.

What an archive serves is compared with this, so nothing here uses the handler's own resize, crop,
normalization or activation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from visionserve.workarounds import torchvision_compiler  # noqa: F401

# isort: split

from torchvision.transforms import InterpolationMode, functional

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from PIL import Image
    from torch import Tensor

    from visionserve.config import Activation
    from visionserve.metadata import Transforms

    Resize = Callable[[Image.Image, Transforms], Image.Image]


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


def centre(image: Image.Image, transforms: Transforms, resize: Resize | None = None) -> Tensor:
    """Return what the network takes of an RGB photograph: (channels, crop, crop).

    Args:
        image: the photograph.
        transforms: the preprocessing.
        resize: takes the place of `resized`.
    """
    whole = (resize or resized)(image, transforms)
    return tensor(functional.center_crop(whole, [transforms.crop]), transforms)


def classify(network: nn.Module, images: Tensor, activation: Activation = "softmax") -> Tensor:
    """Return the plain network's probabilities: float32 of shape (N, classes)."""
    return activate(network(images), activation)


def activate(logits: Tensor, activation: Activation) -> Tensor:
    """Return the probabilities of logits, both of shape (N, classes)."""
    return torch.sigmoid(logits) if activation == "sigmoid" else torch.softmax(logits, -1)


class Grouped(nn.Module):
    """A plain network whose classes are groups of another's.

    A group's logit is the logarithm of its classes' summed exponentials, so that the softmax over
    groups sums up the softmax over classes.

    Args:
        network: the plain network.
        groups: each group's classes, by index, each class in exactly one.
    """

    def __init__(self, network: nn.Module, groups: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.network = network
        self.groups = [list(group) for group in groups]

    def forward(self, images: Tensor) -> Tensor:
        """Return the groups' logits: float32 of shape (N, groups)."""
        logits = self.network(images)
        return torch.stack([logits[:, group].logsumexp(1) for group in self.groups], 1)


def grouped(network: nn.Module, groups: Sequence[Sequence[int]]) -> nn.Module:
    """Return a plain network with its groups; as it is if there are none."""
    return Grouped(network, groups) if groups else network
