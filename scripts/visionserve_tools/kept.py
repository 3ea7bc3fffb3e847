"""Read what commands keep in files, whatever has become of these files meanwhile."""

import errno
import json
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any


def read_file(file: Path, limit: int = -1) -> bytes:
    """Read a regular file.

    Args:
        file: the file. A pipe, a device or a folder is not read, because it may never end.
        limit: the most bytes to read; -1 means all.

    Raises:
        OSError: the file cannot be read, or is not a regular file.
        ValueError: no file can have this name.
    """
    with open(file, "rb", opener=_open_at_once) as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise OSError(errno.EINVAL, "Not a regular file", str(file))
        return stream.read(limit)


def read_json(file: Path) -> Any:
    """Read a file of JSON.

    Raises:
        OSError: as `read_file` does.
        ValueError: it holds something else, or lists in lists without an end.
    """
    try:
        return json.loads(read_file(file))
    except RecursionError:
        raise ValueError(f"{file}: too many levels of JSON") from None


def check_file(file: Path) -> None:
    """Check that a file can be written, or replaced, before anything depends on it.

    Raises:
        OSError: something else has its name.
    """
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(file.lstat().st_mode):
            raise OSError(f"{file}: is no regular file: remove it.")


def _open_at_once(name: str, flags: int) -> int:
    """Open a file; do not wait if it is a pipe that no process writes to."""
    return os.open(name, flags | os.O_NONBLOCK)
