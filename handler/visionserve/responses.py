"""From a request's outcomes to its HTTP response."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from visionserve import explanation
from visionserve.answer import Outcome
from visionserve.errors import RequestError
from visionserve.inputs import Request
from visionserve.protocols.reply import OK, Reply


@dataclass(frozen=True)
class Response:
    """What a client gets.

    Attributes:
        body: the bytes of the body.
        content_type: the body's media type.
        status: HTTP status code and reason phrase.
        headers: further headers.
    """

    body: bytes
    content_type: str = "application/json"
    status: tuple[int, str] = OK
    headers: Mapping[str, str] = field(default_factory=dict)


def respond(request: Request, outcomes: Sequence[Outcome], name: str, version: str) -> Response:
    """Write the response to a request that has images, as PNG or as JSON.

    Args:
        request: the request.
        outcomes: each image's answer or error, in order.
        name: the model's name in the server.
        version: the model's version.
    """
    item, outcome = request.items[0], outcomes[0]
    if item.options.format == "png" and not isinstance(outcome, RequestError):
        best = outcome["predictions"][0]
        return Response(explanation.overlay(item.data, best["explanation"]), "image/png")
    return _from_reply(request.form.reply(outcomes, request.many, name, version))


def refuse(request: Request, error: RequestError, name: str, version: str) -> Response:
    """Write the response to a request that fails as a whole."""
    return _from_reply(request.form.reply([error], many=False, name=name, version=version))


def to_json(value: Any) -> bytes:
    """Encode a value as JSON.

    Raises:
        ValueError: it holds a number that JSON cannot express, such as NaN.
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


def _from_reply(reply: Reply) -> Response:
    return Response(to_json(reply.body), status=reply.status)
