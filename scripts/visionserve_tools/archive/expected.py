"""The owner's own predictions, and how close an archive's answers are to them."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionserve.config import Activation
from visionserve.metadata import Comparison
from visionserve_tools.archive import multi_label

FORMS = 'columns "path" and one for each label, or "path", "label" and "probability"'
TOP = {"label", "probability"}
# Figures may be rounded, to a digit or two where there are few classes.
SUM_ERROR = 0.05
TIE = 0.01
WORST = 3
MANY = 5

Probabilities = NDArray[np.float64]


class ExpectationError(ValueError):
    """The owner's figures are not those of the archive; the message says how far they are off."""


@dataclass(frozen=True)
class Expected:
    """An owner's predictions, in the order of their file.

    Attributes:
        file: the file that they come from.
        photographs: the paths of the pictures.
        rows: for each picture, its probabilities by label; the best class's alone, or all.
        whole: whether every row has all classes.
        uneven: says which row's probabilities do not sum to 1, as a softmax's do; otherwise empty.
    """

    file: Path
    photographs: tuple[Path, ...]
    rows: tuple[dict[str, float], ...]
    whole: bool
    uneven: str = ""

    def arranged(self, categories: Sequence[str]) -> Probabilities:
        """Return the probabilities in class-index order, NaN where none is given.

        Raises:
            ValueError: a label is not one of the archive's, or a class of it has no column.
        """
        named = {label for row in self.rows for label in row}
        if unknown := sorted(named - {*categories}):
            raise ValueError(
                f"{self.file}: the archive has no label {_few(unknown)}; it has {_few(categories)}."
            )
        if self.whole and (lacking := [label for label in categories if label not in named]):
            raise ValueError(f"{self.file}: has no probabilities of {_few(lacking)}.")
        rows = [[row.get(label, math.nan) for label in categories] for row in self.rows]
        return np.array(rows, np.float64)


def read(file: Path) -> Expected:
    """Read predictions: CSV or JSON lines, by the file's suffix; see `FORMS`.

    In JSON lines, `probabilities` holds an object of labels to numbers in place of the columns.
    Paths start at the file's folder.

    Raises:
        ValueError: the file is malformed, a picture is missing or doubled, or numbers are no
            probabilities; the message is one line with the number of the first such line.
        OSError: the file cannot be read.
    """
    readers = {".csv": _csv, ".jsonl": _jsonl}
    if file.suffix.lower() not in readers:
        raise ValueError(f"{file}: is neither a .csv nor a .jsonl file.")
    photographs: dict[Path, int] = {}
    rows: list[dict[str, float]] = []
    forms: set[bool] = set()
    uneven = ""
    try:
        for line, path, row, whole in readers[file.suffix.lower()](file):
            where = f"{file}, line {line}"
            photograph = file.parent / path
            if not path or not photograph.is_file():
                raise ValueError(f"{where}: there is no picture {path or '(no path)'}.")
            if photograph in photographs:
                raise ValueError(f"{where}: {path} stands in line {photographs[photograph]} too.")
            photographs[photograph] = line
            rows.append(_checked(row, where))
            uneven = uneven or (_uneven(rows[-1], where) if whole else "")
            forms.add(whole)
    except UnicodeDecodeError:
        raise ValueError(f"{file}: is not UTF-8.") from None
    if not rows:
        raise ValueError(f"{file}: holds no predictions; it takes {FORMS}.")
    if len(forms) > 1:
        raise ValueError(f"{file}: some rows have all probabilities, and others one.")
    return Expected(file, tuple(photographs), tuple(rows), forms.pop(), uneven)


Row = tuple[int, str, dict[str, Any], bool]


def _csv(file: Path) -> Iterator[Row]:
    """Yield of each row its line, path, numbers by label, and whether they are all classes'."""
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, strict=True)
        try:
            columns = [column.strip() for column in reader.fieldnames or ()]
            labels = [column for column in columns if column != "path"]
            if "path" not in columns or not labels or len({*columns}) < len(columns):
                raise ValueError(
                    f"{file}: takes {FORMS}; it has {', '.join(columns) or 'nothing'}."
                )
            reader.fieldnames = columns
            top = {*labels} == TOP
            for given in reader:
                line = reader.line_num
                if None in given or None in given.values():
                    raise ValueError(f"{file}, line {line}: has not {len(columns)} fields.")
                found = {str(label): given[label] for label in labels}
                row = {found["label"].strip(): found["probability"]} if top else found
                yield line, given["path"], row, not top
        except csv.Error as error:
            raise ValueError(f"{file}, line {reader.line_num}: is no CSV ({error}).") from None


def _jsonl(file: Path) -> Iterator[Row]:
    """Yield what `_csv` does."""
    for line, text in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not text.strip():
            continue
        try:
            given = json.loads(text)
            whole = "probabilities" in given
            row = (
                dict(given["probabilities"].items())
                if whole
                else {str(given["label"]): given["probability"]}
            )
            path = given["path"]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise ValueError(
                f'{file}, line {line}: takes {{"path": ..., "probabilities": {{LABEL: ...}}}} or '
                '{"path": ..., "label": ..., "probability": ...}.'
            ) from None
        yield line, str(path), row, whole


def _checked(row: dict[str, Any], where: str) -> dict[str, float]:
    """Return a row's numbers as probabilities.

    Raises:
        ValueError: they are none.
    """
    found = {}
    for label, value in row.items():
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not 0 <= number <= 1 + SUM_ERROR:
            raise ValueError(
                f"{where}: {label}: {value} is no probability from 0 to 1; write those of softmax "
                "or sigmoid."
            )
        found[label] = number
    return found


def _uneven(row: dict[str, float], where: str) -> str:
    """Say that a row's probabilities do not sum to 1, if so it is."""
    total = sum(row.values())
    if abs(total - 1) <= SUM_ERROR:
        return ""
    return (
        f"{where}: the probabilities sum to {total:.3g}, not 1; write those of softmax, of all "
        "classes."
    )


def compare(
    found: Probabilities, expected: Probabilities, thresholds: Sequence[float] = ()
) -> Comparison:
    """Compare probabilities with the owner's, both of shape (photographs, classes).

    A class of whose probability the owner says nothing, NaN, is left out.

    Args:
        found: the archive's.
        expected: the owner's.
        thresholds: of a multi-label model.
    """
    rows = np.arange(len(expected))
    if thresholds:
        close = multi_label.compare(found, expected, thresholds)
        return Comparison(
            photographs=len(rows),
            mean_difference=close.mean,
            largest_difference=close.largest,
            agreement=close.agreement,
        )
    best, chosen = np.nanargmax(expected, axis=1), found.argmax(axis=1)
    ours = found[rows, chosen] - found[rows, best] <= TIE
    theirs = expected[rows, best] - expected[rows, chosen] <= TIE
    return Comparison(
        photographs=len(rows),
        mean_difference=float(np.abs(found - expected)[rows, best].mean()),
        largest_difference=float(np.nanmax(np.abs(found - expected))),
        agreement=float((ours | theirs).mean()),
    )


def describe(figures: Comparison, activation: Activation = "softmax") -> str:
    """Describe a comparison in one line."""
    if activation == "sigmoid":
        return (
            f"|p - p of its owner|: {figures.mean_difference:.6f} in the mean, of the worst class; "
            f"{figures.largest_difference:.6f} at most; same labels: {figures.agreement:.1%}; "
            f"{figures.photographs} photographs"
        )
    return (
        f"|p - p of its owner| of the owner's best class: {figures.mean_difference:.6f} in the "
        f"mean; of any class: {figures.largest_difference:.6f} at most; same best class: "
        f"{figures.agreement:.1%}; {figures.photographs} photographs"
    )


def worst(
    expected: Expected,
    figures: Probabilities,
    found: Probabilities,
    categories: Sequence[str],
    activation: Activation = "softmax",
) -> str:
    """Name the photographs whose probabilities differ most.

    Those of a multi-label model are compared for the class that differs most, others for the best
    class.
    """
    differences = np.abs(found - figures)
    told = []
    for index in np.nanmax(differences, axis=1).argsort()[::-1][:WORST]:
        theirs, ours = int(np.nanargmax(figures[index])), int(found[index].argmax())
        if activation == "sigmoid":
            theirs = ours = int(np.nanargmax(differences[index]))
        told.append(
            f"{expected.photographs[index]} ({categories[theirs]} {figures[index, theirs]:.3f}, "
            f"here {categories[ours]} {found[index, ours]:.3f})"
        )
    return ", ".join(told)


def _few(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - MANY} more" if len(labels) > MANY else ""
    return ", ".join(labels[:MANY]) + more
