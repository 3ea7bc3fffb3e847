"""Models that are ready to classify photographs, without a server."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scripts.archive import convert
from scripts.archive.weights import resolve
from scripts.quality.variants import VARIANTS
from visionserve import runtimes
from visionserve.config import TTA, Engine, HandlerConfig, Precision
from visionserve.metadata import Metadata
from visionserve.models import IMAGENET_CATEGORIES
from visionserve.preprocessing import decode, to_views
from visionserve.runtimes import Runtime

THREADS = 2


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to classify, as a worker with this configuration does."""

    runtime: Runtime
    metadata: Metadata
    config: HandlerConfig

    def decode(self, path: Path) -> Image.Image:
        """Decode a photograph to RGB."""
        return decode(Image.open(path), self.metadata.transforms, self.config.decode)

    def crop(self, path: Path) -> NDArray[np.uint8]:
        """Return a photograph's centre crop: uint8 of shape (1, crop, crop, 3)."""
        image, transforms = self.decode(path), self.metadata.transforms
        return to_views(image, transforms, self.config.decode, "none").stacked()

    def average(self, image: Image.Image, mode: TTA) -> NDArray[np.float32]:
        """Return the probabilities of an RGB image, averaged over its views: one a class."""
        views = to_views(image, self.metadata.transforms, self.config.decode, mode)
        averaged: NDArray[np.float32] = self.runtime.averaged([views])[0]
        return averaged

    def classify(self, path: Path, modes: Iterable[TTA]) -> dict[TTA, NDArray[np.float32]]:
        """Return a photograph's averaged probabilities in each mode."""
        image = self.decode(path)
        return {mode: self.average(image, mode) for mode in modes}


def prepare(
    name: str, config: HandlerConfig, calibration: Sequence[Path], directory: Path
) -> tuple[Runtime, Metadata]:
    """Convert and load one variant of a model with its pretrained weights."""
    directory.mkdir()
    metadata = convert.convert(
        name, resolve(name), IMAGENET_CATEGORIES, config, calibration, directory
    )
    return runtimes.load(directory, metadata, config, None, THREADS), metadata


def load(
    name: str, variants: Sequence[str], calibration: Sequence[Path], scratch: Path
) -> dict[str, Loaded]:
    """Load variants of a model, converting once for each runtime and precision.

    The files stay in the scratch folder, because explanations read them later.
    """
    models: dict[tuple[Engine, Precision], tuple[Runtime, Metadata]] = {}
    for variant in variants:
        config = VARIANTS[variant]
        key = config.runtime, config.precision
        if key not in models:
            print(f"Converting {name} to {variant}", file=sys.stderr)
            models[key] = prepare(name, config, calibration, scratch / "-".join(key))
    return {
        variant: Loaded(*models[config.runtime, config.precision], config)
        for variant, config in VARIANTS.items()
        if variant in variants
    }
