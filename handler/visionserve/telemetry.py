"""What an operator sees of the requests: counters for Prometheus, and lines in a log."""

import json
import logging
import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from ts.metrics.metric_abstract import MetricAbstract
from ts.metrics.metric_cache_abstract import MetricCacheAbstract
from ts.metrics.metric_cache_errors import MetricsCacheKeyError
from ts.metrics.metric_type_enum import MetricTypes

from visionserve.answer import Outcome
from visionserve.errors import RequestError
from visionserve.item import Item

FLUSH_SECONDS = 1.0
TRACE_HEADER = "traceparent"

# Name of each counter to its dimensions beside the model's name and version.
COUNTERS: dict[str, list[str]] = {
    "vision_answers_total": ["Outcome"],
    "vision_stage_seconds_total": ["Stage"],
    "vision_stage_runs_total": ["Stage"],
    "vision_cache_hits_total": [],
    "vision_low_confidence_total": [],
    "vision_unfamiliar_total": [],
    "vision_image_bytes_total": [],
    "vision_image_pixels_total": [],
}

# Prometheus misses the first increment of a counter that it never saw at 0, so these, which
# alerts and panels depend on, are exported at 0.
EXPORTED_AT_ZERO: tuple[tuple[str, ...], ...] = (
    ("vision_answers_total", "ok"),
    ("vision_answers_total", "internal_error"),
    ("vision_cache_hits_total",),
    ("vision_low_confidence_total",),
    ("vision_unfamiliar_total",),
)

# A version, and ids of a trace and of a span that are not all zeros; https://www.w3.org/TR/trace-context/
_TRACE = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

requests_log = logging.getLogger("visionserve.requests")


class Telemetry:
    """Counts and logs requests.

    TorchServe's frontend reads a worker's metrics from its output, one line each. A request would
    cost a dozen lines, so a thread writes the sum of each counter once a second instead.

    Args:
        metrics: TorchServe's metrics API, `context.metrics`.
        model: the model's name in the server.
        version: the model's version.
        slow_seconds: a request that takes this long or longer is logged as slow.
    """

    def __init__(
        self, metrics: MetricCacheAbstract, model: str, version: str, slow_seconds: float
    ) -> None:
        self._model = model
        self._version = version
        self._slow_seconds = slow_seconds
        self._metrics = {
            name: _counter(metrics, name, ["ModelName", "ModelVersion", *dimensions])
            for name, dimensions in COUNTERS.items()
        }
        self._sums = defaultdict[tuple[str, ...], float](float, dict.fromkeys(EXPORTED_AT_ZERO, 0))
        self._lock = threading.Lock()
        threading.Thread(target=self._flush_for_ever, daemon=True, name="telemetry").start()

    def observe(
        self,
        request_id: str,
        items: Sequence[Item],
        outcomes: Sequence[Outcome],
        seconds: float,
        trace: str = "",
    ) -> None:
        """Count a request's images, and log the request if it failed or was slow.

        Args:
            request_id: TorchServe's ID of the request.
            items: the request's images.
            outcomes: what each of them came to.
            seconds: time from the batch's arrival in the worker to the request's response.
            trace: the trace that the request belongs to, as `trace_of` returns it.
        """
        codes = [o.code if isinstance(o, RequestError) else "ok" for o in outcomes]
        answers = [outcome for outcome in outcomes if not isinstance(outcome, RequestError)]
        with self._lock:
            for code in codes:
                self._sums["vision_answers_total", code] += 1
            for item in items:
                for stage, spent in item.trace.seconds.items():
                    self._sums["vision_stage_seconds_total", stage] += spent
                    self._sums["vision_stage_runs_total", stage] += 1
                self._sums["vision_image_bytes_total",] += len(item.data)
                self._sums["vision_image_pixels_total",] += item.trace.pixels
            self._sums["vision_cache_hits_total",] += sum("cached" in a for a in answers)
            self._sums["vision_low_confidence_total",] += sum(not a["confident"] for a in answers)
            unfamiliar = sum(a.get("unfamiliar", False) for a in answers)
            self._sums["vision_unfamiliar_total",] += unfamiliar
        failed = len(answers) < len(outcomes)
        if failed or seconds >= self._slow_seconds:
            about = {"reason": "failed" if failed else "slow", "request_id": request_id}
            self._log(about | {TRACE_HEADER: trace}, items, codes, seconds)

    def _log(
        self, about: Mapping[str, str], items: Sequence[Item], codes: list[str], seconds: float
    ) -> None:
        stages: Counter[str] = Counter()
        for item in items:
            stages.update(item.trace.seconds)
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "event": "request",
            **about,
            "model": self._model,
            "version": self._version,
            "outcomes": dict(Counter(codes)),
            "images": sum(item.fault is None for item in items),
            "bytes": sum(len(item.data) for item in items),
            "milliseconds": round(1000 * seconds, 2),
            "stages": {stage: round(1000 * spent, 2) for stage, spent in stages.items()},
        }
        requests_log.warning(json.dumps(line))

    def flush(self) -> None:
        """Give TorchServe what was counted since the last flush."""
        with self._lock:
            sums, self._sums = self._sums, defaultdict(float)
        for (name, *dimensions), value in sums.items():
            self._metrics[name].add_or_update(value, [self._model, self._version, *dimensions])

    def _flush_for_ever(self) -> None:
        while True:
            time.sleep(FLUSH_SECONDS)
            self.flush()


def trace_of(headers: Mapping[str, str]) -> str:
    """Return the header `traceparent` (W3C Trace Context); "" where it is absent or malformed."""
    given = headers.get(TRACE_HEADER, "").strip()
    return given if _TRACE.fullmatch(given) else ""


def _counter(metrics: MetricCacheAbstract, name: str, dimensions: list[str]) -> MetricAbstract:
    """Return the counter that `config/metrics.yaml` declares, or a new one if it declares none."""
    try:
        return metrics.get_metric(name, MetricTypes.COUNTER)
    except MetricsCacheKeyError:
        return metrics.add_metric_to_cache(
            metric_name=name,
            unit="count",
            dimension_names=dimensions,
            metric_type=MetricTypes.COUNTER,
        )
