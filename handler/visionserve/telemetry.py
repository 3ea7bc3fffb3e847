"""What an operator sees of the requests: counters for Prometheus, and lines in a log."""

import json
import logging
import re
import threading
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import get_args

from ts.metrics.metric_abstract import MetricAbstract
from ts.metrics.metric_cache_abstract import MetricCacheAbstract
from ts.metrics.metric_cache_errors import MetricsCacheKeyError
from ts.metrics.metric_type_enum import MetricTypes

from visionserve import drift
from visionserve.answer import Outcome
from visionserve.errors import RequestError
from visionserve.item import Item
from visionserve.self_check import Checked
from visionserve.trace import Stage

FLUSH_SECONDS = 1.0
TRACE_HEADER = "traceparent"

# Upper bounds of the histograms' buckets, in seconds.
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
WITHIN = (*(f"{bound:g}" for bound in BOUNDS), "+Inf")
REQUEST, STAGE = "vision_request_seconds_bucket", "vision_stage_seconds_bucket"

# 1 if the model's self-check passed when its workers loaded, 0 if it is served in spite of that.
SELF_CHECK = "vision_self_check_success"

# Name of each counter to its dimensions beside the model's name and version. TorchServe 0.12 has
# histograms, but with bounds of its own and a line of a worker's output for each observation, so
# these are counters that have the names of a histogram's.
COUNTERS: dict[str, list[str]] = {
    "vision_answers_total": ["Outcome"],
    "vision_stage_seconds_total": ["Stage"],
    "vision_stage_runs_total": ["Stage"],
    STAGE: ["Stage", "le"],
    REQUEST: ["le"],
    "vision_cache_hits_total": [],
    "vision_low_confidence_total": [],
    "vision_unfamiliar_total": [],
    "vision_pictures_total": ["Property", "Bucket"],
    "vision_image_bytes_total": [],
    "vision_image_pixels_total": [],
    "vision_samples_total": ["Outcome"],
}

# Prometheus misses the first increment of a counter that it never saw at 0, so these, which
# alerts and panels depend on, are exported at 0.
EXPORTED_AT_ZERO: tuple[tuple[str, ...], ...] = (
    ("vision_answers_total", "ok"),
    ("vision_answers_total", "internal_error"),
    ("vision_cache_hits_total",),
    ("vision_low_confidence_total",),
    ("vision_unfamiliar_total",),
    *((REQUEST, bound) for bound in WITHIN),
    *((STAGE, stage, bound) for stage in get_args(Stage) for bound in WITHIN),
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
        classes: how many classes the model has.
        slow_seconds: a request that takes this long or longer is logged as slow.
        checked: what the model's self-check found, if it had pictures for that.
    """

    def __init__(
        self,
        metrics: MetricCacheAbstract,
        model: str,
        version: str,
        classes: int,
        slow_seconds: float,
        checked: Checked | None = None,
    ) -> None:
        self._model = model
        self._version = version
        self._classes = classes
        self._slow_seconds = slow_seconds
        self._metrics = {
            name: _metric(
                metrics, name, ["ModelName", "ModelVersion", *dimensions], MetricTypes.COUNTER
            )
            for name, dimensions in COUNTERS.items()
        }
        self._sums = defaultdict[tuple[str, ...], float](float, dict.fromkeys(EXPORTED_AT_ZERO, 0))
        for property_, buckets in drift.counts(classes).items():
            for bucket in range(buckets):
                self._sums["vision_pictures_total", property_, str(bucket)] = 0
        if checked is not None:
            names = ["ModelName", "ModelVersion"]
            passed = _metric(metrics, SELF_CHECK, names, MetricTypes.GAUGE)
            passed.add_or_update(float(checked.passed), [model, version])
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
                    self._sums[STAGE, stage, _within(spent)] += 1
                self._sums["vision_image_bytes_total",] += len(item.data)
                self._sums["vision_image_pixels_total",] += item.trace.pixels
            self._sums["vision_cache_hits_total",] += sum("cached" in a for a in answers)
            self._sums["vision_low_confidence_total",] += sum(not a["confident"] for a in answers)
            unfamiliar = sum(a.get("unfamiliar", False) for a in answers)
            self._sums["vision_unfamiliar_total",] += unfamiliar
            self._sums[REQUEST, _within(seconds)] += 1
            for item, outcome in zip(items, outcomes, strict=True):
                if not isinstance(outcome, RequestError) and item.trace.look is not None:
                    found = drift.buckets(item.trace.look, outcome, self._classes)
                    for property_, bucket in found.items():
                        self._sums["vision_pictures_total", property_, str(bucket)] += 1
        failed = len(answers) < len(outcomes)
        if failed or seconds >= self._slow_seconds:
            about = {"reason": "failed" if failed else "slow", "request_id": request_id}
            self._log(about | {TRACE_HEADER: trace}, items, codes, seconds)

    def add(self, name: str, *dimensions: str) -> None:
        """Add one to a counter."""
        with self._lock:
            self._sums[name, *dimensions] += 1

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
        for (name, *dimensions), value in _cumulated(sums).items():
            self._metrics[name].add_or_update(value, [self._model, self._version, *dimensions])

    def _flush_for_ever(self) -> None:
        while True:
            time.sleep(FLUSH_SECONDS)
            self.flush()


def _within(seconds: float) -> str:
    """Return the upper bound of the bucket that a time is in."""
    return WITHIN[bisect_left(BOUNDS, seconds)]


def _cumulated(sums: Mapping[tuple[str, ...], float]) -> dict[tuple[str, ...], float]:
    """Add what is in a histogram's bucket to all of its larger ones, as Prometheus counts it."""
    found = defaultdict[tuple[str, ...], float](float)
    for (*name, last), value in sums.items():
        histogram = name and name[0] in (REQUEST, STAGE)
        for bound in WITHIN[WITHIN.index(last) :] if histogram else (last,):
            found[*name, bound] += value
    return found


def trace_of(headers: Mapping[str, str]) -> str:
    """Return the header `traceparent` (W3C Trace Context); "" where it is absent or malformed."""
    given = headers.get(TRACE_HEADER, "").strip()
    return given if _TRACE.fullmatch(given) else ""


def _metric(
    metrics: MetricCacheAbstract, name: str, dimensions: list[str], kind: MetricTypes
) -> MetricAbstract:
    """Return the metric that `config/metrics.yaml` declares, or a new one if it declares none."""
    try:
        return metrics.get_metric(name, kind)
    except MetricsCacheKeyError:
        return metrics.add_metric_to_cache(
            metric_name=name, unit="count", dimension_names=dimensions, metric_type=kind
        )
