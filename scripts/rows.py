"""One row per image, the same from every engine and in every format."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Body = Mapping[str, Any]
Row = dict[str, str | int | float | bool | None]

PREDICTION: Mapping[str, type] = {"label": str, "class_id": int, "probability": float}


class RunError(Exception):
    """The run cannot go on; the message says why, for people."""


def columns(top_k: int) -> dict[str, type]:
    """Name the columns in order, each with the type of its values; any value may be None."""
    predictions = {
        f"{name}_{rank}": kind for rank in range(1, top_k + 1) for name, kind in PREDICTION.items()
    }
    rest = {"model": str, "version": str, "tta": str, "confident": bool, "error": str}
    return {"path": str, **predictions, **rest}


def name(path: Path) -> str:
    """Return a path as valid Unicode; bytes that are no UTF-8 become `\\xNN`."""
    return os.fsencode(path).decode(errors="backslashreplace")


def row(path: Path, body: Body, top_k: int) -> Row:
    """Make the row of an image.

    Args:
        path: the image, as the user named it.
        body: the JSON object that answers it: an answer, or `{"error": ...}`, which becomes
            ``code: message`` in the column `error`.
        top_k: number of predictions, as sent in the request.

    Raises:
        RunError: an option is refused, and so would be every other image.
    """
    values: Row = dict.fromkeys(columns(top_k))
    values["path"] = name(path)
    if "error" in body:
        code, message = body["error"]["code"], body["error"]["message"]
        if code == "invalid_option":
            raise RunError(f"{code}: {message}")
        values["error"] = f"{code}: {message}"
        return values
    for rank, prediction in enumerate(body["predictions"], 1):
        values |= {f"{key}_{rank}": prediction[key] for key in PREDICTION}
    return values | {key: body[key] for key in ("model", "version", "tta", "confident")}


def fault(code: str, message: str) -> Body:
    """Return the body of an image that got no answer."""
    return {"error": {"code": code, "message": message}}


def unreadable(error: OSError | ValueError) -> Body:
    """Return the body of an image whose file cannot be read."""
    reason = error.strerror if isinstance(error, OSError) else None
    return fault("unreadable_file", reason or str(error))
