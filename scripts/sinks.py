"""Where rows go: standard output, or a file that an interrupted run can go on with."""

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from scripts.rows import Row, RunError, columns, name

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
ROW_GROUP = 10_000


class Table:
    """For people: one line per image, control characters replaced."""

    head = f"{'IMAGE':<40}  PREDICTIONS\n"

    def __init__(self, top_k: int) -> None:
        self._top_k = top_k

    def encode(self, row: Row) -> str:
        """Return one line."""
        if row["error"]:
            text = f"error: {row['error']}"
        else:
            ranks = range(1, self._top_k + 1)
            text = ", ".join(f"{row[f'label_{k}']} {row[f'probability_{k}']:.1%}" for k in ranks)
            text += "" if row["confident"] else " (a guess)"
        line = f"{row['path']:<40}  {text}"
        return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line) + "\n"


class CSV:
    """RFC 4180.

    A text that a spreadsheet would take for a formula gets an apostrophe before it
    (https://owasp.org/www-community/attacks/CSV_Injection).
    """

    def __init__(self, top_k: int) -> None:
        self._columns = list(columns(top_k))
        self.head = self.start = self._line(self._columns)

    def encode(self, row: Row) -> str:
        """Return one record; None is empty, a boolean `true` or `false`."""
        return self._line([self._cell(value) for value in row.values()])

    def records(self, file: BinaryIO) -> Iterator[bytes]:
        """Yield lines, joined while a quote is open."""
        record = b""
        for line in file:
            record += line
            if record.endswith(b"\n") and record.count(b'"') % 2 == 0:
                yield record
                record = b""

    def decode(self, record: bytes) -> Row:
        """Return a record's row, every value as text."""
        cells = next(csv.reader([record.decode()]))
        return dict(zip(self._columns, cells, strict=True))

    def written(self, text: str) -> str:
        """Return the text, safe from a spreadsheet."""
        return f"'{text}" if text.startswith(FORMULA) else text

    def _cell(self, value: str | int | float | bool | None) -> object:
        if isinstance(value, bool):
            return str(value).lower()
        return self.written(value) if isinstance(value, str) else value

    def _line(self, cells: Iterable[object]) -> str:
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\r\n").writerow(cells)
        return buffer.getvalue()


class JSONLines:
    """One JSON object per line."""

    head, start = "", '{"path": "'

    def __init__(self, top_k: int) -> None:
        self._columns = columns(top_k).keys()

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
        """Return the text as it is."""
        return text


class Stream:
    """Rows to an open file, written at once.

    Args:
        file: where they go.
        format: how; its `head` precedes the first one.

    Attributes:
        for_people: whether the rows themselves show how far the run is.
    """

    def __init__(self, file: BinaryIO, format: Table | CSV | JSONLines) -> None:
        self.for_people = isinstance(format, Table)
        self._file = file
        self._head = format.head
        self._encode = format.encode

    def resume(self, paths: Iterator[Path]) -> tuple[int, int]:
        """Take the images from `paths` whose rows are there already; a stream has none.

        Returns:
            The number of these rows, and of the errors among them.
        """
        return 0, 0

    def write(self, row: Row) -> None:
        """Add a row."""
        self._file.write((self._head + self._encode(row)).encode())
        self._file.flush()
        self._head = ""

    def finish(self) -> None:
        """Complete the output, after the last row."""
        self._file.flush()


class File(Stream):
    """Rows to a file that an interrupted run can go on with.

    Args:
        path: a new file, or the one of the interrupted run.
        format: how; its `start` is how every such file begins.
    """

    def __init__(self, path: Path, format: CSV | JSONLines) -> None:
        self._path = path
        self._format = format
        super().__init__(path.open("ab+"), format)

    def resume(self, paths: Iterator[Path]) -> tuple[int, int]:
        """Take the images from `paths` whose rows are there, and cut a half-written row.

        Raises:
            RunError: the rows are not those of these images; the file is left as it is.
        """
        start, head = self._format.start.encode(), self._format.head.encode()
        self._file.seek(0)
        if not start.startswith(self._file.read(len(start))):
            raise RunError(f"{self._path}: holds other columns, or no rows of this command.")
        self._file.seek(len(head))
        rows = errors = size = 0
        for record in self._format.records(self._file):
            rows += 1
            errors += bool(self._check(record, rows, next(paths, None))["error"])
            size += len(record)
        self._file.truncate(len(head) + size if rows else 0)
        self._head = "" if rows else self._format.head
        return rows, errors

    def finish(self) -> None:
        """Close the file."""
        self._file.close()

    def _check(self, record: bytes, number: int, path: Path | None) -> Row:
        try:
            row = self._format.decode(record)
        except (ValueError, csv.Error):
            raise RunError(f"{self._path}: row {number} has other columns.") from None
        expected = self._format.written(name(path)) if path else "missing"
        if path is None or row["path"] != expected:
            raise RunError(
                f"{self._path}: row {number} is of {row['path']}, but that image is {expected}. "
                "Name the same images, or another file."
            )
        return row


class Parquet(File):
    """Rows to Parquet, which cannot be added to: they wait in `FILE.jsonl` until the last one.

    Args:
        path: a new file.
        top_k: number of predictions.

    Raises:
        RunError: the file is complete already, or pyarrow is not installed.
    """

    def __init__(self, path: Path, top_k: int) -> None:
        if find_spec("pyarrow") is None:
            raise RunError("Parquet needs pyarrow: pip install '.[batch]'.")
        self._journal = path.with_name(f"{path.name}.jsonl")
        if path.exists() and not self._journal.exists():
            raise RunError(f"{path}: is complete; name another file.")
        self._target = path
        self._top_k = top_k
        super().__init__(self._journal, JSONLines(top_k))

    def finish(self) -> None:
        """Turn the rows into Parquet, 10,000 at a time, and remove `FILE.jsonl`."""
        import pyarrow
        from pyarrow import parquet

        super().finish()
        types = {str: pyarrow.string(), int: pyarrow.int32(), float: pyarrow.float64()}
        types[bool] = pyarrow.bool_()
        schema = pyarrow.schema([(key, types[kind]) for key, kind in columns(self._top_k).items()])
        with (
            self._journal.open(encoding="utf-8") as journal,
            parquet.ParquetWriter(self._target, schema) as writer,
        ):
            while rows := [json.loads(line) for line in islice(journal, ROW_GROUP)]:
                writer.write_table(pyarrow.Table.from_pylist(rows, schema))
        self._journal.unlink()


def open_sink(output: Path | None, top_k: int) -> Stream:
    """Choose by the suffix; without a file, a table on a terminal, and CSV into a pipe.

    Raises:
        RunError: the suffix is another one.
        OSError: the file cannot be opened.
    """
    if output is None:
        on_terminal = sys.stdout.isatty()
        return Stream(sys.stdout.buffer, Table(top_k) if on_terminal else CSV(top_k))
    match output.suffix.lower():
        case ".csv":
            return File(output, CSV(top_k))
        case ".jsonl":
            return File(output, JSONLines(top_k))
        case ".parquet":
            return Parquet(output, top_k)
    raise RunError(f"{output}: its suffix must be .csv, .jsonl or .parquet.")
