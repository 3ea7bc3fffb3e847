"""Weights that no training made."""

from pathlib import Path

import torch

from visionserve.models import MODELS


def draw(path: Path, name: str = "resnet18", classes: int = 1000, seed: int = 0) -> Path:
    """Write a state dict of weights that are drawn with a seed, and return its path.

    A ResNet-18's probabilities of two packaged photographs differ by 0.001 and more.

    Args:
        path: the file.
        name: a key of `MODELS`.
        classes: how many classes the network has.
        seed: of PyTorch's generator.
    """
    torch.manual_seed(seed)
    torch.save(MODELS[name].build(classes).state_dict(), path)
    return path
