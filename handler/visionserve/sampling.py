"""Which pictures are kept with their answers, and small copies of them, for which nobody waits.

A copy is made while the decoded picture is there, before its answer is known. Once the batch is
answered, the copies that are to be kept go to a queue, from which a thread encodes and writes them.
What the queue or the disk has no room for is dropped, and counted.

The thread has the priority of the others: a slower one would make them wait for Python's lock.
"""

import io
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from PIL import Image
from pydantic import Field

from visionserve.answer import Answer, Outcome
from visionserve.config import SamplesConfig, Strict
from visionserve.errors import RequestError
from visionserve.item import Item
from visionserve.resizer import HAS_RESIZER, resize_box
from visionserve.sample_store import HOUR, ID_DIGITS, SampleStore

SIDE, QUALITY = 512, 90
# How many copies a batch has, and how many wait, at most: 25 MB each.
MOST = 32
# After a failure, such as a full disk, nothing is written for so many seconds.
PAUSE = 2.0
# A picture whose answer was just sent is kept within so many seconds, which is a view's time.
SOON = 0.1
OF_PREDICTION = ("label", "class_id", "probability")
TOLD = ("model", "version", "tta", "confident", "labels", "unfamiliar", "hints")

Reason = Literal["share", "uncertain", "unfamiliar", "reported"]
Fate = Literal["kept", "dropped"]

logger = logging.getLogger(__name__)


class Report(Strict):
    """What a person says of an answer.

    Attributes:
        id: the answer's `sample`; it may be absent where the picture is sent again.
        label: the right label; of a multi-label model, a list of all that are right. None and an
            empty list say that none of the model's is.
    """

    id: Annotated[str, Field(pattern=rf"^[0-9a-f]{{{ID_DIGITS}}}$")] | None = None
    label: str | list[str] | None

    @property
    def labels(self) -> list[str]:
        """The right labels."""
        named = [self.label] if isinstance(self.label, str) else self.label or []
        return list(dict.fromkeys(named))


@dataclass(frozen=True)
class _Waiting:
    id: str
    copy: Image.Image
    about: Mapping[str, Any]


class Sampling:
    """Keeps samples of one version of a model.

    Args:
        config: which pictures are kept.
        directory: where.
        model: the model's name in the server.
        version: the model's version.
        categories: the model's labels.
        is_multi_label: whether a picture may have several of them.
        count: is told what became of each picture that was to be kept.
    """

    def __init__(
        self,
        config: SamplesConfig,
        directory: Path,
        model: str,
        version: str,
        categories: Sequence[str],
        is_multi_label: bool,
        count: Callable[[Fate], None],
    ) -> None:
        self._config = config
        self._labels = frozenset(categories)
        self._is_multi_label = is_multi_label
        self._count = count
        most = config.max_mb * 1_000_000
        self._store = SampleStore(directory, model, version, most, config.days)
        self._waiting = queue.Queue[_Waiting](MOST)
        self._resumes: float | None = None
        threading.Thread(target=self._write_for_ever, daemon=True, name="samples").start()

    def choose(self, items: Sequence[Item]) -> None:
        """Choose the pictures of a batch that may be kept, so that copies of them are made."""
        candidates = [item for item in items if self._is_candidate(item)]
        candidates.sort(key=lambda item: not item.is_reported)
        for item in candidates[:MOST]:
            item.trace.is_candidate = True
        for item in candidates[MOST:]:
            if self._is_drawn(item):
                self._count("dropped")

    def _is_candidate(self, item: Item) -> bool:
        if item.probe or item.fault:
            return False
        depends = self._config.uncertain > 0 or self._config.unfamiliar
        return depends or item.is_reported or self._is_drawn(item)

    def _is_drawn(self, item: Item) -> bool:
        """Tell whether a picture belongs to the share. Its hash says so, each time the same."""
        return int(item.digest[-8:], 16) < self._config.share * 16**8

    def name(self, items: Sequence[Item], outcomes: Sequence[Outcome]) -> None:
        """Add its picture's id to each answer."""
        for item, outcome in zip(items, outcomes, strict=True):
            if not isinstance(outcome, RequestError) and not item.probe:
                outcome["sample"] = _id(item)

    def offer(self, items: Sequence[Item], outcomes: Sequence[Outcome]) -> None:
        """Have the pictures of an answered batch written that are to be kept."""
        for item, outcome in zip(items, outcomes, strict=True):
            copy, item.trace.copy = item.trace.copy, None
            if copy is None or isinstance(outcome, RequestError):
                continue
            if reasons := self._reasons(item, outcome):
                try:
                    self._waiting.put_nowait(_Waiting(_id(item), copy, about(outcome, reasons)))
                except queue.Full:
                    self._count("dropped")

    def _reasons(self, item: Item, answer: Answer) -> list[Reason]:
        is_uncertain = item.trace.margin <= self._config.uncertain > 0
        reasons: dict[Reason, bool] = {
            "share": self._is_drawn(item),
            "uncertain": is_uncertain,
            "unfamiliar": self._config.unfamiliar and answer.get("unfamiliar", False),
        }
        return [reason for reason, is_one in reasons.items() if is_one]

    def report(
        self, report: Report, item: Item | None = None, answer: Answer | None = None
    ) -> dict[str, Any]:
        """Keep a report beside its sample, in place of an earlier one.

        Args:
            report: what a person says.
            item: the picture, if it was sent again; it is kept as well.
            answer: its answer.

        Returns:
            What the client is told: the id as `sample`, and the labels as `reported`.

        Raises:
            RequestError: 400 `invalid_report`, the model has no such label, or the id is absent or
                another picture's; 404 `unknown_sample`, the picture is not kept; 507
                `report_not_kept`, the disk is full, say.
        """
        labels = report.labels
        if isinstance(report.label, list) and not self._is_multi_label:
            raise _invalid("label: the model gives a picture one label, not a list.")
        if unknown := [label for label in labels if label not in self._labels]:
            raise _invalid(f"label: the model has no label {unknown[0][:50]!r}.")
        id = report.id if item is None else _id(item)
        if id is None or report.id not in (None, id):
            raise _invalid("id: give the field sample of the picture's answer.")
        try:
            if item and answer and item.trace.copy:
                told = about(answer, [*self._reasons(item, answer), "reported"])
                if self._store.put(id, encoded(item.trace.copy), told):
                    self._count("kept")
            end = time.monotonic() + SOON
            while not self._store.holds(id) and time.monotonic() < end:
                time.sleep(SOON / 10)
            self._store.report(id, {"labels": labels, "time": _now()})
        except FileNotFoundError:
            raise RequestError(
                404,
                "unknown_sample",
                "The picture is not kept: send it as data, beside the report.",
            ) from None
        except OSError as error:
            logger.warning("A report cannot be kept: %s", error)
            raise RequestError(
                507, "report_not_kept", "The report could not be kept: try again later."
            ) from None
        return {"sample": id, "reported": labels}

    def _write_for_ever(self) -> None:
        """Write what waits, and look each hour for what is too old."""
        tidied = -math.inf
        while True:
            if time.monotonic() - tidied >= HOUR:
                self._attempt(self._store.tidy)
                tidied = time.monotonic()
            with suppress(queue.Empty):
                self._write(self._waiting.get(timeout=HOUR))

    def _write(self, waiting: _Waiting) -> None:
        if self._store.holds(waiting.id):
            return
        is_kept = self._resumes is None or time.monotonic() >= self._resumes
        if is_kept:
            put = self._store.put
            is_kept = self._attempt(lambda: put(waiting.id, encoded(waiting.copy), waiting.about))
        self._count("kept" if is_kept else "dropped")

    def _attempt(self, action: Callable[[], object]) -> bool:
        """Do what may fail, and tell whether it did not; log the first of several failures."""
        try:
            action()
        except Exception as error:
            if self._resumes is None:
                is_told = isinstance(error, OSError)
                logger.warning("Samples cannot be kept: %s", error, exc_info=not is_told)
            self._resumes = time.monotonic() + PAUSE
            return False
        if self._resumes is not None:
            logger.warning("Samples are kept again.")
        self._resumes = None
        return True


def small(image: Image.Image) -> Image.Image:
    """Return a copy of an upright RGB image, at most 512 pixels wide and high, without metadata.

    A file's own image would keep its metadata as well, which may have megabytes.
    """
    scale = min(1, SIDE / max(image.size))
    width, height = (max(1, round(scale * side)) for side in image.size)
    if (width, height) == image.size or not HAS_RESIZER:
        copy = image.resize((width, height), reducing_gap=2)
        copy.info = {}
        return copy
    return resize_box(image, (0, 0, *image.size), (width, height), "bilinear")


def encoded(image: Image.Image) -> bytes:
    """Encode a copy as a JPEG, which has nothing but its pixels."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def about(answer: Answer, reasons: Sequence[Reason]) -> dict[str, Any]:
    """Return what is kept of an answer: `time` (ISO 8601, UTC), why it was `kept`, and its fields.

    They are in no client's language, and have no explanations and no features.
    """
    told: Mapping[str, Any] = answer
    predictions = [
        {key: value for key, value in prediction.items() if key in OF_PREDICTION}
        for prediction in told["predictions"]
    ]
    fields = {key: told[key] for key in TOLD if key in told}
    return {"time": _now(), "kept": list(reasons), **fields, "predictions": predictions}


def _id(item: Item) -> str:
    return item.digest[:ID_DIGITS]


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _invalid(message: str) -> RequestError:
    return RequestError(400, "invalid_report", message)
