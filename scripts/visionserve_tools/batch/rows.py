"""One row per image, the same from every engine and in every format."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from visionserve_tools.kept import read_file

Value = str | int | float | bool | None
Body = Mapping[str, Any]
Row = dict[str, Value]
Truth = Callable[[Path], str | None]

# Codes of errors that are the server's fault, so that another try may classify the image.
SERVER_FAULTS = frozenset(
    {
        *("server_error", "internal_error", "request_too_slow", "report_not_kept"),
        *("timeout", "broken_connection"),
    }
)
PREDICTION: Mapping[str, type] = {"label": str, "class_id": int, "probability": float}


class RunError(Exception):
    """The run cannot go on; the message says why, for people."""


def columns(top_k: int, truth: bool = False) -> dict[str, type]:
    """Return the columns in order, each with the type of its values; any value may be None.

    `labels` has the labels of a multi-label model's answer, joined by semicolons; "" is an answer
    without a label, None one of another model.

    Args:
        top_k: number of predictions.
        truth: whether the label that the user gave stands before the predictions.
    """
    predictions = {
        f"{name}_{rank}": kind for rank in range(1, top_k + 1) for name, kind in PREDICTION.items()
    }
    rest = {"model": str, "version": str, "tta": str, "confident": bool}
    more = {"labels": str, "unfamiliar": bool, "plausible": int, "hints": str, "error": str}
    return {"path": str, **({"truth": str} if truth else {}), **predictions, **rest, **more}


def name(path: Path) -> str:
    """Return a path as valid Unicode; bytes that are not UTF-8 become `\\xNN`."""
    return os.fsencode(path).decode(errors="backslashreplace")


def row(path: Path, body: Body, top_k: int, truth: Truth | None = None, named: bool = False) -> Row:
    """Make the row of an image.

    Args:
        path: the image, as the user named it.
        body: the JSON object of its answer, or `{"error": ...}`, which becomes
            ``code: message`` in the column `error`.
        top_k: number of predictions in a row; a model of fewer classes leaves some empty.
        truth: gives the column `truth`; None for a row without it.
        named: whether the names in the answer's language take the place of the labels.

    Raises:
        RunError: an option is refused, which would fail every other image too.
    """
    values: Row = dict.fromkeys(columns(top_k, truth is not None))
    values["path"] = name(path)
    if truth is not None:
        values["truth"] = truth(path)
    if "error" in body:
        code, message = body["error"]["code"], body["error"]["message"]
        if code == "invalid_option":
            raise RunError(f"{code}: {message}")
        values["error"] = f"{code}: {message}"
        return values
    for rank, prediction in enumerate(body["predictions"][:top_k], 1):
        name_or_label = prediction.get("name", prediction["label"])
        shown = prediction | ({"label": name_or_label} if named else {})
        values |= {f"{key}_{rank}": shown[key] for key in PREDICTION}
    values |= {key: body[key] for key in ("model", "version", "tta", "confident")}
    return values | {
        "labels": ";".join(body["labels"]) if "labels" in body else None,
        "unfamiliar": body.get("unfamiliar"),
        "plausible": body.get("plausible"),
        "hints": " ".join(body.get("hints", ())) or None,
    }


def fault(code: str, message: str) -> Body:
    """Return the body of an image that got no answer."""
    return {"error": {"code": code, "message": message}}


def is_server_fault(error: Value) -> bool:
    """Tell whether the column `error` blames the server, so that its image is asked for again."""
    return isinstance(error, str) and error.partition(":")[0] in SERVER_FAULTS


def read_image(path: Path, limit: int) -> bytes:
    """Read an image file, but no more than one byte above the limit.

    Args:
        path: the file. A pipe, a device or a folder is not read, because it may never end.
        limit: largest size, in bytes; the byte above it shows that a file is too large.

    Raises:
        OSError: the file cannot be read, or is not a regular file.
        ValueError: no file can have this name.
    """
    return read_file(path, limit + 1)


def unreadable(error: OSError | ValueError) -> Body:
    """Return the body of an image whose file cannot be read."""
    reason = error.strerror if isinstance(error, OSError) else None
    return fault("unreadable_file", reason or str(error))
