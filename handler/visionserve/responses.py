"""From a request's outcomes to its HTTP response."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from visionserve.answer import Outcome, to_json
from visionserve.errors import RequestError
from visionserve.inputs import Request
from visionserve.protocols.reply import OK, Reply
from visionserve.protocols.v2 import LENGTH_HEADER


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
    """Write the response to a request that has images.

    Args:
        request: the request.
        outcomes: each image's answer or error, in order.
        name: the model's name in the server.
        version: the model's version.
    """
    return _from_reply(request.form.reply(outcomes, request.many, name, version))


def refuse(request: Request, error: RequestError, name: str, version: str) -> Response:
    """Write the response to a request that fails as a whole."""
    return _from_reply(request.form.reply([error], many=False, name=name, version=version))


def _from_reply(reply: Reply) -> Response:
    body = to_json(reply.body)
    if reply.binary is None:
        return Response(body, status=reply.status)
    length = {LENGTH_HEADER: str(len(body))}
    return Response(body + reply.binary, "application/octet-stream", reply.status, length)
