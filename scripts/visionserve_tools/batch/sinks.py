"""Where rows go: standard output, or a file that an interrupted run can go on with."""

import codecs
import csv
import json
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from visionserve_tools import advice, lock
from visionserve_tools.batch import provenance
from visionserve_tools.batch.formats import CSV, JSONLines, Table
from visionserve_tools.batch.provenance import Provenance
from visionserve_tools.batch.rows import Row, RunError, Value, columns, is_server_fault, name
from visionserve_tools.kept import check_file

CHUNK = 1 << 20
ROW_GROUP = 10_000
MARK = codecs.BOM_UTF8
MAKER = ("model", "version", "tta")


@dataclass(frozen=True)
class Kept:
    """The rows that an earlier run left.

    Attributes:
        rows: the number of rows that stay.
        errors: how many of the rows that stay are errors.
        again: the images whose rows blame the server, in order; they are classified again.
    """

    rows: int = 0
    errors: int = 0
    again: Sequence[Path] = ()


class Stream:
    """Writes each row to an open file at once.

    Args:
        file: where the rows go.
        format: how they are written; its `head` precedes the first row.

    Attributes:
        for_people: whether the rows themselves show how far the run is.
    """

    def __init__(self, file: BinaryIO, format: Table | CSV | JSONLines) -> None:
        self.for_people = isinstance(format, Table)
        self._file = file
        self._head = format.head
        self._encode = format.encode

    def resume(self, paths: Iterator[Path]) -> Kept:
        """Skip the images in `paths` that have rows already; in a stream, none have."""
        return Kept()

    def write(self, row: Row) -> None:
        """Add a row."""
        self._file.write((self._head + self._encode(row)).encode())
        self._file.flush()
        self._head = ""

    def finish(self) -> None:
        """Complete the output, after the last row."""
        self._file.flush()

    def close(self) -> None:
        """Leave what was written so far whole, whatever ended the run."""


class File(Stream):
    """Writes rows to a file, and resumes the file of an interrupted run.

    The provenance of the rows is kept beside it, in `NAME.run.json`. No other run writes to either
    until it is closed.

    Args:
        path: a new file, or the file of an earlier run.
        format: how rows are written; every such file begins with its `start`.
        made_with: what the rows are made with.
        overwrite: begin anew, at the first row.
        shown: what people call the file (its path).

    Raises:
        HeldError: another run writes to the file.
        OSError: it cannot be opened.
    """

    def __init__(
        self,
        path: Path,
        format: CSV | JSONLines,
        made_with: Provenance,
        overwrite: bool = False,
        shown: Path | None = None,
    ) -> None:
        self._path = path
        self._format = format
        self._made_with = made_with
        self._overwrite = overwrite
        self._shown = shown or path
        self._begun = False
        self._answered: Row | None = None
        self._rewriting: Rewriting | None = None
        with ExitStack() as held:
            held.enter_context(lock.writing(path))
            file = path.open("ab+")
            self._held = held.pop_all()
        super().__init__(file, format)

    def close(self) -> None:
        """Close the file; rows that were to be replaced but were not stay as they are."""
        try:
            self._end_rewriting()
        finally:
            self._file.close()
            self._held.close()

    def resume(self, paths: Iterator[Path]) -> Kept:
        """Skip the images in `paths` that have rows, and cut off a half-written row.

        Rows that blame the server are replaced: the next rows written, one for each image in
        `again`, take their places.

        Raises:
            RunError: the rows are of other images, or were made with something else; the file
                is left as it is.
        """
        if self._overwrite:
            return Kept()
        start, head = self._format.start.encode(), self._format.head.encode()
        self._file.seek(0)
        if not MARK.startswith(self._file.read(len(MARK))):
            # An older file, or no CSV.
            start, head = start.removeprefix(MARK), head.removeprefix(MARK)
        self._file.seek(0)
        if not start.startswith(self._file.read(len(start))):
            raise RunError(f"{self._shown}: holds other columns, or no rows of this command.")
        self._file.seek(len(head))
        rows = errors = 0
        size = len(head)
        again, places = [], []
        for record in self._format.records(self._file):
            if rows == 0:
                provenance.check(self._shown, self._made_with)
            rows += 1
            path = next(paths, None)
            row = self._check(record, rows, path)
            if path and is_server_fault(row["error"]):
                again.append(path)
                places.append((size, size + len(record)))
            else:
                errors += bool(row["error"])
                self._answered = self._answered if row["error"] else row
            size += len(record)
        self._file.truncate(size if rows else 0)
        if rows:
            self._head, self._begun = "", True
        if places:
            self._rewriting = Rewriting(self._path, places)
        return Kept(rows - len(again), errors, tuple(again))

    def write(self, row: Row) -> None:
        """Add a row, or replace the next row that blames the server.

        Raises:
            RunError: another model, version or TTA gave the rows that are there.
        """
        if not self._begun:
            self._file.truncate(0)
            provenance.keep(self._shown, self._made_with)
            self._begun = True
        self._compare(row)
        if self._rewriting is None:
            super().write(row)
        elif self._rewriting.replace(self._encode(row).encode()):
            self._end_rewriting()

    def _end_rewriting(self) -> None:
        """Go on with the file that takes this one's place."""
        if rewriting := self._rewriting:
            self._rewriting = None
            self._take(rewriting.close())

    def _take(self, file: BinaryIO) -> None:
        """Go on with the file that took this one's place."""
        self._file.close()
        self._file = file

    def _check(self, record: bytes, number: int, path: Path | None) -> Row:
        try:
            row = self._format.decode(record)
        except (ValueError, csv.Error):
            raise RunError(f"{self._shown}: row {number} has other columns.") from None
        expected = self._format.written(name(path)) if path else "missing"
        if path is None or row["path"] != expected:
            raise RunError(
                f"{self._shown}: row {number} is of {row['path']}, but that image is {expected}. "
                "Name the same images, or another file."
            )
        return row

    def _compare(self, row: Row) -> None:
        """Refuse to mix rows of two archives, which only the rows themselves can show."""
        if self._answered is None or row["error"]:
            return
        kept = [self._answered[key] for key in MAKER]
        new = [self._format.written(str(row[key])) for key in MAKER]
        self._answered = None
        if kept != new:
            raise RunError(
                f"{self._shown}: its rows are of {_maker(kept)}; now answers {_maker(new)}. "
                f"{provenance.WAYS_OUT}"
            )


class Rewriting:
    """A copy of a file with some of its records replaced, which then takes the file's place.

    The file stays as it is until then, so that an interrupted run leaves either the old or the new.

    Args:
        path: the file.
        places: where the records begin and end, in order, in bytes.
    """

    def __init__(self, path: Path, places: Sequence[tuple[int, int]]) -> None:
        self._path = path
        self._places = deque(places)
        self._old = path.open("rb")
        self._part = path.with_name(f"{path.name}.part")
        check_file(self._part)
        self._new = self._part.open("wb+")
        self._whole = (0, 0)

    def replace(self, record: bytes) -> bool:
        """Put a record into the next place, and tell whether that was the last one."""
        start, end = self._places[0]
        self._copy(start)
        self._new.write(record)
        self._old.seek(end)
        self._whole = (end, self._new.tell())
        self._places.popleft()
        return not self._places

    def close(self) -> BinaryIO:
        """Take the file's place; records that were not replaced are copied unchanged.

        A replacement that was interrupted, or for which the disk was too full, is undone first.

        Returns:
            The new file, open.
        """
        try:
            read, written = self._whole
            self._old.seek(read)
            self._new.seek(written)
            self._new.truncate()
            self._copy(self._path.stat().st_size)
            lock.settle(self._new, self._part, self._path)
        except BaseException:
            self._part.unlink(missing_ok=True)
            self._new.close()
            raise
        finally:
            self._old.close()
        return self._new

    def _copy(self, end: int) -> None:
        while (left := end - self._old.tell()) > 0:
            self._new.write(self._old.read(min(left, CHUNK)))


class Parquet(File):
    """Collects rows in `FILE.jsonl`, and writes Parquet at the end, as it cannot be appended to.

    Args:
        path: a new file, or the one of an earlier run.
        top_k: number of predictions.
        made_with: as for `File`.
        overwrite: as for `File`.
        truth: as for `columns`.

    Raises:
        RunError: pyarrow is not installed, or the file was made with something else.
    """

    def __init__(
        self,
        path: Path,
        top_k: int,
        made_with: Provenance,
        overwrite: bool = False,
        truth: bool = False,
    ) -> None:
        if find_spec("pyarrow") is None:
            raise RunError(f"Parquet needs pyarrow: {advice.PROGRAM} install batch")
        self._journal = path.with_name(f"{path.name}.jsonl")
        self._target = path
        check_file(path)
        self._columns = columns(top_k, truth)
        super().__init__(self._journal, JSONLines(top_k, truth), made_with, overwrite, path)
        begun = self._journal.stat().st_size
        self._unpacked = path.exists() and not begun and not overwrite
        if self._unpacked:
            try:
                provenance.check(path, made_with)
                self._unpack()
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Remove the journal of a complete file if no row was added."""
        try:
            self._end_rewriting()
            if self._unpacked:
                self._journal.unlink(missing_ok=True)
        finally:
            super().close()

    def write(self, row: Row) -> None:
        """Add or replace a row in the journal.

        The rows of an earlier file go before the provenance of the new ones takes their place.
        """
        if not self._begun:
            self._target.unlink(missing_ok=True)
        super().write(row)
        self._unpacked = False

    def finish(self) -> None:
        """Turn the rows into Parquet, 10,000 at a time, and remove `FILE.jsonl`."""
        super().finish()
        if self._unpacked:
            return
        import pyarrow
        from pyarrow import parquet

        types = {str: pyarrow.string(), int: pyarrow.int32(), float: pyarrow.float64()}
        types[bool] = pyarrow.bool_()
        schema = pyarrow.schema([(key, types[kind]) for key, kind in self._columns.items()])
        with (
            self._journal.open(encoding="utf-8") as journal,
            lock.replace(self._target) as written,
            parquet.ParquetWriter(written, schema) as writer,
        ):
            while rows := [json.loads(line) for line in islice(journal, ROW_GROUP)]:
                writer.write_table(pyarrow.Table.from_pylist(rows, schema))
        self._journal.unlink()

    def _unpack(self) -> None:
        """Write the rows of a complete Parquet file to the journal."""
        import pyarrow
        from pyarrow import parquet

        encode = self._format.encode
        with lock.whole(self._journal) as journal:
            try:
                with parquet.ParquetFile(self._target) as packed:
                    if packed.schema_arrow.names != list(self._columns):
                        raise RunError(f"{self._target}: holds other columns.")
                    for batch in packed.iter_batches(ROW_GROUP):
                        journal.writelines(encode(row).encode() for row in batch.to_pylist())
            except (OSError, pyarrow.ArrowException) as error:
                # Arrow raises OSError for a damaged file, too, without the system's number.
                if isinstance(error, OSError) and error.errno is not None:
                    raise
                raise RunError(f"{self._target}: is no Parquet file, or not a whole one.") from None
        self._take(self._journal.open("ab+"))


def _maker(values: Iterable[Value]) -> str:
    model, version, tta = values
    return f"{model} {version} with tta {tta}"


def open_sink(
    output: Path | None,
    top_k: int,
    made_with: Provenance,
    overwrite: bool = False,
    truth: bool = False,
) -> Stream:
    """Choose a sink by the file's suffix; without a file, a table for a terminal, else CSV.

    Args:
        output: a file; None is standard output.
        top_k: number of predictions.
        made_with: what the rows are made with.
        overwrite: begin a file anew.
        truth: whether the rows have the column `truth`.

    Raises:
        RunError: the suffix is unknown.
        OSError: the file cannot be opened.
    """
    if output is None:
        on_terminal = sys.stdout.isatty()
        return Stream(sys.stdout.buffer, Table(top_k) if on_terminal else CSV(top_k, truth))
    output = lock.named(output)
    match output.suffix.lower():
        case ".csv":
            return File(output, CSV(top_k, truth, marked=True), made_with, overwrite)
        case ".jsonl":
            return File(output, JSONLines(top_k, truth), made_with, overwrite)
        case ".parquet":
            return Parquet(output, top_k, made_with, overwrite, truth)
    raise RunError(f"{output}: its suffix must be .csv, .jsonl or .parquet.")
