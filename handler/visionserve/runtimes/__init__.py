"""Inference engines behind one call: uint8 pixels to probabilities."""

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from visionserve.config import HandlerConfig
from visionserve.metadata import Metadata


class Runtime(Protocol):
    """A loaded model.

    Attributes:
        capacity: views of 224 × 224 pixels that fill a forward pass: more of them take more
            memory and no less time each.
    """

    capacity: int

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Classify a batch.

        Args:
            pixels: uint8 of shape (N, height, width, 3), RGB, sides at least the crop's.

        Returns:
            float32 of shape (N, classes), each row summing to 1.
        """

    def contributions(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Tell what each position of the last feature map adds to each class's logit.

        Args:
            pixels: as for a classification.

        Returns:
            float32 of shape (N, rows, columns, classes), a position for each stride of the view.
        """


def load(
    directory: Path, metadata: Metadata, config: HandlerConfig, gpu_id: int | None, threads: int
) -> Runtime:
    """Load the archive's model on its device, importing no engine but the one it needs."""
    artifact = directory / metadata.artifact
    if config.runtime == "openvino":
        from visionserve.runtimes.openvino import OpenVINORuntime

        return OpenVINORuntime(artifact, threads)
    from visionserve.runtimes.pytorch import PyTorchRuntime

    return PyTorchRuntime(artifact, metadata, gpu_id, config.precision == "fp16", threads)
