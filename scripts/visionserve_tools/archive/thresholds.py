"""Read the thresholds of a multi-label model's labels."""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from visionserve.config import Activation

DEFAULT = 0.5
FORMS = 'a CSV with the columns label and threshold, or a JSON object, {"dog": 0.4}'


def read(file: Path, categories: Sequence[str]) -> tuple[float, ...]:
    """Read thresholds in class-index order; a label that has none keeps `DEFAULT`.

    Args:
        file: `FORMS`, by its suffix.
        categories: the labels in class-index order.

    Raises:
        ValueError: the file has another form, a label that is not one of the archive's, or a
            threshold that is no number from 0 to 1; the message is one line.
        OSError: the file cannot be read.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{file}: is not UTF-8.") from None
    found = _json(file, text) if file.suffix.lower() == ".json" else _csv(file, text)
    thresholds: dict[str, float] = {}
    for label, value in found:
        if label not in categories:
            raise ValueError(f"{file}: the archive has no label {label}.")
        if label in thresholds:
            raise ValueError(f"{file}: {label} stands there twice.")
        thresholds[label] = _number(file, label, value)
    return tuple(thresholds.get(label, DEFAULT) for label in categories)


def of(activation: Activation, given: Sequence[float], count: int) -> tuple[float, ...]:
    """Return the thresholds of a model of so many labels; none if it is not multi-label.

    Args:
        activation: what follows the network.
        given: the owner's; `DEFAULT` each if there are none.
        count: how many labels it has.

    Raises:
        ValueError: there are some of a model that is not multi-label.
    """
    if activation == "sigmoid":
        return tuple(given or [DEFAULT] * count)
    if given:
        raise ValueError(
            "One output with two labels has no thresholds: the better one is the answer. Leave out "
            "--thresholds, or the first label."
        )
    return ()


def _json(file: Path, text: str) -> list[tuple[str, Any]]:
    """Return all members of an object, also those of one name."""
    try:
        content = json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, _Pairs):
        raise ValueError(f"{file}: takes {FORMS}.")
    return list(content)


class _Pairs(list[tuple[str, Any]]):
    """The members of a JSON object."""


def _csv(file: Path, text: str) -> Iterable[tuple[str, Any]]:
    rows = csv.DictReader(text.splitlines(), strict=True)
    try:
        rows.fieldnames = [name.strip().lower() for name in rows.fieldnames or ()]
        if not {"label", "threshold"} <= {*rows.fieldnames}:
            raise ValueError(f"{file}: takes {FORMS}.")
        return [((row["label"] or "").strip(), row["threshold"]) for row in rows]
    except csv.Error as error:
        raise ValueError(f"{file}, line {rows.line_num}: is no CSV ({error}).") from None


def _number(file: Path, label: str, value: Any) -> float:
    try:
        number = float(value) if isinstance(value, str | int | float) else -1.0
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1 or isinstance(value, bool):
        raise ValueError(f"{file}: {label}: {value} is no threshold from 0 to 1.")
    return number
