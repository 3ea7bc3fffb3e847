"""TorchServe's entry point, named by the archive's manifest."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ts.context import Context
from visionserve import form, inputs, runtimes
from visionserve.classifier import Classifier, Item, Outcome
from visionserve.config import ModelConfig
from visionserve.errors import RequestError
from visionserve.metadata import Metadata

logger = logging.getLogger(__name__)

form.keep_repeated_parts()


class VisionHandler:
    """TorchServe's custom handler contract: `initialize` once, `handle` per batch."""

    def initialize(self, context: Context) -> None:
        """Load the archive that TorchServe unpacked.

        Raises:
            pydantic.ValidationError: `model-config.yaml` has an unknown key or a bad value.
        """
        directory = Path(context.system_properties["model_dir"])
        config = ModelConfig.model_validate(context.model_yaml_config)
        metadata = Metadata.load(directory)
        self._config = config.handler
        threads = self._config.threads or max(1, (os.cpu_count() or 1) // config.maxWorkers)
        gpu_id = context.system_properties.get("gpu_id")
        runtime = runtimes.load(directory, metadata, self._config, gpu_id, threads)
        version = context.manifest["model"].get("modelVersion", "")
        self._classifier = Classifier(runtime, metadata, self._config, version)

    def handle(self, rows: Sequence[Mapping[str, Any]], context: Context) -> list[bytes]:
        """Answer a batch of requests, each with its own HTTP status and JSON body."""
        requests = [self._read(row, context, index) for index, row in enumerate(rows)]
        items = [
            Item(image, request.options)
            for request in requests
            if isinstance(request, inputs.Request)
            for image in request.images
        ]
        outcomes = iter(self._classifier.classify(items))
        return [
            self._respond(request, [request], context, index)
            if isinstance(request, RequestError)
            else self._respond(request, [next(outcomes) for _ in request.images], context, index)
            for index, request in enumerate(requests)
        ]

    def _read(
        self, row: Mapping[str, Any], context: Context, index: int
    ) -> inputs.Request | RequestError:
        headers = {
            name.lower(): value
            for name, value in context.get_all_request_header(index).items()
            if isinstance(value, str)
        }
        try:
            return inputs.read(row, headers, self._config.defaults, self._config.max_images)
        except RequestError as error:
            return error

    def _respond(
        self,
        request: inputs.Request | RequestError,
        outcomes: list[Outcome],
        context: Context,
        index: int,
    ) -> bytes:
        """One outcome has its own status; a list with errors in it is 207 Multi-Status."""
        many = isinstance(request, inputs.Request) and request.many
        errors = [outcome for outcome in outcomes if isinstance(outcome, RequestError)]
        if errors:
            context.set_response_status(207 if many else errors[0].status, errors[0].code, index)
        context.set_response_content_type(index, "application/json")
        bodies = [
            outcome.body() if isinstance(outcome, RequestError) else outcome for outcome in outcomes
        ]
        return json.dumps(bodies if many else bodies[0], ensure_ascii=False).encode()
