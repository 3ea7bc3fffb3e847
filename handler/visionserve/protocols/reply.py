"""What all forms of a request have in common."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from visionserve.answer import Outcome
from visionserve.errors import RequestError

OK = (200, "ok")
MULTI_STATUS = (207, "multi_status")


@dataclass(frozen=True)
class Reply:
    """A response before it is encoded.

    Attributes:
        status: HTTP status code and reason phrase.
        body: what is encoded as JSON.
        binary: what follows the JSON, or None where the body is JSON alone.
    """

    status: tuple[int, str]
    body: Any
    binary: bytes | None = None


class Form(Protocol):
    """How the JSON body of one request is read, and how its response is written."""

    def fields(self) -> dict[str, Any]:
        """Return `data`, one image or several, and options by their names.

        Raises:
            RequestError: 400, the body is not of this form.
        """

    def reply(self, outcomes: Sequence[Outcome], many: bool, name: str, version: str) -> Reply:
        """Write the response.

        Args:
            outcomes: each image's answer or error, in the client's order; or the one error of a
                request that failed as a whole.
            many: whether the client sent a list; False for a request that failed as a whole.
            name: the model's name in the server.
            version: the model's version.
        """


def check_count(count: int, most: int) -> None:
    """Refuse a request of more than `most` images.

    Raises:
        RequestError: 413 `too_many_images`.
    """
    if count > most:
        raise RequestError(
            413, "too_many_images", f"A request may hold {most} images, not {count}."
        )


def body_of(outcome: Outcome) -> Mapping[str, Any]:
    """Return the JSON object of an answer or of an error."""
    return outcome.body() if isinstance(outcome, RequestError) else outcome


def errors_of(outcomes: Sequence[Outcome]) -> list[RequestError]:
    """Return the errors among outcomes."""
    return [outcome for outcome in outcomes if isinstance(outcome, RequestError)]


def status_of(outcomes: Sequence[Outcome], many: bool) -> tuple[int, str]:
    """Return the status of a single outcome, or 207 Multi-Status for a list with errors in it."""
    errors = errors_of(outcomes)
    if not errors:
        return OK
    return MULTI_STATUS if many else (errors[0].status, errors[0].code)


def failure(error: RequestError) -> Reply:
    """Return an error as both versions of the Open Inference Protocol write it: as one string."""
    return Reply((error.status, error.code), {"error": message_of(error)})


def message_of(error: RequestError) -> str:
    """Return an error as one line of text."""
    return f"{error.code}: {error.message}"
