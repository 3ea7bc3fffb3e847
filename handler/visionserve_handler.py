"""TorchServe's entry point, named by the archive's manifest."""

import json
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ts.context import Context

from visionserve import explanation, form, frontend, inputs
from visionserve.card import card
from visionserve.classifier import Classifier, Outcome
from visionserve.config import ModelConfig
from visionserve.errors import RequestError
from visionserve.item import Budget, Item
from visionserve.metadata import Metadata
from visionserve.page import Page, describe
from visionserve.protocols.reply import OK
from visionserve.telemetry import Telemetry

PROBE = "x-visionserve-probe"

# TorchServe's worker logs a line per request at INFO; its metrics are lines at INFO as well.
logging.getLogger().setLevel(logging.WARNING)
logging.getLogger("ts.metrics").setLevel(logging.INFO)

form.keep_repeated_parts()

MAX_FAILURES = 10
SECONDS_TO_ANSWER = 1.0


class VisionHandler:
    """TorchServe's custom handler contract: `initialize` once, `handle` per batch."""

    def initialize(self, context: Context) -> None:
        """Load the archive that TorchServe unpacked.

        Raises:
            pydantic.ValidationError: `model-config.yaml` has an unknown key or a bad value.
        """
        directory = Path(context.system_properties["model_dir"])
        config = ModelConfig.model_validate(context.model_yaml_config)
        version = context.manifest["model"].get("modelVersion", "")
        gpu_id, name = context.system_properties.get("gpu_id"), context.model_name
        self._classifier = Classifier.from_archive(directory, config, gpu_id, version, name)
        metadata = self._classifier.metadata
        known = {"defaults": self._classifier.defaults, "deadline_seconds": config.deadline}
        self._config = config.handler.model_copy(update=known)
        self._max_response_size = frontend.max_response_size()
        self._telemetry = Telemetry(
            context.metrics, context.model_name, version, self._config.slow_request_ms / 1000
        )
        self._page = Page()
        self._card = card(context.model_name, version, metadata, self._config)
        self._directory = directory
        self._facts = describe(directory, metadata) | {"model": context.model_name}

    def handle(self, rows: Sequence[Mapping[str, Any]], context: Context) -> list[bytes]:
        """Answer a batch of requests, each with its own HTTP status and body.

        A browser's GET is answered with the web page, and a description that is asked for
        through the management API with the model card.
        """
        if context.get_request_header(0, "describe") == "True":
            return [json.dumps(self._card, ensure_ascii=False).encode()]
        started = time.monotonic()
        requests = [self._read(row, context, index) for index, row in enumerate(rows)]
        items = [self._items(request) for request in requests]
        sound = [item for of_request in items for item in of_request if isinstance(item, Item)]
        outcomes = iter(self._classifier.classify(sound, started + self._config.deadline_seconds))
        responses = []
        for index, (request, of_request) in enumerate(zip(requests, items, strict=True)):
            if request is None:
                responses.append(self._show_page(context, index))
                continue
            answers = [next(outcomes) if isinstance(i, Item) else i for i in of_request]
            response = self._respond(request, answers, context, index)
            if len(response) > self._max_response_size:
                error = RequestError(
                    413,
                    "answer_too_large",
                    f"The answer has {len(response)} bytes; at most {self._max_response_size} may "
                    "be: ask for a smaller top_k, or send fewer images.",
                )
                answers = [error] * len(answers)
                alone = replace(request, many=False)
                response = self._respond(alone, [error], context, index)
            responses.append(response)
            if not request.probe:
                seconds = time.monotonic() - started
                self._telemetry.observe(context.get_request_id(index), of_request, answers, seconds)
        if self._classifier.failures >= MAX_FAILURES:
            self._end()
        return responses

    def _end(self) -> None:
        """End this worker once its answers are sent, so that TorchServe starts another.

        A model whose every pass fails does not recover: after some CUDA errors, each later call
        of the process fails.
        """
        logging.error("%d forward passes in a row failed: this worker ends.", MAX_FAILURES)
        self._telemetry.flush()
        threading.Timer(SECONDS_TO_ANSWER, os._exit, (1,)).start()

    def _items(self, request: inputs.Request | None) -> list[Item | RequestError]:
        if request is None:
            return []
        budget = Budget(self._config.max_work)
        return [
            image
            if isinstance(image, RequestError)
            else Item(image, request.options, request.probe, budget)
            for image in request.images
        ]

    def _read(self, row: Mapping[str, Any], context: Context, index: int) -> inputs.Request | None:
        """Read a request; None stands for a browser's GET.

        TorchServe does not tell a handler the method, and a GET looks like a POST of nothing:
        only a client that accepts HTML gets the page, any other an error.
        """
        headers = {
            name.lower(): value
            for name, value in context.get_all_request_header(index).items()
            if isinstance(value, str)
        }
        if row == {"body": b""} and "text/html" in headers.get("accept", ""):
            return None
        request = inputs.read(row, headers, self._config.defaults, self._config.max_images)
        return replace(request, probe=PROBE in headers)

    def _respond(
        self, request: inputs.Request, outcomes: Sequence[Outcome], context: Context, index: int
    ) -> bytes:
        if request.options.format == "png" and isinstance(outcomes[0], dict):
            context.set_response_content_type(index, "image/png")
            (photograph,) = request.images
            assert isinstance(photograph, bytes)
            return explanation.overlay(photograph, outcomes[0]["predictions"][0]["explanation"])
        reply = request.form.reply(
            outcomes, request.many, self._facts["model"], self._facts["version"]
        )
        if reply.status != OK:
            context.set_response_status(*reply.status, index)
        context.set_response_content_type(index, "application/json")
        return json.dumps(reply.body, ensure_ascii=False, allow_nan=False).encode()

    def _show_page(self, context: Context, index: int) -> bytes:
        """TorchServe unpacks each registered archive beside this one, manifest included.

        One of another handler, or one that is being removed, cannot be described: the page does
        without it.
        """
        models = [self._facts]
        for directory in self._directory.parent.iterdir():
            if directory != self._directory:
                with suppress(OSError, KeyError, ValueError):
                    models.append(describe(directory, Metadata.load(directory)))
        context.set_response_content_type(index, "text/html; charset=utf-8")
        context.set_response_header(
            index, "content-security-policy", self._page.content_security_policy
        )
        return self._page.render(self._facts, models)
