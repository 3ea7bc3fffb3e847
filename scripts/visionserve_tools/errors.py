"""What a command says of an error."""

import difflib
from collections.abc import Collection


def closest(name: str, known: Collection[str]) -> str:
    """Return ` (is it NAME?)` with the known name that is most like another; "" if none is."""
    found = difflib.get_close_matches(name, known, n=1)
    return f" (is it {found[0]}?)" if found else ""


def told(error: BaseException) -> str:
    """Return an error's message, without the number that an operating system gives it.

    An error of HTTP that has no response tells its address alone.
    """
    if not isinstance(error, OSError):
        return str(error)
    request, response = getattr(error, "request", None), getattr(error, "response", None)
    if request is not None and response is None:
        late = " in time" if "Timeout" in type(error).__name__ else ""
        return f"{request.url}: does not answer{late}."
    if error.strerror is None:
        return str(error)
    reason = f"{error.strerror[:1].lower()}{error.strerror[1:]}."
    return f"{error.filename}: {reason}" if error.filename is not None else reason.capitalize()
