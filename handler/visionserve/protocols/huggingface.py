"""The form of Hugging Face's image classification, as its own client sends and reads it.

Source: https://huggingface.co/docs/inference-providers/tasks/image-classification
"""

from collections.abc import Mapping, Sequence
from typing import Any

from visionserve.answer import Outcome
from visionserve.errors import RequestError
from visionserve.protocols.reply import Reply, errors_of, failure, message_of, status_of


class HuggingFace:
    """`{"inputs": BASE64, "parameters": {...}}` in, `[{"label": ..., "score": ...}]` out.

    `inputs` may be a list of images, and the answer then is a list of such lists. `parameters`
    are options.
    """

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._body = body

    def fields(self) -> dict[str, Any]:
        """Return the images, and the parameters as options.

        Raises:
            RequestError: 400, the body has other members, or `parameters` is no object.
        """
        parameters = self._body.get("parameters", {})
        if not isinstance(parameters, dict) or self._body.keys() - {"inputs", "parameters"}:
            message = "Give images in inputs, and options in parameters."
            raise RequestError(400, "invalid_data", message)
        return parameters | {"data": self._body["inputs"]}

    def reply(self, outcomes: Sequence[Outcome], many: bool, name: str, version: str) -> Reply:
        """Return labels and scores, and for a list each image's, or its error in their place."""
        errors = errors_of(outcomes)
        if errors and not many:
            return failure(errors[0])
        bodies = [_labels(outcome) for outcome in outcomes]
        return Reply(status_of(outcomes, many), bodies if many else bodies[0])


def _labels(outcome: Outcome) -> Any:
    if isinstance(outcome, RequestError):
        return {"error": message_of(outcome)}
    return [{"label": p["label"], "score": p["probability"]} for p in outcome["predictions"]]
