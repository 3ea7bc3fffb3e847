"""Turn the names that the user gave into image files, lazily and always in the same order."""

import glob
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

from visionserve_tools.batch.rows import RunError
from visionserve_tools.photos import SUFFIXES


def expand(names: Sequence[str]) -> Iterator[Path]:
    """Yield the files that names stand for.

    A folder stands for the image files below it, sorted by path. A glob pattern (`**` for any
    folders) stands for the files that it matches, in the same order. Any other name stands for
    itself, whether the file exists or not.

    Raises:
        RunError: a pattern matches no file.
    """
    for name in names:
        path = Path(name)
        if not glob.has_magic(name) or path.exists():
            yield from _below(path)
            continue
        found = Path(path.anchor).glob(str(path.relative_to(path.anchor)))
        matches = sorted(match for match in found if not match.is_dir())
        if not matches:
            raise RunError(f"{name}: matches no file.")
        yield from matches


def read_list(name: str) -> Iterator[Path]:
    """Yield the paths in a file, or in standard input for `-`, one a line."""
    with nullcontext(sys.stdin.buffer) if name == "-" else Path(name).open("rb") as lines:
        for line in lines:
            if path := line.rstrip(b"\r\n"):
                yield Path(os.fsdecode(path))


def _below(path: Path) -> Iterator[Path]:
    """Yield the image files below a folder; a file, or a folder that cannot be read, as itself.

    Memory holds the names of only one folder per level.
    """
    if not path.is_dir():
        yield path
        return
    try:
        with os.scandir(path) as entries:
            found = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    except OSError:
        yield path
        return
    for name, is_folder in found:
        if is_folder:
            yield from _below(path / name)
        elif Path(name).suffix.lower() in SUFFIXES:
            yield path / name
