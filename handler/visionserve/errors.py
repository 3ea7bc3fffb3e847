"""The one error that a client sees."""

from typing import Any


class RequestError(Exception):
    """A request, or one image of it, that cannot be answered.

    Args:
        status: HTTP status code, 4xx for the client's faults and 5xx for ours.
        code: stable machine-readable name, such as ``unsupported_format``.
        message: one sentence for people; never holds image content or a traceback.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message

    def body(self) -> dict[str, Any]:
        """Return the JSON object that answers the request."""
        return {"error": {"code": self.code, "message": self.message}}
