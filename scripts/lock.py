"""Locks, so that two commands do not write to one place at once.

A lock is the operating system's (flock(2)), on the file or folder itself: it ends with the process
that holds it, however that ends, and leaves no file of its own. Where a file system has no locks,
as some of a network, there is none.
"""

import errno
import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

import psutil

UNSUPPORTED = (errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
SHOWN = 60


class HeldError(OSError):
    """Another process holds the file or folder; the message names it."""


def hold(descriptor: int, path: Path, wait: bool = False) -> None:
    """Lock an open file or folder until it is closed.

    Args:
        descriptor: the open file.
        path: its path, for messages.
        wait: wait until it is free, after a line to standard error that names the holder.

    Raises:
        HeldError: another process holds it, and `wait` is false.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not wait:
            raise HeldError(f"{path}: {_holder(descriptor)} writes it. Wait for its end.") from None
        print(f"{path}: waiting for the end of {_holder(descriptor)}.", file=sys.stderr, flush=True)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a folder for the block; wait first for a process that holds it.

    Raises:
        OSError: there is no such folder, or it cannot be read.
    """
    while True:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            hold(descriptor, folder, wait=True)
            if _is(folder, descriptor):
                yield
                return
        finally:
            os.close(descriptor)


def append(path: Path) -> BinaryIO:
    """Open a file to read and append, and hold it until it is closed.

    Raises:
        HeldError: another process holds it.
        OSError: it cannot be opened.
    """
    while True:
        file = path.open("ab+")
        try:
            hold(file.fileno(), path)
            if _is(path, file.fileno()):
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def anew(path: Path) -> BinaryIO:
    """Open a file as `append` does, without what it held."""
    file = append(path)
    file.seek(0)
    file.truncate()
    return file


@contextmanager
def replace(path: Path) -> Iterator[BinaryIO]:
    """Hold a file for the block, which writes the content that takes its place at the end.

    The new content is in `NAME.part`, which is what is held. It is removed if the block fails.

    Raises:
        HeldError: another process holds it.
        OSError: it cannot be written.
    """
    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    with anew(part) as file:
        try:
            yield file
            settle(file, part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def settle(written: BinaryIO, part: Path, path: Path) -> None:
    """Rename a finished file to its final name, after its content is safely on the disk."""
    written.flush()
    os.fsync(written.fileno())
    part.replace(path)


def _is(path: Path, descriptor: int) -> bool:
    """Tell whether a path still names an open file, which another process may have replaced."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> str:
    """Describe the process that holds an open file, for a message."""
    inode = str(os.fstat(descriptor).st_ino)
    # Such as `7: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF`. The device is not compared, as
    # some file systems show another one here.
    with suppress(OSError):
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            _, kind, _, _, pid, place, *_ = line.split()
            if kind == "FLOCK" and place.rpartition(":")[2] == inode:
                return _described(int(pid))
    return "another process"


def _described(pid: int) -> str:
    try:
        process = psutil.Process(pid)
        words, since = process.cmdline(), datetime.fromtimestamp(process.create_time())
    except psutil.Error:
        return f"process {pid}"
    # Of a Python program, its name says more than the interpreter's.
    command = " ".join(words[1:] if "python" in Path(words[0]).name else words) if words else ""
    shown = command if len(command) <= SHOWN else f"{command[:SHOWN]}…"
    return f"process {pid} ({shown}, since {since:%Y-%m-%d %H:%M:%S})"
