"""Locks, so that two commands do not write to one place at once.

A lock is the operating system's (flock(2)): it ends with the process that holds it, however that
ends. Whoever can open a file can lock it, so what is locked is not the file or folder itself, which
others may read, but an empty file beside or in it, which only those can open who may write there.
It is removed at the end; one that a killed process leaves is used again. Where a file system has no
locks, as some of a network, there is none.
"""

import errno
import fcntl
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

import psutil

from visionserve_tools.kept import check_file

UNSUPPORTED = (errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
SHOWN = 60


class HeldError(OSError):
    """Another process holds the file or folder; the message names it."""


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a folder for the block; wait first for a process that holds it.

    Raises:
        OSError: there is no such folder, or it cannot be written to.
    """
    with _held(folder / ".lock", folder, wait=True):
        yield


@contextmanager
def writing(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold a file that the block writes, whether it is there yet or not.

    Args:
        path: the file.
        wait: wait until it is free, after a line to standard error that names the holder.

    Raises:
        HeldError: another process holds it, and `wait` is false.
        OSError: something else has its name, or its folder cannot be written to.
    """
    check_file(path)
    with _held(path.with_name(f".{path.name}.lock"), path, wait):
        yield


@contextmanager
def replace(path: Path, *beside: Path) -> Iterator[BinaryIO]:
    """Hold a file for the block, which writes the content that takes its place at the end.

    Args:
        path: the file; a symbolic link stays, and what it names is written.
        beside: other files that the block writes; here they are only checked.

    Raises:
        HeldError: another process holds it.
        OSError: one of the files cannot be written.
    """
    path = named(path)
    for other in beside:
        check_file(named(other))
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path), whole(path) as file:
        yield file


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes another one's place at the end of the block, if that does not fail.

    Until then it is `NAME.part`.

    Raises:
        OSError: it cannot be written.
    """
    part = path.with_name(f"{path.name}.part")
    check_file(part)
    with part.open("wb") as file:
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


def named(path: Path) -> Path:
    """Return the file that a symbolic link names, so that it is one file by all its names."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


@contextmanager
def _held(file: Path, shown: Path, wait: bool) -> Iterator[None]:
    """Hold a file of locks for the block; messages call it `shown`."""
    while True:
        descriptor = _open(file)
        try:
            _lock(descriptor, shown, wait)
            # Whoever held it may have removed it meanwhile.
            if _is(file, descriptor):
                try:
                    yield
                finally:
                    if _is(file, descriptor):
                        file.unlink()
                return
        finally:
            os.close(descriptor)


def _open(file: Path) -> int:
    """Open a file of locks, which only those can open who may write to its folder."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    folder = file.parent.stat().st_mode
    # In one as /tmp, everybody may write, and nobody to another one's files.
    writers = folder & (stat.S_IWUSR if folder & stat.S_ISVTX else 0o222)
    with suppress(PermissionError):  # Its owner has done so.
        os.fchmod(descriptor, writers | writers << 1)
    return descriptor


def _lock(descriptor: int, shown: Path, wait: bool) -> None:
    """Lock an open file until it is closed."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _holder(descriptor)
        if not wait:
            raise HeldError(f"{shown}: {holder} writes it. Wait for its end.") from None
        print(f"{shown}: waiting for the end of {holder}.", file=sys.stderr)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


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
