"""The stages in order, for many images at once, each with its own outcome."""

import hashlib
import logging
import math
import os
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from visionserve import explanation, postprocessing, runtimes
from visionserve.cache import Cache
from visionserve.config import HandlerConfig, ModelConfig, Options
from visionserve.errors import RequestError
from visionserve.item import Item
from visionserve.metadata import Metadata
from visionserve.preprocessing import decode, to_views
from visionserve.runtimes import Runtime
from visionserve.share import Share
from visionserve.tta import Views
from visionserve.validation import memory, validate, work

VIEW = 224 * 224 * 3
SUM_ERROR = 0.01
AHEAD = 32

logger = logging.getLogger(__name__)

Outcome = dict[str, Any] | RequestError


class Classifier:
    """Images to answers.

    Args:
        runtime: the loaded model.
        metadata: its transforms and labels.
        config: limits and decoding.
        version: the archive's version, named in each answer.
        name: the model's name in the server, named in each answer; its architecture's if None.
        files: hash of the model's file and of the stages' code, on which answers depend as well.
        decoders: threads that decode a batch's images side by side, together in the memory that
            the largest image may take.

    Attributes:
        metadata: what the archive knows of its model.
        defaults: options of a request that gives none, as far as the model can follow them.
        failures: how many forward passes in a row gave no answer until now.
    """

    def __init__(
        self,
        runtime: Runtime,
        metadata: Metadata,
        config: HandlerConfig,
        version: str,
        name: str | None = None,
        files: str = "",
        decoders: int = 1,
    ) -> None:
        self._pool = ThreadPoolExecutor(decoders, "decoder") if decoders > 1 else None
        self._memory = Share(config.max_image_pixels)
        self.failures = 0
        self._runtime = runtime
        self.metadata = metadata
        self._config = config
        self._version = version
        self._name = name or metadata.architecture
        self.defaults = metadata.suited(config.defaults)
        described = "".join(
            [metadata.model_dump_json(), config.model_dump_json(), version, self._name, files]
        )
        fingerprint = hashlib.sha256(described.encode()).hexdigest()
        self._cache = Cache(config.cache, fingerprint) if config.cache.size_mb else None

    @classmethod
    def from_archive(
        cls,
        directory: Path,
        config: ModelConfig,
        gpu_id: int | None,
        version: str,
        name: str | None = None,
    ) -> "Classifier":
        """Load an unpacked archive.

        Args:
            directory: holds the archive's files.
            config: its `model-config.yaml`.
            gpu_id: CUDA device index; None for the CPU.
            version: the archive's version.
            name: the model's name in the server; its architecture's if None.
        """
        metadata = Metadata.load(directory)
        cores = len(os.sched_getaffinity(0))
        threads = config.handler.threads or max(1, cores // config.maxWorkers)
        runtime = runtimes.load(directory, metadata, config.handler, gpu_id, threads)
        model = directory.glob(f"{Path(metadata.artifact).stem}.*")
        files = _hash([*model, *Path(__file__).parent.rglob("*.py")])
        decoders = config.handler.decoders or (1 if gpu_id is None else threads)
        return cls(runtime, metadata, config.handler, version, name, files, decoders)

    def classify(self, items: Sequence[Item], deadline: float = math.inf) -> list[Outcome]:
        """Classify images, each on its own: one that fails leaves the others untouched.

        Views of equal shape share forward passes, once as many wait as fill one.

        Args:
            items: the images.
            deadline: when no further image is begun, by `time.monotonic`.

        Returns:
            For each item, in order, an answer or the error in its place.
        """
        outcomes: dict[int, Outcome] = {}
        waiting: dict[int, Views] = {}
        for index, ready in self._prepared(items, deadline):
            if isinstance(ready, Views):
                waiting[index] = ready
            else:
                outcomes[index] = ready
            if sum(views.size for views in waiting.values()) >= VIEW * self._runtime.capacity:
                outcomes |= self._answer(items, waiting)
                waiting = {}
        outcomes |= self._answer(items, waiting)
        return [outcomes[index] for index in range(len(items))]

    def _prepared(
        self, items: Sequence[Item], deadline: float
    ) -> Iterator[tuple[int, Views | Outcome]]:
        """Yield each item's views, or its outcome, in order.

        Where there is a pool, it decodes the next images meanwhile, during forward passes too.
        """
        opened = ((index, item, self._open(item, deadline)) for index, item in enumerate(items))
        if self._pool is None or len(items) == 1:
            for index, item, image in opened:
                yield index, self._prepare(item, image) if isinstance(image, Image) else image
            return
        ahead: deque[tuple[int, Future[Views | RequestError] | Outcome]] = deque()
        for index, item, image in opened:
            if isinstance(image, Image):
                ahead.append((index, self._pool.submit(self._prepare, item, image)))
            else:
                ahead.append((index, image))
            if len(ahead) > AHEAD:
                yield _settled(*ahead.popleft())
        while ahead:
            yield _settled(*ahead.popleft())

    def _open(self, item: Item, deadline: float) -> Image | Outcome:
        """Validate an item's image, unless the item needs no decoding or its time has run out."""
        classes = len(self.metadata.categories)
        if item.options.top_k > classes:
            return RequestError(400, "invalid_option", f"top_k: there are {classes} classes.")
        architecture = self.metadata.architecture
        if item.options.tta == "dense" and not self.metadata.dense:
            return RequestError(400, "invalid_option", f"tta: {architecture} has no dense form.")
        if item.options.explain and not self.metadata.explains:
            return RequestError(400, "invalid_option", f"{architecture} cannot be explained.")
        answer = self._cache.get(item) if self._cache and not item.probe else None
        if answer is not None:
            return self._worded(answer, item.options) | {"cached": True}
        if time.monotonic() > deadline:
            return RequestError(
                503, "request_too_slow", "Time ran out before the image's turn: try again."
            )
        config = self._config
        try:
            with item.trace.stage("validate"):
                image = validate(item.data, config.max_image_bytes, config.max_image_pixels)
            item.trace.size = image.size
            item.budget.spend(work(image, item.data))
        except RequestError as error:
            return error
        except Exception:
            return _unprepared()
        return image

    def _prepare(self, item: Item, image: Image) -> Views | RequestError:
        """Decode and cut an image; this may run in several threads at once."""
        transforms, how, trace = self.metadata.transforms, self._config.decode, item.trace
        try:
            with self._memory.holding(memory(image)):
                with trace.stage("decode"):
                    rgb = decode(image, transforms, how)
                trace.size = explanation.upright(trace.size, rgb.size)
                with trace.stage("preprocess"):
                    return to_views(rgb, transforms, how, item.options.tta)
        except RequestError as error:
            return error
        except Exception:
            return _unprepared()

    def _answer(self, items: Sequence[Item], views: Mapping[int, Views]) -> dict[int, Outcome]:
        """Answer the items whose views are there, those of one shape in one forward pass."""
        shapes: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, of_item in views.items():
            shapes[of_item.shape].append(index)
        outcomes: dict[int, Outcome] = {}
        for indices in shapes.values():
            chosen = [items[index] for index in indices]
            found: Sequence[NDArray[np.float32] | RequestError]
            try:
                found = self._infer(chosen, [views[index] for index in indices])
            except RequestError as error:
                found = [error] * len(indices)
            except Exception:
                logger.exception("Images could not be classified.")
                found = [_unclassified()] * len(indices)
            failed = all(isinstance(averaged, RequestError) for averaged in found)
            self.failures = self.failures + 1 if failed else 0
            for index, averaged in zip(indices, found, strict=True):
                outcomes[index] = (
                    averaged
                    if isinstance(averaged, RequestError)
                    else self._finish(items[index], views[index], averaged)
                )
        return outcomes

    def _infer(
        self, items: Sequence[Item], images: Sequence[Views]
    ) -> list[NDArray[np.float32] | RequestError]:
        """Return each item's probabilities, averaged over its views, or an error for none."""
        with ExitStack() as stages:
            for item in items:
                stages.enter_context(item.trace.stage("infer"))
            averages = self._runtime.averaged(images)
        found: list[NDArray[np.float32] | RequestError] = []
        # NaN is equal to nothing.
        sound = abs(averages.sum(axis=1) - 1) <= SUM_ERROR
        for averaged, is_sound in zip(averages, sound, strict=True):
            if not is_sound:
                logger.error("The model's probabilities do not sum to 1.")
            found.append(averaged if is_sound else _unclassified())
        return found

    def _finish(self, item: Item, views: Views, averaged: NDArray[np.float32]) -> Outcome:
        """Answer an item, and keep the answer; a fault of its explanation is its own alone."""
        try:
            with item.trace.stage("postprocess"):
                answer = self._describe(averaged, item.options)
            if item.options.explain:
                with item.trace.stage("explain"):
                    self._explain(answer, item, views.stacked(1))
        except Exception:
            logger.exception("An answer could not be made.")
            return _unclassified()
        if self._cache and not item.probe:
            self._cache.put(item, answer)
        return self._worded(answer, item.options)

    def _explain(self, answer: dict[str, Any], item: Item, view: NDArray[np.uint8]) -> None:
        """Add to each prediction what the first view's positions contribute to it."""
        box = explanation.view_box(item.trace.size, self.metadata.transforms, item.options.tta)
        (contributions,) = self._runtime.contributions(view)
        if not np.isfinite(contributions).all():
            raise ValueError("The model's map is not finite.")
        answer["predictions"] = explanation.explain(contributions, answer["predictions"], box)

    def _describe(self, averaged: NDArray[np.float32], options: Options) -> dict[str, Any]:
        temperature = self.metadata.temperatures.get(options.tta, 1)
        probabilities = postprocessing.temper(averaged, temperature)
        return {
            "model": self._name,
            "architecture": self.metadata.architecture,
            "version": self._version,
            "tta": options.tta,
        } | postprocessing.predictions(probabilities, self.metadata.categories, options)

    def _worded(self, answer: Mapping[str, Any], options: Options) -> dict[str, Any]:
        """Say an answer in its request's language; a model without names there has its labels."""
        language, labels = options.language, self.metadata.categories
        names = None if language == "en" else self.metadata.names.get(language, labels)
        return postprocessing.worded(answer, options, names)


def _settled(
    index: int, ready: Future[Views | RequestError] | Outcome
) -> tuple[int, Views | Outcome]:
    return index, ready.result() if isinstance(ready, Future) else ready


def _unprepared() -> RequestError:
    logger.exception("An image could not be prepared.")
    return RequestError(500, "internal_error", "The image could not be prepared.")


def _unclassified() -> RequestError:
    return RequestError(500, "internal_error", "The image could not be classified.")


def _hash(paths: Sequence[Path]) -> str:
    """SHA-256 of files, in hex."""
    digests = []
    for path in sorted(paths):
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return hashlib.sha256("".join(digests).encode()).hexdigest()
