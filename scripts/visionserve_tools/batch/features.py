"""The features of images, in a file of their own, in the order of the rows."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from visionserve_tools import advice, lock
from visionserve_tools.batch.rows import Body, RunError, name

AT_ONCE = 1000


class Sink(Protocol):
    """Takes the body of each image's answer or error."""

    def write(self, path: Path, body: Body) -> None:
        """Add an image."""

    def finish(self) -> None:
        """Complete the file, after the last image."""


@contextmanager
def opened(target: Path) -> Iterator[Sink]:
    """Open a sink, whose file takes its place only when the block has ended well.

    Args:
        target: `.npy` holds float32 of shape (images, channels), with NaN for an error.
            `.parquet` holds the columns `path` and `features`, which is null for an error.

    Raises:
        RunError: the suffix is another one, or pyarrow is not installed.
        OSError: the file cannot be written.
    """
    sinks: dict[str, type[Array] | type[Parquet]] = {".npy": Array, ".parquet": Parquet}
    if target.suffix.lower() not in sinks:
        raise RunError(f"{target}: its suffix must be .npy or .parquet.")
    with lock.replace(target) as file:
        sink = sinks[target.suffix.lower()](file)
        yield sink
        sink.finish()


def _features(body: Body) -> NDArray[np.float32] | None:
    return None if "error" in body else np.array(body["features"], np.float32)


class Array:
    """One array. Its shape, which is known at the end, is written over the first one then."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._shape = (0, 0)
        self._write_head(file)

    def write(self, path: Path, body: Body) -> None:
        """Add an image; see `Sink`. Those before the first with features get their rows then."""
        images, channels = self._shape
        features = _features(body)
        if features is not None and not channels:
            channels = len(features)
            for _ in range(images):
                self._file.write(np.full(channels, np.nan, "<f4").tobytes())
        row = np.full(channels, np.nan) if features is None else features
        self._file.write(row.astype("<f4").tobytes())
        self._shape = images + 1, channels

    def finish(self) -> None:
        """Write the shape. NumPy leaves room in the head for any number of rows."""
        self._file.flush()
        with Path(self._file.name).open("r+b") as begin:
            self._write_head(begin)

    def _write_head(self, file: BinaryIO) -> None:
        head = {"descr": "<f4", "fortran_order": False, "shape": self._shape}
        np.lib.format.write_array_header_1_0(file, head)


class Parquet:
    """A table, of which memory holds `AT_ONCE` rows."""

    def __init__(self, file: BinaryIO) -> None:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError:
            raise RunError(f"Parquet needs pyarrow: {advice.PROGRAM} install batch") from None
        self._rows: list[dict[str, Any]] = []
        columns = {"path": pyarrow.string(), "features": pyarrow.list_(pyarrow.float32())}
        self._schema = pyarrow.schema(list(columns.items()))
        self._table = pyarrow.Table
        self._writer = parquet.ParquetWriter(file, self._schema)

    def write(self, path: Path, body: Body) -> None:
        """Add an image; see `Sink`."""
        self._rows.append({"path": name(path), "features": _features(body)})
        if len(self._rows) == AT_ONCE:
            self._flush()

    def finish(self) -> None:
        """Write what is left, and the table's end."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        self._writer.write_table(self._table.from_pylist(self._rows, self._schema))
        self._rows = []
