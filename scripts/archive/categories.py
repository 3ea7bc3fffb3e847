"""Read the user's own labels, and a map from labels to the names shown instead."""

import json
from pathlib import Path


def read_labels(file: Path) -> tuple[str, ...]:
    """Read a file with one label a line, in class-index order.

    Raises:
        ValueError: the file is not UTF-8, is empty, has a blank line, or has a label twice.
        OSError: the file cannot be read.
    """
    labels: dict[str, int] = {}
    lines = _read(file).splitlines()
    for number, line in enumerate(lines, start=1):
        label = line.strip()
        if not label:
            raise ValueError(f"{file}: line {number} is blank; give one label a line.")
        if label in labels:
            raise ValueError(f"{file}: {label} stands in lines {labels[label]} and {number}.")
        labels[label] = number
    if not labels:
        raise ValueError(f"{file}: holds no label.")
    return tuple(labels)


def read_map(file: Path, labels: tuple[str, ...]) -> dict[str, str]:
    """Read a JSON object that maps labels to the names shown instead.

    Raises:
        ValueError: the file does not hold such an object, or a key is not one of the labels.
        OSError: the file cannot be read.
    """
    try:
        names = json.loads(_read(file))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: is no JSON ({error}).") from None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f'{file}: is no JSON object of labels to names, {{"alp": "a meadow"}}.')
    if unknown := sorted(names.keys() - set(labels)):
        raise ValueError(f"{file}: no such label: {', '.join(unknown)}.")
    return names


def _read(file: Path) -> str:
    """Read UTF-8 text, without the byte order mark that some editors put before it."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        if "\0" in text:
            raise ValueError(f"{file}: holds NULs, as after a power cut; write it again.")
        return text
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ValueError(
            f"{file}: is not UTF-8 (byte 0x{byte:02x} at {error.start}); save it as UTF-8."
        ) from None
