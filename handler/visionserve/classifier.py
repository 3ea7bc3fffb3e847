"""Items to outcomes: all stages in order, for many images at once."""

import hashlib
import logging
import math
import os
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from visionserve import (
    drawing,
    explanation,
    familiarity,
    heap,
    hints,
    postprocessing,
    processor,
    runtimes,
    self_check,
)
from visionserve.answer import Answer, Outcome, Prediction, to_json
from visionserve.cache import Cache
from visionserve.config import TTA, HandlerConfig, ModelConfig, Options
from visionserve.deadline import check, too_slow
from visionserve.errors import RequestError
from visionserve.geometry import Size, view_box
from visionserve.item import Item
from visionserve.metadata import Metadata
from visionserve.preprocessing import shrink_on_load, to_views, upright
from visionserve.resizer import HAS_RESIZER
from visionserve.runtimes import Passed, Runtime
from visionserve.sampling import small
from visionserve.semaphore import WeightedSemaphore
from visionserve.tta import Views
from visionserve.validation import memory, open_image, work

VIEW_BYTES = 224 * 224 * 3
# A batch of more forward passes than these gives the heap's free pages back, of which lists of
# images leave 5 MB. It takes 0.4 ms, and 0.7 of the next image.
FEW_PASSES = 4
MAX_SUM_ERROR = 0.01
ROUNDING = 1e-5
MAX_AHEAD = 32

Probabilities = NDArray[np.float32]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """An item whose image is decoded, resized and cut into views.

    Attributes:
        item: the item.
        views: what the model sees.
        size: width and height of the upright image, in pixels.
        orientation: how the image lay in its file, from 1 to 8 as in EXIF data.
        luma_table: the steps to which a JPEG rounds its luminance; see `visionserve.hints`.
    """

    item: Item
    views: Views
    size: Size
    orientation: int
    luma_table: Sequence[int]


class Classifier:
    """A model with everything that turns encoded images into answers.

    Of an archive that was unpacked (``unzip NAME.mar -d unpacked``), without a server::

        >>> from visionserve.config import ModelConfig
        >>> unpacked = Path("unpacked")
        >>> config = ModelConfig.of(unpacked)
        >>> classifier = Classifier.from_archive(unpacked, config, gpu_id=None, version="1.0")
        >>> cat = Item(Path("cat.jpg").read_bytes(), classifier.defaults)
        >>> (answer,) = classifier.classify([cat])
        >>> answer["predictions"][0]["label"]
        'Egyptian cat'

    Args:
        runtime: the loaded model.
        metadata: the model's transforms and labels.
        config: limits, decoding and the cache.
        version: the archive's version, which each answer names.
        name: the model's name in the server, which each answer names; None means the
            architecture's name.
        files: a hash of this package's code, and of the model's files if `metadata` does not have
            that. Cached answers depend on it.
        decoders: threads that decode a batch's images side by side. Together they use no more
            memory than the largest image may take.
        unfamiliar: for each TTA mode that has a threshold, what tells whether features are
            unfamiliar; see `visionserve.familiarity.load`.
        checked: what the model's self-check found.

    Attributes:
        metadata: as given.
        precision: what the model computes in on this machine.
        checked: as given.
        defaults: the options of a request that names none, adapted to the model.
        failures: how many forward passes in a row have failed for all of their images.
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
        unfamiliar: Mapping[TTA, Callable[[NDArray[np.float32]], bool]] | None = None,
        checked: self_check.Checked | None = None,
    ) -> None:
        self._pool = ThreadPoolExecutor(decoders, "decoder") if decoders > 1 else None
        if self._pool:
            heap.keep_small_buffers()
        self._memory = WeightedSemaphore(config.max_image_pixels)
        self.failures = 0
        self._runtime = runtime
        self.precision = runtime.precision
        self._unfamiliar = unfamiliar or {}
        self.metadata = metadata
        self.checked = checked
        self._config = config
        self._version = version
        self._name = name or metadata.architecture
        self.defaults = metadata.suited(config.defaults)
        described = "".join(
            [metadata.model_dump_json(), config.model_dump_json(), version, self._name, files]
        )
        self._cache = Cache(config.cache, hashlib.sha256(described.encode()).hexdigest())

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
            directory: where the archive's files are.
            config: the archive's `model-config.yaml`.
            gpu_id: CUDA device index; None for the CPU.
            version: the archive's version.
            name: the model's name in the server; None means the architecture's name.

        Raises:
            SelfCheckError: the model may not be served on this machine.
        """
        metadata = Metadata.load(directory)
        cores = len(os.sched_getaffinity(0))
        threads = config.handler.threads or max(1, cores // config.maxWorkers)
        runtime = runtimes.load(directory, metadata, config.handler, gpu_id, threads)
        wanted = config.handler.precision
        if told := processor.reason(wanted, runtime.precision, metadata.bf16):
            level = logging.WARNING if runtime.precision == "fp32" else logging.INFO
            logger.log(level, "Precision %s: the model computes %s.", wanted, told)
        if config.handler.decode == "fast" and not HAS_RESIZER:
            logger.info("cykooz-resizer is not installed, so `decode: fast` resizes with Pillow.")
        checked = self_check.check(directory, metadata, config.handler, runtime)
        # The hash of a model that was just checked is in its metadata.
        is_known = checked is not None and checked.passed
        model = [] if is_known else self_check.model_files(directory, metadata.artifact)
        files = self_check.sha256_of([*model, *Path(__file__).parent.rglob("*.py")])
        decoders = config.handler.decoders or (1 if gpu_id is None else threads)
        known = metadata.familiarity
        unfamiliar = familiarity.load(directory, known, runtime) if known else {}
        return cls(
            *(runtime, metadata, config.handler, version, name),
            *(files, decoders, unfamiliar, checked),
        )

    def classify(self, items: Sequence[Item], deadline: float = math.inf) -> list[Outcome]:
        """Classify images. One that fails does not affect the others.

        Views of equal shape share forward passes; `_prepare_all` tells when one starts.

        Args:
            items: the images; one with a fault has that fault as its outcome.
            deadline: time, by `time.monotonic`, after which no stage of an image is begun.

        Returns:
            For each item, in order, its answer or the error in place of it.
        """
        outcomes: list[Outcome] = []
        size = 0
        for group in self._prepare_all(items, deadline):
            outcomes += self._answer_all(group, deadline)
            size += sum(image.views.size for image in group if isinstance(image, Prepared))
        if size > FEW_PASSES * VIEW_BYTES * self._runtime.capacity:
            heap.trim()
        return outcomes

    def passed(self, item: Item) -> Passed:
        """Return what an image's answer is made of, for those who measure the model.

        Args:
            item: the image; its `top_k`, `threshold` and language do not matter.

        Returns:
            Probabilities of shape (classes,), summing to 1 unless the model is multi-label, and
            features of shape (channels,), averaged over the views; the probabilities are not
            tempered.

        Raises:
            RequestError: the image gets no answer.
            ValueError: the answer was in the cache, which has no probabilities of all classes.
        """
        prepared = self._prepare(item, math.inf)
        found = self._infer([prepared], math.inf)[0] if isinstance(prepared, Prepared) else prepared
        if isinstance(found, RequestError):
            raise found
        if isinstance(found, dict):
            raise ValueError("The cache has to be off.")
        return found

    def probabilities(self, item: Item) -> Probabilities:
        """Return an image's probabilities alone; see `passed`."""
        return self.passed(item).probabilities

    def _prepare_all(
        self, items: Sequence[Item], deadline: float
    ) -> Iterator[list[Prepared | Outcome]]:
        """Yield the items prepared, or their outcomes if known already, in order and in groups.

        Without a pool of decoders, a group's views fill a forward pass. With one, a group is a
        quarter of what is to come and what is ready by then, so that the device does not wait for
        a fuller pass while the decoders work. Groups grow by themselves where the device is slower
        than the decoders.
        """
        if self._pool is None or len(items) == 1:
            yield from self._fill(self._prepare(item, deadline) for item in items)
            return
        ahead: deque[Future[Prepared | Outcome]] = deque()
        for item in items:
            ahead.append(self._pool.submit(self._prepare, item, deadline))
            if len(ahead) > MAX_AHEAD:
                yield next(self._fill(_ready(ahead)))
        while ahead:
            yield next(self._fill(_ready(ahead)))

    def _fill(self, prepared: Iterable[Prepared | Outcome]) -> Iterator[list[Prepared | Outcome]]:
        """Yield groups whose views fill a forward pass, and last what is left."""
        group: list[Prepared | Outcome] = []
        size = 0
        for image in prepared:
            group.append(image)
            size += image.views.size if isinstance(image, Prepared) else 0
            if size >= VIEW_BYTES * self._runtime.capacity:
                yield group
                group, size = [], 0
        if group:
            yield group

    def _prepare(self, item: Item, deadline: float) -> Prepared | Outcome:
        """Prepare an item, or return its outcome if that is known already.

        It is known for an item with a fault, for refused options, for an answer in the cache, and
        for every item after the deadline. Threads of the pool run this.
        """
        if item.fault:
            return item.fault
        try:
            item.budget.check_bytes()
            self._check_options(item.options)
            answer = self._cache.get(item)
            if answer is not None:
                _spend_bytes(item, answer)
                return self._localize(answer, item.options) | {"cached": True}
            check(deadline)
            return self._decode(item, self._validate(item), deadline)
        except RequestError as error:
            return error.without_frames()
        except Exception:
            return _unprepared()

    def _check_options(self, options: Options) -> None:
        """Refuse options that the model cannot follow.

        Raises:
            RequestError: 400 `invalid_option`.
        """
        classes, architecture = len(self.metadata.categories), self.metadata.architecture
        if options.top_k > classes:
            raise _invalid_option(f"top_k: the model has {classes} classes.")
        if options.threshold is None and not self.metadata.multi_label:
            raise _invalid_option("threshold: give a number from 0 to 1.")
        if options.tta == "dense" and not self.metadata.dense:
            raise _invalid_option(f"tta: {architecture} has no dense form.")
        if options.explain and not self.metadata.explains:
            raise _invalid_option(f"{architecture} cannot be explained.")
        if options.features and not self.metadata.explains:
            raise _invalid_option(f"features: {architecture} has none before a last layer.")

    def _validate(self, item: Item) -> Image:
        """Open an item's image by its header, and take its work from its request's budget.

        Raises:
            RequestError: as `validate` and `Budget.spend` do.
        """
        with item.trace.stage("validate"):
            image = self._open(item)
        item.trace.pixels = image.width * image.height
        item.budget.spend(work(image))
        return image

    def _open(self, item: Item) -> Image:
        return open_image(item.data, self._config)

    def _decode(self, item: Item, image: Image, deadline: float) -> Prepared:
        """Decode, resize and cut an image, once there is memory for it.

        Raises:
            RequestError: as `shrink_on_load` and `upright` do; or 503 `request_too_slow`, there was
                no memory in time.
        """
        transforms, how, trace = self.metadata.transforms, self._config.decode, item.trace
        stored, table = image.size, hints.luma_table(image)
        shrink_on_load(image, transforms, how, self._config.max_image_pixels)
        with self._holding(image, item, deadline):
            with trace.stage("decode"):
                rgb, size, orientation = upright(image, stored)
            if trace.is_candidate:
                with trace.stage("copy"):
                    trace.copy = small(rgb)
            with trace.stage("preprocess"):
                views = to_views(rgb, transforms, how, item.options.tta)
        return Prepared(item, views, size, orientation, table)

    @contextmanager
    def _holding(self, image: Image, item: Item, deadline: float) -> Iterator[None]:
        """Hold the memory that decoding an image takes.

        Raises:
            RequestError: 503 `request_too_slow`, it was not free by the deadline.
        """
        with ExitStack() as held:
            try:
                held.enter_context(self._memory.holding(memory(image), deadline))
            except TimeoutError:
                raise too_slow() from None
            yield

    def draw(self, item: Item, answer: Answer, deadline: float) -> bytes:
        """Draw the map of an answer's best class over its photograph, which is decoded again.

        Args:
            item: the photograph, which has been classified.
            answer: its answer, with an explanation.
            deadline: as for `classify`.

        Returns:
            A PNG; see `visionserve.drawing.overlay`.

        Raises:
            RequestError: 503 `request_too_slow`.
        """
        check(deadline)
        image = self._open(item)
        with self._holding(image, item, deadline):
            return drawing.overlay(image, answer["predictions"][0]["explanation"])

    def _answer_all(self, group: Sequence[Prepared | Outcome], deadline: float) -> list[Outcome]:
        """Answer prepared images, those of one shape with one call of the runtime."""
        by_shape: dict[tuple[int, int], dict[int, Prepared]] = defaultdict(dict)
        outcomes: dict[int, Outcome] = {}
        for index, image in enumerate(group):
            if isinstance(image, Prepared):
                by_shape[image.views.shape][index] = image
            else:
                outcomes[index] = image
        for alike in by_shape.values():
            if time.monotonic() > deadline:
                outcomes |= dict.fromkeys(alike, too_slow())
                continue
            inferred = self._infer([*alike.values()], deadline)
            failed = all(isinstance(one, RequestError) for one in inferred)
            self.failures = self.failures + 1 if failed else 0
            for (index, image), one in zip(alike.items(), inferred, strict=True):
                outcomes[index] = (
                    one if isinstance(one, RequestError) else self._answer(image, one, deadline)
                )
        return [outcomes[index] for index in range(len(group))]

    def _infer(
        self, images: Sequence[Prepared], deadline: float
    ) -> Sequence[Passed | RequestError]:
        """Return what the model says of each image, averaged over its views, or an error.

        Args:
            images: images whose views have one shape.
            deadline: as for `classify`.
        """
        try:
            with ExitStack() as stages:
                for image in images:
                    stages.enter_context(image.item.trace.stage("infer"))
                passed = self._runtime.averaged([image.views for image in images])
            return _checked(passed, self.metadata.multi_label)
        except RequestError as error:
            return [error.without_frames()] * len(images)
        except Exception:
            if len(images) > 1:  # Those that are not at fault are answered, if there is time.
                return [
                    too_slow() if time.monotonic() > deadline else self._infer([image], deadline)[0]
                    for image in images
                ]
            logger.exception("An image could not be classified.")
            return [_unclassified()] * len(images)

    def _answer(self, image: Prepared, passed: Passed, deadline: float) -> Outcome:
        """Make an image's answer, store it in the cache, and return it in the client's language."""
        try:
            answer = self._describe(image, passed, deadline)
            _spend_bytes(image.item, answer)
            self._cache.put(image.item, answer)
            return self._localize(answer, image.item.options)
        except RequestError as error:
            return error.without_frames()
        except Exception:
            logger.exception("An answer could not be made.")
            return _unclassified()

    def _describe(self, image: Prepared, passed: Passed, deadline: float) -> Answer:
        """Make an answer that is not localized.

        Raises:
            RequestError: as `_explain` does; or 413 `answer_too_large`, the features would not fit
                into what is left of the request's answer.
        """
        options, trace = image.item.options, image.item.trace
        with trace.stage("postprocess"):
            temperature = self.metadata.temperatures.get(options.tta, 1)
            tempered = postprocessing.temper(
                passed.probabilities, temperature, self.metadata.activation
            )
            predictions = postprocessing.most_probable(
                tempered, self.metadata.categories, options.top_k
            )
            labels, is_confident = self._judge(tempered, predictions, options.threshold)
            trace.margin = self._margin(tempered, options.threshold)
            is_unfamiliar = self._is_unfamiliar(passed, options.tta)
            (view,) = image.views.stacked(1)
            trace.look = hints.measure(view)
            found = None
            if not is_confident or is_unfamiliar:
                found = hints.find(
                    trace.look, image.size, image.luma_table, self.metadata.transforms
                )
        if options.explain:
            with trace.stage("explain"):
                predictions = self._explain(image, predictions, deadline)
        answer: Answer = {
            "model": self._name,
            "architecture": self.metadata.architecture,
            "version": self._version,
            "tta": options.tta,
            "predictions": predictions,
            "confident": is_confident,
        }
        if labels is not None:
            answer["labels"] = labels
        if options.tta in self.metadata.plausible:
            least = self.metadata.plausible[options.tta]
            answer["plausible"] = postprocessing.plausible(predictions, least)
        if is_unfamiliar is not None:
            answer["unfamiliar"] = is_unfamiliar
        if found:
            answer["hints"] = found
        if options.features:
            assert passed.features is not None
            image.item.budget.check_bytes(postprocessing.least_bytes(passed.features))
            answer["features"] = postprocessing.rounded(passed.features)
        return answer

    def _judge(
        self,
        probabilities: NDArray[np.floating[Any]],
        predictions: Sequence[Prediction],
        threshold: float | None,
    ) -> tuple[list[str] | None, bool]:
        """Hold an image's probabilities against the request's threshold, or the model's own.

        Returns:
            The labels of a multi-label model, otherwise None; and whether the answer is confident.
        """
        if not self.metadata.multi_label:
            assert threshold is not None  # `_check_options` refused that.
            return None, postprocessing.is_confident(predictions, threshold)
        thresholds = self._thresholds(threshold)
        labels = postprocessing.labels_above(probabilities, self.metadata.categories, thresholds)
        return labels, postprocessing.is_sure(probabilities, labels, thresholds)

    def _margin(self, probabilities: NDArray[np.floating[Any]], threshold: float | None) -> float:
        """Return how far the best match, or the closest label, is from its threshold.

        It is rounded as probabilities are in answers.
        """
        if not self.metadata.multi_label:
            probabilities = probabilities.max(keepdims=True)
        return round(float(np.abs(probabilities - self._thresholds(threshold)).min()), 6)

    def _thresholds(self, threshold: float | None) -> Sequence[float]:
        """Return a request's threshold, or those of a multi-label model, in class-index order."""
        own = self.metadata.thresholds
        return own if threshold is None else [threshold] * max(1, len(own))

    def _is_unfamiliar(self, passed: Passed, mode: TTA) -> bool | None:
        """Tell whether an image is probably of no class; None where the archive cannot tell."""
        if (tell := self._unfamiliar.get(mode)) is None or passed.features is None:
            return None
        return tell(passed.features)

    def _explain(
        self, image: Prepared, predictions: Sequence[Prediction], deadline: float
    ) -> list[Prediction]:
        """Return the predictions, each with the map of what speaks for it in the first view.

        Raises:
            RequestError: 503 `request_too_slow`; or 413 `answer_too_large`, the maps would not fit
                into what is left of the request's answer.
            ValueError: the map is not finite.
        """
        item = image.item
        check(deadline)
        item.budget.check_bytes()
        box = view_box(image.size, self.metadata.transforms, item.options.tta)
        (contributions,) = self._runtime.contributions(image.views.stacked(1))
        item.budget.check_bytes(explanation.least_bytes(contributions.shape[:2]) * len(predictions))
        if not np.isfinite(contributions).all():
            raise ValueError("The model's map is not finite.")
        return explanation.explain(contributions, predictions, box, image.orientation)

    def _localize(self, answer: Answer, options: Options) -> Answer:
        """Localize an answer. In English it has names only if the archive has, which are rare."""
        language, labels = options.language, self.metadata.categories
        names = self.metadata.names.get(language, None if language == "en" else labels)
        return postprocessing.localize(answer, options, names)


def _ready(ahead: deque[Future[Prepared | Outcome]]) -> Iterator[Prepared | Outcome]:
    """Take the first quarter, for which it waits, and those behind it that are ready.

    So there are few forward passes while much is to be decoded, and a short one at the end.
    """
    for _ in range(max(1, len(ahead) // 4)):
        yield ahead.popleft().result()
    while ahead and ahead[0].done():
        yield ahead.popleft().result()


def _checked(passed: Passed, multi_label: bool) -> list[Passed | RequestError]:
    """Put an error in place of each row that is no distribution, such as one with NaN in it.

    Its probabilities sum to 1; those of a multi-label model are each from 0 to 1.
    """
    averages = passed.probabilities
    if multi_label:
        # An average of ones may round to a little more.
        errors, most = np.abs(averages - averages.clip(0, 1)).max(axis=1), ROUNDING
        averages = averages.clip(0, 1)
    else:
        errors, most = abs(averages.sum(axis=1) - 1), MAX_SUM_ERROR
    features = [None] * len(averages) if passed.features is None else passed.features
    checked: list[Passed | RequestError] = []
    for average, error, of_image in zip(averages, errors, features, strict=True):
        if error <= most:
            checked.append(Passed(average, of_image))
        else:
            what = "are not from 0 to 1" if multi_label else "do not sum to 1"
            logger.error("The model's probabilities %s.", what)
            checked.append(_unclassified())
    return checked


def _spend_bytes(item: Item, answer: Answer) -> None:
    """Take an answer's size from what its request's answer may have.

    Raises:
        RequestError: 413 `answer_too_large`.
    """
    parts = (answer.get(part) for part in ("predictions", "labels", "features"))
    item.budget.spend_bytes(sum(len(to_json(part)) for part in parts if part is not None))


def _invalid_option(message: str) -> RequestError:
    return RequestError(400, "invalid_option", message)


def _unprepared() -> RequestError:
    logger.exception("An image could not be prepared.")
    return RequestError(500, "internal_error", "The image could not be prepared.")


def _unclassified() -> RequestError:
    return RequestError(500, "internal_error", "The image could not be classified.")
