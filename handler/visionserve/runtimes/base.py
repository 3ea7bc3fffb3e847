"""What all inference engines have in common: from uint8 pixels to probabilities and features."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from visionserve.config import Precision
from visionserve.tta import Views


class Passed(NamedTuple):
    """What a model says of N views or images.

    Attributes:
        probabilities: float32 of shape (N, classes), from 0 to 1; each row sums to 1, unless the
            model is multi-label.
        features: float32 of shape (N, channels), what the network's last layer sees: its last
            feature map, averaged over the windows of a view; None of a network whose last layer is
            not linear, or is not the only one after a global pool.
    """

    probabilities: NDArray[np.float32]
    features: NDArray[np.float32] | None = None

    @classmethod
    def stacked(cls, single: Sequence["Passed"]) -> "Passed":
        """Stack what one model says of single views or images."""
        return cls._put_together(np.stack, single)

    @classmethod
    def joined(cls, passes: Sequence["Passed"]) -> "Passed":
        """Join what one model says in several passes."""
        return cls._put_together(np.concatenate, passes)

    @classmethod
    def _put_together(
        cls,
        how: Callable[[list[NDArray[np.float32]]], NDArray[np.float32]],
        passes: Sequence["Passed"],
    ) -> "Passed":
        features = [one.features for one in passes if one.features is not None]
        probabilities = how([one.probabilities for one in passes])
        return cls(probabilities, how(features) if features else None)


class Linear(NamedTuple):
    """A network's last layer: logits are features @ weight + bias.

    Attributes:
        weight: float32 of shape (channels, classes).
        bias: float32 of shape (classes,).
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


class Runtime:
    """A loaded model.

    Attributes:
        capacity: how many views of 224 × 224 pixels fill a forward pass. More views in one pass
            would take more memory, but no less time each.
        precision: what it computes in, by what the engine says.
    """

    capacity: int
    precision: Precision = "fp32"

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Classify a batch.

        Args:
            pixels: uint8 of shape (N, height, width, 3), RGB, sides at least the crop's.

        Returns:
            float32 of shape (N, classes), from 0 to 1; each row sums to 1, unless the model is
            multi-label.
        """
        raise NotImplementedError

    def passed(self, pixels: NDArray[np.uint8]) -> Passed:
        """Classify a batch, and return its features with its probabilities, from one pass.

        Args:
            pixels: as for `__call__`.
        """
        return Passed(self(pixels))

    def averaged(self, images: Sequence[Views]) -> Passed:
        """Classify images, and average the probabilities and the features of each image's views.

        Args:
            images: the views of N images, all of one shape.

        Returns:
            Probabilities and features of N images.

        Raises:
            RequestError: 507 `internal_error`, the device's memory is full.
        """
        passed = self.passed(np.concatenate([views.stacked() for views in images]))
        ends = np.cumsum([len(views.places) for views in images])[:-1]

        def average(rows: NDArray[np.float32]) -> NDArray[np.float32]:
            return np.stack([image.mean(axis=0) for image in np.split(rows, ends)])

        features = None if passed.features is None else average(passed.features)
        return Passed(average(passed.probabilities), features)

    def linear(self) -> Linear:
        """Return the last layer of a model that has features, in INT8 as it was rounded."""
        raise NotImplementedError

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
