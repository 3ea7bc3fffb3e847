"""The stages in order, for many images at once, each with its own outcome."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionserve import postprocessing, preprocessing, tta
from visionserve.config import HandlerConfig, Options
from visionserve.errors import RequestError
from visionserve.metadata import Metadata
from visionserve.runtimes import Runtime
from visionserve.validation import validate

logger = logging.getLogger(__name__)

Outcome = dict[str, Any] | RequestError


@dataclass(frozen=True)
class Item:
    """One encoded image, or its fault, and the options that it is classified with."""

    data: bytes | RequestError
    options: Options


class Classifier:
    """Images to answers.

    Args:
        runtime: the loaded model.
        metadata: its transforms and labels.
        config: limits and decoding.
        version: the archive's version, named in each answer.
    """

    def __init__(
        self, runtime: Runtime, metadata: Metadata, config: HandlerConfig, version: str
    ) -> None:
        self._runtime = runtime
        self._metadata = metadata
        self._config = config
        self._version = version

    def classify(self, items: Sequence[Item]) -> list[Outcome]:
        """Classify images, each on its own: one that fails leaves the others untouched.

        All views of equal shape go through the model in one forward pass.

        Returns:
            For each item, in order, an answer or the error in its place.
        """
        prepared = [self._prepare(item) for item in items]
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, views in enumerate(prepared):
            if not isinstance(views, RequestError):
                groups.setdefault(views.shape[1:], []).append(index)
        outcomes: list[Outcome] = [
            views if isinstance(views, RequestError) else {} for views in prepared
        ]
        for indices in groups.values():
            batches = [prepared[index] for index in indices]
            for index, probabilities in zip(indices, self._infer(batches), strict=True):
                outcomes[index] = self._answer(probabilities, items[index].options)
        return outcomes

    def _prepare(self, item: Item) -> NDArray[np.uint8] | RequestError:
        transforms, config = self._metadata.transforms, self._config
        if isinstance(item.data, RequestError):
            return item.data
        try:
            if item.options.top_k > len(self._metadata.categories):
                raise RequestError(
                    400,
                    "invalid_option",
                    f"top_k: there are {len(self._metadata.categories)} classes.",
                )
            image = validate(item.data, config.max_image_bytes, config.max_image_pixels)
            if config.decode == "fast":
                preprocessing.shrink_on_load(image, transforms)
            pixels = preprocessing.resize(preprocessing.to_rgb(image), transforms)
            return tta.views(pixels, item.options.tta, transforms.crop)
        except RequestError as error:
            return error
        except Exception:
            logger.exception("An image could not be prepared.")
            return RequestError(500, "internal_error", "The image could not be prepared.")

    def _infer(self, batches: list[Any]) -> list[NDArray[np.float32]]:
        probabilities = self._runtime(batches[0] if len(batches) == 1 else np.concatenate(batches))
        ends = np.cumsum([len(batch) for batch in batches])[:-1]
        return [views.mean(axis=0) for views in np.split(probabilities, ends)]

    def _answer(self, probabilities: NDArray[np.float32], options: Options) -> dict[str, Any]:
        return {
            "model": self._metadata.architecture,
            "version": self._version,
            "tta": options.tta,
        } | postprocessing.predictions(probabilities, self._metadata.categories, options)
