"""What an operator sees of the requests: counters for Prometheus, and lines in a log."""

import json
import logging
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from ts.metrics.metric_abstract import MetricAbstract
from ts.metrics.metric_cache_abstract import MetricCacheAbstract
from ts.metrics.metric_cache_errors import MetricsCacheKeyError
from ts.metrics.metric_type_enum import MetricTypes

from visionserve.errors import RequestError
from visionserve.item import Item

FLUSH_SECONDS = 1.0
COUNTERS: dict[str, list[str]] = {
    "vision_answers_total": ["Outcome"],
    "vision_stage_seconds_total": ["Stage"],
    "vision_stage_runs_total": ["Stage"],
    "vision_cache_hits_total": [],
    "vision_low_confidence_total": [],
    "vision_image_bytes_total": [],
    "vision_image_pixels_total": [],
}

# A counter that is first seen at 1 has not risen for Prometheus: these are seen at 0 before.
BORN_AT_ZERO: tuple[tuple[str, ...], ...] = (
    ("vision_answers_total", "ok"),
    ("vision_answers_total", "internal_error"),
    ("vision_cache_hits_total",),
    ("vision_low_confidence_total",),
)

requests_log = logging.getLogger("visionserve.requests")


class Telemetry:
    """Counts and logs requests.

    TorchServe's frontend reads a worker's metrics as lines of its output, one each; so that a
    request does not cost a dozen, a thread hands over each counter's sum once a second.

    Args:
        metrics: TorchServe's metrics API, `context.metrics`.
        model: the model's name in the server.
        version: its version.
        slow_seconds: time from which a request is logged as slow.
    """

    def __init__(
        self, metrics: MetricCacheAbstract, model: str, version: str, slow_seconds: float
    ) -> None:
        self._model = model
        self._version = version
        self._slow_seconds = slow_seconds
        self._metrics = {
            name: _counter(metrics, name, ["ModelName", *dimensions])
            for name, dimensions in COUNTERS.items()
        }
        self._sums = defaultdict[tuple[str, ...], float](float, dict.fromkeys(BORN_AT_ZERO, 0))
        self._lock = threading.Lock()
        _silence_prediction_time()
        threading.Thread(target=self._flush_for_ever, daemon=True, name="telemetry").start()

    def observe(
        self,
        request_id: str,
        items: Sequence[Item | RequestError],
        outcomes: Sequence[dict[str, Any] | RequestError],
        seconds: float,
    ) -> None:
        """Count a request's images, and log the request if it failed or was slow.

        Args:
            request_id: TorchServe's.
            items: the request's images, each with its trace; or the faults in their places.
            outcomes: an answer or an error for each of them.
            seconds: from the request's arrival in the worker to its answer.
        """
        codes = [o.code if isinstance(o, RequestError) else "ok" for o in outcomes]
        answers = [outcome for outcome in outcomes if isinstance(outcome, dict)]
        images = [item for item in items if isinstance(item, Item)]
        with self._lock:
            for code in codes:
                self._sums["vision_answers_total", code] += 1
            for image in images:
                for stage, spent in image.trace.seconds.items():
                    self._sums["vision_stage_seconds_total", stage] += spent
                    self._sums["vision_stage_runs_total", stage] += 1
                self._sums["vision_image_bytes_total",] += len(image.data)
                self._sums["vision_image_pixels_total",] += image.trace.pixels
            self._sums["vision_cache_hits_total",] += sum("cached" in a for a in answers)
            self._sums["vision_low_confidence_total",] += sum(not a["confident"] for a in answers)
        failed = len(answers) < len(outcomes)
        if failed or seconds >= self._slow_seconds:
            self._log(request_id, images, codes, seconds, "failed" if failed else "slow")

    def _log(
        self, request_id: str, images: Sequence[Item], codes: list[str], seconds: float, reason: str
    ) -> None:
        stages: Counter[str] = Counter()
        for image in images:
            stages.update(image.trace.seconds)
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "event": "request",
            "reason": reason,
            "request_id": request_id,
            "model": self._model,
            "version": self._version,
            "outcomes": dict(Counter(codes)),
            "images": len(images),
            "bytes": sum(len(image.data) for image in images),
            "milliseconds": round(1000 * seconds, 2),
            "stages": {stage: round(1000 * spent, 2) for stage, spent in stages.items()},
        }
        requests_log.warning(json.dumps(line))

    def flush(self) -> None:
        """Hand the sums since the last time to TorchServe."""
        with self._lock:
            sums, self._sums = self._sums, defaultdict(float)
        for (name, *dimensions), value in sums.items():
            self._metrics[name].add_or_update(value, [self._model, *dimensions])

    def _flush_for_ever(self) -> None:
        while True:
            time.sleep(FLUSH_SECONDS)
            self.flush()


def _counter(metrics: MetricCacheAbstract, name: str, dimensions: list[str]) -> MetricAbstract:
    """Return the counter that `config/metrics.yaml` declares, or one like it where it does not."""
    try:
        return metrics.get_metric(name, MetricTypes.COUNTER)
    except MetricsCacheKeyError:
        return metrics.add_metric_to_cache(
            metric_name=name,
            unit="count",
            dimension_names=dimensions,
            metric_type=MetricTypes.COUNTER,
        )


def _silence_prediction_time() -> None:
    """TorchServe's worker writes a line for each batch, whose time the stages show better."""
    logging.getLogger("ts.metrics.caching_metric").addFilter(
        lambda record: "PredictionTime" not in record.getMessage()
    )
