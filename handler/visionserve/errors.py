"""The error that a client gets in place of an answer."""

from typing import Any, Self


class RequestError(Exception):
    """A request, or one image of a request, that gets no answer.

    Args:
        status: HTTP status code, 4xx if the client is at fault and 5xx if the service is.
        code: stable machine-readable name, such as ``unsupported_format``.
        message: one sentence for people, without image content and without a traceback.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message

    def without_frames(self) -> Self:
        """Forget the frames in which this error was raised, so that it can be kept.

        Their variables hold the image that is refused, up to 100 MB of decoded pixels.
        """
        self.__traceback__ = self.__context__ = self.__cause__ = None
        return self

    def body(self) -> dict[str, Any]:
        """Return the error as a JSON object."""
        return {"error": {"code": self.code, "message": self.message}}
