"""TorchServe's entry point, which the archive's manifest names."""

import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

from ts.context import Context

from visionserve import heap, inputs, responses, workarounds
from visionserve.answer import Outcome, to_json
from visionserve.card import card, classes
from visionserve.classifier import Classifier
from visionserve.config import ModelConfig
from visionserve.errors import RequestError
from visionserve.item import Budget, Item
from visionserve.metadata import Metadata
from visionserve.page import Page, describe
from visionserve.protocols import v2
from visionserve.protocols.reply import OK
from visionserve.responses import Response
from visionserve.sampling import Report, Sampling
from visionserve.telemetry import Telemetry, trace_of
from visionserve.workarounds.response_size import max_response_size
from visionserve.workarounds.server_folder import server_folder

MAX_FAILURES = 10
SECONDS_TO_RESPOND = 1.0
WORKER = "x-visionserve-worker"

logger = logging.getLogger(__name__)


class VisionHandler:
    """TorchServe's contract for custom handlers: `initialize` once, then `handle` per batch."""

    def initialize(self, context: Context) -> None:
        """Load the archive that TorchServe has unpacked.

        Raises:
            pydantic.ValidationError: `model-config.yaml` has an unknown key or a bad value.
        """
        workarounds.apply()
        self._directory = Path(context.system_properties["model_dir"])
        config = ModelConfig.model_validate(context.model_yaml_config)
        self._name = context.model_name
        self._version = context.manifest["model"].get("modelVersion", "")
        self._classifier = Classifier.from_archive(
            self._directory,
            config,
            context.system_properties.get("gpu_id"),
            self._version,
            self._name,
        )
        metadata = self._classifier.metadata
        adapted = {
            "defaults": self._classifier.defaults,
            "deadline_seconds": config.deadline,
            "max_answer_bytes": min(config.handler.max_answer_bytes, max_response_size()),
        }
        self._config = config.handler.model_copy(update=adapted)
        self._telemetry = Telemetry(
            context.metrics,
            self._name,
            self._version,
            len(metadata.categories),
            self._config.slow_request_ms / 1000,
            self._classifier.checked,
        )
        self._sampling: Sampling | None = None
        if self._config.samples.on:
            folder = self._config.samples.directory
            self._sampling = Sampling(
                self._config.samples,
                folder if folder.is_absolute() else server_folder() / folder,
                self._name,
                self._version,
                metadata.categories,
                metadata.multi_label,
                lambda fate: self._telemetry.add("vision_samples_total", fate),
            )
        self._page = Page()
        self._card = card(
            *(self._name, self._version, metadata, self._config),
            *(self._classifier.precision, self._classifier.checked),
        )
        self._facts = describe(self._directory, metadata) | {
            "model": self._name,
            "runtime": f"{self._config.runtime} {self._classifier.precision}",
        }
        heap.leave_code()

    def handle(self, rows: Sequence[Mapping[str, Any]], context: Context) -> list[bytes]:
        """Respond to a batch of requests, to each with its own HTTP status, headers and body."""
        started = time.monotonic()
        deadline = started + self._config.deadline_seconds
        headers = [_headers(context, index) for index in range(len(rows))]
        requests = [
            inputs.read(row, given, self._config, deadline)
            for row, given in zip(rows, headers, strict=True)
        ]
        items = [item for request in requests for item in request.items]
        if self._sampling:
            with _aside("samples"):
                self._sampling.choose(items)
        answered = self._classifier.classify(items, deadline)
        if self._sampling:
            with _aside("samples"):
                self._sampling.name(items, answered)
        classified = iter(answered)
        bodies, sent = [], list[Outcome]()
        for index, request in enumerate(requests):
            outcomes = list(islice(classified, len(request.items)))
            try:
                response = self._respond(request, outcomes, deadline)
            except RequestError as error:
                outcomes = [error.without_frames()] * len(outcomes)
                response = responses.refuse(request, error, self._name, self._version)
            bodies.append(_send(response, context, index))
            sent += outcomes
            if request.items and not request.probe:
                seconds = time.monotonic() - started
                request_id = context.get_request_id(index)
                trace = trace_of(headers[index])
                with _aside("metrics"):
                    self._telemetry.observe(request_id, request.items, outcomes, seconds, trace)
        if self._sampling:
            with _aside("samples"):
                self._sampling.offer(items, sent)
        if self._classifier.failures >= MAX_FAILURES:
            self._end()
        return bodies

    def _respond(
        self, request: inputs.Request, outcomes: Sequence[Outcome], deadline: float
    ) -> Response:
        """Write a request's response.

        Raises:
            RequestError: 500 `internal_error`, the response cannot be written; 503
                `request_too_slow`, it cannot be drawn in time; 413 `answer_too_large`,
                TorchServe would kill the worker for its size; or as `Sampling.report` does.
        """
        try:
            if request.describes:
                return Response(to_json(self._describe(request.describes)))
            if request.report and not (request.items and isinstance(outcomes[0], RequestError)):
                return Response(to_json(self._take(request.report, request.items, outcomes)))
            if not request.items:
                return self._show_page()
            request.items[0].budget.check_bytes()
            response = self._write(request, outcomes, deadline)
        except RequestError:
            raise
        except Exception:
            logger.exception("A response could not be written.")
            raise RequestError(
                500, "internal_error", "The response could not be written."
            ) from None
        Budget(most_bytes=self._config.max_answer_bytes).check_bytes(len(response.body))
        return response

    def _take(
        self, report: Report, items: Sequence[Item], outcomes: Sequence[Outcome]
    ) -> dict[str, Any]:
        """Keep a report, with its picture if there is one; it raises as `Sampling.report` does."""
        assert self._sampling  # `inputs.read` refuses reports where samples are off.
        for item, outcome in zip(items, outcomes, strict=True):
            if not isinstance(outcome, RequestError):
                return self._sampling.report(report, item, outcome)
        return self._sampling.report(report)

    def _write(
        self, request: inputs.Request, outcomes: Sequence[Outcome], deadline: float
    ) -> Response:
        """Write the response to a request that has images, as PNG or as JSON.

        Raises:
            RequestError: as `Classifier.draw` does.
        """
        item, outcome = request.items[0], outcomes[0]
        if item.options.format == "png" and not isinstance(outcome, RequestError):
            return Response(self._classifier.draw(item, outcome, deadline), "image/png")
        return responses.respond(request, outcomes, self._name, self._version)

    def _show_page(self) -> Response:
        """Show the web page, which offers all models whose archives TorchServe has unpacked.

        Each archive lies in a folder beside this one. A folder that holds another handler, or
        that is being removed, cannot be described, and is left out.
        """
        policy = {"content-security-policy": self._page.content_security_policy}
        html = self._page.render(self._facts, self._models())
        return Response(html, "text/html; charset=utf-8", headers=policy)

    def _models(self) -> list[dict[str, Any]]:
        """Describe this model, and the others whose archives TorchServe has unpacked."""
        models = [self._facts]
        for directory in self._directory.parent.iterdir():
            if directory != self._directory:
                with suppress(OSError, KeyError, ValueError):
                    models.append(describe(directory, Metadata.load(directory)))
        return models

    def _describe(self, wanted: inputs.Description) -> dict[str, Any]:
        if wanted == "card":
            return self._card
        if wanted == "classes":
            return {"classes": classes(self._classifier.metadata)}
        if wanted == "ready":
            return {"name": self._name, "ready": True}
        versions = {facts["version"] for facts in self._models() if facts["model"] == self._name}
        features = self._classifier.metadata.explains
        return v2.metadata(self._name, sorted(versions), self._config.runtime, features)

    def _end(self) -> None:
        """End this worker shortly after it has responded, so that TorchServe starts another.

        A model whose passes all fail does not recover: after some CUDA errors, each further call
        of the process fails.
        """
        logger.error("%d forward passes in a row failed: this worker ends.", MAX_FAILURES)
        self._telemetry.flush()
        threading.Timer(SECONDS_TO_RESPOND, os._exit, (1,)).start()


@contextmanager
def _aside(what: str) -> Iterator[None]:
    """Log a fault of what no answer depends on, so that it costs no request its answer."""
    try:
        yield
    except Exception:
        logger.exception("The %s of a batch are not complete.", what)


def _headers(context: Context, index: int) -> dict[str, str]:
    """Return a request's headers. TorchServe adds those of form parts to them, as dicts."""
    given = context.get_all_request_header(index).items()
    return {name.lower(): value for name, value in given if isinstance(value, str)}


def _send(response: Response, context: Context, index: int) -> bytes:
    """Tell TorchServe a response's status and headers; return its body.

    nginx counts the workers by the header that names this one, and does not pass it on.
    """
    if response.status != OK:
        context.set_response_status(*response.status, index)
    context.set_response_content_type(index, response.content_type)
    context.set_response_header(
        index, WORKER, f"{os.getpid()}/{context.system_properties['batch_size']}"
    )
    for name, value in response.headers.items():
        context.set_response_header(index, name, value)
    return response.body
