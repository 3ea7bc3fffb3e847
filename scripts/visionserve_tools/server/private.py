"""Folders that only one user can read."""

import os
import stat
from pathlib import Path


class ForeignFileError(OSError):
    """A folder holds a file, link or pipe that was not put there by the server."""


def make_private(folder: Path) -> None:
    """Create a folder that only this user can read, or close an existing one and its contents.

    The folder itself is closed first, so that no other user can change its contents while they
    are checked.

    Raises:
        ForeignFileError: the folder, or a file in it, belongs to another user, or is a symbolic
            link or a pipe.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _close(folder)
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            _close(Path(parent, name))


def _close(path: Path) -> None:
    status = path.lstat()
    if status.st_uid != os.geteuid():
        raise ForeignFileError(f"{path} belongs to another user: remove it.")
    if stat.S_ISLNK(status.st_mode):
        raise ForeignFileError(f"{path} is a symbolic link, which is not followed: remove it.")
    if stat.S_ISFIFO(status.st_mode):
        raise ForeignFileError(f"{path} is a pipe, which its writer would wait for: remove it.")
    if status.st_mode & 0o077:
        path.chmod(stat.S_IMODE(status.st_mode) & ~0o077)
