"""Version 1 of the Open Inference Protocol, which is TensorFlow Serving's, too.

Source: https://kserve.github.io/website/docs/concepts/architecture/data-plane/v1-protocol
"""

from collections.abc import Mapping, Sequence
from typing import Any

from visionserve.answer import Outcome
from visionserve.errors import RequestError
from visionserve.protocols.reply import Reply, body_of, errors_of, failure, status_of


class V1:
    """`{"instances": [...]}` in, `{"predictions": [...]}` out.

    An instance is `{"data": BASE64}`, `{"b64": BASE64}`, `{"image_bytes": {"b64": BASE64}}` or
    the string itself. Options are members of the body beside `instances`.
    """

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._body = body

    def fields(self) -> dict[str, Any]:
        """Return the images of the instances, and the body's other members as options.

        Raises:
            RequestError: 400, `instances` is not a list.
        """
        instances = self._body["instances"]
        if not isinstance(instances, list):
            raise RequestError(400, "invalid_data", "instances must be a list.")
        images = {"data": [_image(instance) for instance in instances]}
        return {key: value for key, value in self._body.items() if key != "instances"} | images

    def reply(self, outcomes: Sequence[Outcome], many: bool, name: str, version: str) -> Reply:
        """Return an answer or an error for each instance; the error of a single one by itself."""
        errors = errors_of(outcomes)
        if errors and len(outcomes) == 1:
            return failure(errors[0])
        predictions = [body_of(outcome) for outcome in outcomes]
        return Reply(status_of(outcomes, many), {"predictions": predictions})


def _image(instance: Any) -> Any:
    """Return an instance's base64; return anything else as it is, to be refused as an image."""
    if isinstance(instance, dict) and len(instance) == 1:
        ((key, value),) = instance.items()
        if key == "image_bytes" and isinstance(value, dict) and value.keys() == {"b64"}:
            return value["b64"]
        if key in ("data", "b64"):
            return value
    return instance
