"""Inference engines with one interface: from uint8 pixels to probabilities."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from visionserve.config import HandlerConfig
from visionserve.metadata import Metadata
from visionserve.processor import overflows
from visionserve.tta import Views

logger = logging.getLogger(__name__)


class Runtime:
    """A loaded model.

    Attributes:
        capacity: how many views of 224 × 224 pixels fill a forward pass. More views in one pass
            would take more memory, but no less time each.
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
        """Classify images, and average the probabilities of each image's views.

        Args:
            images: the views of N images, all of one shape.

        Returns:
            float32 of shape (N, classes), each row summing to 1.

        Raises:
            RequestError: 507 `internal_error`, the device's memory is full.
        """
        probabilities = self(np.concatenate([views.stacked() for views in images]))
        ends = np.cumsum([len(views.places) for views in images])[:-1]
        return np.stack([image.mean(axis=0) for image in np.split(probabilities, ends)])

    def contributions(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return what each position of the last feature map adds to each class's logit.

        With groups, their maps are in place of the classes'; see
        `visionserve.models.FullyConvolutional.contributions`.

        Args:
            pixels: as for `__call__`.

        Returns:
            float32 of shape (N, rows, columns, classes). A position covers one stride of the
            network, 32 × 32 pixels of the view.
        """
        raise NotImplementedError


def load(
    directory: Path, metadata: Metadata, config: HandlerConfig, gpu_id: int | None, threads: int
) -> Runtime:
    """Load the archive's model on its device. Only the engine that it needs is imported.

    Args:
        directory: where the archive's files are.
        metadata: the archive's `metadata.json`.
        config: names the engine and the precision.
        gpu_id: CUDA device index; None for the CPU.
        threads: inference threads on the CPU.
    """
    artifact = directory / metadata.artifact
    if config.precision == "int8" and not metadata.half_range and overflows():
        logger.warning(
            "The INT8 weights use their whole range, and this processor has no VNNI, so sums "
            "overflow and answers are less exact: run `visionserve build` on this machine."
        )
    if config.runtime == "openvino":
        from visionserve.runtimes.openvino import OpenVINORuntime

        return OpenVINORuntime(artifact, metadata.transforms.crop, threads)
    from visionserve.runtimes.pytorch import PyTorchRuntime

    return PyTorchRuntime(artifact, metadata, gpu_id, config.precision == "fp16", threads)
