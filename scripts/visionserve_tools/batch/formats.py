"""Rows as text: a table for people, CSV for spreadsheets, JSON Lines for programs."""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from tqdm.utils import disp_len

from visionserve_tools.batch.rows import Row, Value, columns
from visionserve_tools.report.tables import printable

_FORMULA = re.compile(r"(^|[;\t\r\n])(?=[ \"]*[=+\-@\t\r\n＝＋－＠])")
NAME_WIDTH = 40
MARK = "\ufeff"


class Table:
    """A table for people, with a line for each image.

    Control characters are replaced, and a long path is cut at its start.
    """

    head = f"{'IMAGE':<{NAME_WIDTH}}  PREDICTIONS\n"

    def __init__(self, top_k: int) -> None:
        self._top_k = top_k

    def encode(self, row: Row) -> str:
        """Return one line."""
        if row["error"]:
            text = f"error: {row['error']}"
        else:
            ranks = [k for k in range(1, self._top_k + 1) if row[f"label_{k}"] is not None]
            text = ", ".join(f"{row[f'label_{k}']} {row[f'probability_{k}']:.1%}" for k in ranks)
            if row["labels"] is not None:
                text = f"{row['labels'] or 'no label'} ({text})"
            doubt = "unfamiliar" if row["unfamiliar"] else "a guess"
            causes = f": {str(row['hints']).replace(' ', ', ')}" if row["hints"] else ""
            text += f" ({doubt}{causes})" if row["unfamiliar"] or not row["confident"] else ""
        text += f"; is {row['truth']}" if row.get("truth") else ""
        return f"{_fitted(printable(str(row['path'])))}  {printable(text)}\n"


def _fitted(path: str) -> str:
    """Fit a path to its column's width in terminal cells; some characters take two."""
    if disp_len(path) > NAME_WIDTH:
        while disp_len(path) >= NAME_WIDTH:
            path = path[1:]
        path = f"…{path}"
    return path + " " * (NAME_WIDTH - disp_len(path))


def record(values: Iterable[Value]) -> str:
    """Return a record of CSV by RFC 4180, each field but a number in quotes.

    Text that a spreadsheet would take for a formula gets an apostrophe before it
    (https://owasp.org/www-community/attacks/CSV_Injection). Some spreadsheets separate fields by
    tabs or, as in many countries, by semicolons. They respect quotes only at the start of a record,
    and split all later text, so that each part of a text is checked. The page's `csv.js` has the
    same rule.

    Args:
        values: None is an empty field, a boolean `true` or `false`.
    """
    cells = [
        str(value).lower()
        if isinstance(value, bool)
        else defused(value)
        if isinstance(value, str)
        else value
        for value in values
    ]
    buffer = io.StringIO()
    csv.writer(buffer, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\r\n").writerow(cells)
    return buffer.getvalue()


def defused(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula, as a whole or in part."""
    return _FORMULA.sub(r"\1'", text)


class CSV:
    """CSV: one `record` for each image, after a record of the columns' names.

    Args:
        top_k: number of predictions.
        truth: as for `columns`.
        marked: whether a byte order mark comes first, by which Excel knows UTF-8.
    """

    def __init__(self, top_k: int, truth: bool = False, marked: bool = False) -> None:
        self._columns = list(columns(top_k, truth))
        self.head = self.start = MARK * marked + record(self._columns)

    def encode(self, row: Row) -> str:
        """Return one record."""
        return record(row.values())

    def records(self, file: BinaryIO) -> Iterator[bytes]:
        """Yield lines, joined while a quote is open."""
        lines = b""
        for line in file:
            lines += line
            if lines.endswith(b"\n") and lines.count(b'"') % 2 == 0:
                yield lines
                lines = b""

    def decode(self, record: bytes) -> Row:
        """Return a record's row, every value as text."""
        cells = next(csv.reader([record.decode()]))
        return dict(zip(self._columns, cells, strict=True))

    def written(self, text: str) -> str:
        """Return a text as `decode` would return it after `encode`."""
        return defused(text)


class JSONLines:
    """One JSON object per line."""

    head, start = "", '{"path": "'

    def __init__(self, top_k: int, truth: bool = False) -> None:
        self._columns = columns(top_k, truth).keys()

    def encode(self, row: Row) -> str:
        """Return one object."""
        return json.dumps(row, ensure_ascii=False) + "\n"

    def records(self, file: BinaryIO) -> Iterator[bytes]:
        """Yield complete lines."""
        return (line for line in file if line.endswith(b"\n"))

    def decode(self, record: bytes) -> Row:
        """Return a record's row."""
        row = json.loads(record)
        if not isinstance(row, dict) or row.keys() != self._columns:
            raise ValueError
        return row

    def written(self, text: str) -> str:
        """Return a text as `decode` would return it after `encode`."""
        return text
