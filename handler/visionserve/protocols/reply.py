"""What every form of a request has in common."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from visionserve.errors import RequestError

Outcome = Mapping[str, Any] | RequestError

OK = (200, "ok")
MULTI_STATUS = (207, "multi_status")


@dataclass(frozen=True)
class Reply:
    """What a client gets.

    Attributes:
        status: HTTP status code and reason phrase.
        body: encoded as JSON.
    """

    status: tuple[int, str]
    body: Any


class Form(Protocol):
    """How the JSON body of one request is read, and how the request is answered."""

    def fields(self) -> dict[str, Any]:
        """Return `data`, one or several images, and options by their names.

        Raises:
            RequestError: 400, the body is not of this form.
        """

    def reply(self, outcomes: Sequence[Outcome], many: bool, name: str, version: str) -> Reply:
        """Answer the request.

        Args:
            outcomes: an answer or an error for each image, in the client's order.
            many: whether the client sent a list; a request that failed as a whole is none.
            name: the model's name in the server.
            version: its version.
        """


def body_of(outcome: Outcome) -> Mapping[str, Any]:
    """Return the object of an answer or of an error."""
    return outcome.body() if isinstance(outcome, RequestError) else outcome


def errors_of(outcomes: Sequence[Outcome]) -> list[RequestError]:
    """Return the errors alone."""
    return [outcome for outcome in outcomes if isinstance(outcome, RequestError)]


def status_of(outcomes: Sequence[Outcome], many: bool) -> tuple[int, str]:
    """One outcome has its own status; a list with errors in it is 207 Multi-Status."""
    errors = errors_of(outcomes)
    if not errors:
        return OK
    return MULTI_STATUS if many else (errors[0].status, errors[0].code)


def failure(error: RequestError) -> Reply:
    """Both versions of the Open Inference Protocol tell an error by its message alone."""
    return Reply((error.status, error.code), {"error": message_of(error)})


def message_of(error: RequestError) -> str:
    """Return an error as one line of text."""
    return f"{error.code}: {error.message}"
