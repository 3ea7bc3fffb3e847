"""The time by which a batch is answered: every stage looks at it before it begins."""

import time

from visionserve.errors import RequestError


def check(deadline: float) -> None:
    """Refuse to begin another stage after the deadline.

    Args:
        deadline: a time by `time.monotonic`.

    Raises:
        RequestError: 503 `request_too_slow`.
    """
    if time.monotonic() > deadline:
        raise too_slow()


def too_slow() -> RequestError:
    """Return the error of an image, or of a request, whose turn did not come in time."""
    return RequestError(503, "request_too_slow", "Time ran out before the image's turn: try again.")
