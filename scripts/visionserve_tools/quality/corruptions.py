"""Ten corruptions of photographs, each in two severities.

The kinds of corruption follow ImageNet-C (Hendrycks and Dietterich, 2019). All are torchvision's
own transforms except motion blur, which torchvision lacks.
"""

import warnings

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from visionserve.workarounds import torchvision_compiler  # noqa: F401

# isort: split

from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

SIDE = 384
GREY = 127


class MotionBlur(torch.nn.Module):
    """Averages pixels along a line in a random direction, as a moving camera does.

    Args:
        length: of the line, in pixels; odd.
    """

    def __init__(self, length: int) -> None:
        super().__init__()
        self._length = length

    def forward(self, image: Tensor) -> Tensor:
        """Blur an image: uint8 of shape (3, height, width) to the same."""
        line = torch.zeros(1, self._length, self._length)
        line[:, self._length // 2] = 1
        angle = float(torch.empty(1).uniform_(0, 180))
        kernel = functional.rotate(line, angle, InterpolationMode.BILINEAR)
        padded = functional.pad(image, [self._length // 2], padding_mode="reflect")
        channels = padded.float().unsqueeze(1)
        blurred = torch.nn.functional.conv2d(channels, (kernel / kernel.sum()).unsqueeze(0))
        return blurred.squeeze(1).round().clamp(0, 255).to(torch.uint8)


def _blur(sigma: int) -> v2.Transform:
    return v2.GaussianBlur(kernel_size=6 * sigma + 1, sigma=float(sigma))


def _brightness(factor: float) -> v2.Transform:
    darker, brighter = ((1 / factor,) * 2, (factor,) * 2)
    return v2.RandomChoice([v2.ColorJitter(brightness=range_) for range_ in (darker, brighter)])


def _contrast(factor: float) -> v2.Transform:
    return v2.ColorJitter(contrast=(factor, factor))


def _jpeg(quality: int) -> v2.Transform:
    return v2.JPEG(quality=(quality, quality))


def _pixelation(blocks: int) -> v2.Transform:
    return v2.Compose([v2.Resize(blocks), v2.Resize(SIDE, InterpolationMode.NEAREST)])


def _occlusion(area: float) -> v2.Transform:
    return v2.RandomErasing(p=1, scale=(area, area), value=GREY)


def _scale(times: float) -> v2.Transform:
    return v2.RandomZoomOut(fill=GREY, side_range=(times, times), p=1)


def _rotation(degrees: float) -> v2.Transform:
    turns = [
        v2.RandomRotation((angle, angle), InterpolationMode.BILINEAR, fill=GREY)
        for angle in (-degrees, degrees)
    ]
    return v2.RandomChoice(turns)


# A mild and a severe form of each, for images whose shorter side has `SIDE` pixels.
CORRUPTIONS: dict[str, tuple[torch.nn.Module, torch.nn.Module]] = {
    "noise": (v2.GaussianNoise(sigma=0.1), v2.GaussianNoise(sigma=0.25)),
    "blur": (_blur(3), _blur(5)),
    "motion": (MotionBlur(15), MotionBlur(31)),
    "brightness": (_brightness(2), _brightness(3)),
    "contrast": (_contrast(0.4), _contrast(0.2)),
    "jpeg": (_jpeg(15), _jpeg(7)),
    "pixelation": (_pixelation(96), _pixelation(64)),
    "occlusion": (_occlusion(0.15), _occlusion(0.35)),
    "scale": (_scale(1.5), _scale(2.5)),
    "rotation": (_rotation(15), _rotation(35)),
}


def scaled(image: Image.Image) -> Tensor:
    """Bring an image to the size that the severities are meant for.

    Returns:
        uint8 of shape (3, height, width), the shorter side `SIDE`.
    """
    resized: Tensor = functional.resize(functional.pil_to_tensor(image), [SIDE])
    return resized


def corrupt(image: Tensor, transform: torch.nn.Module, seed: int) -> Image.Image:
    """Apply a corruption, the same way each time for the same seed."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*TorchVision are deprecated", DeprecationWarning)
        corrupted = transform(image)
    return Image.fromarray(np.asarray(corrupted.permute(1, 2, 0)))
