"""Inference engines behind one call: uint8 pixels to probabilities."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from visionserve.config import HandlerConfig
from visionserve.metadata import Metadata
from visionserve.tta import Views


class Runtime:
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
        raise NotImplementedError

    def averaged(self, images: Sequence[Views]) -> NDArray[np.float32]:
        """Classify images, each by the mean of the probabilities of its views.

        Args:
            images: views of one shape.

        Returns:
            float32 of shape (N, classes), each row summing to 1.

        Raises:
            RequestError: 507 `internal_error`, the device has no room for them.
        """
        found = self(np.concatenate([views.stacked() for views in images]))
        ends = np.cumsum([len(views.places) for views in images])[:-1]
        return np.stack([of_image.mean(axis=0) for of_image in np.split(found, ends)])

    def contributions(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Tell what each position of the last feature map adds to each class's logit.

        Args:
            pixels: as for a classification.

        Returns:
            float32 of shape (N, rows, columns, classes), a position for each stride of the view.
        """
        raise NotImplementedError


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
