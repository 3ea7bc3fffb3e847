"""Find the photographs of a folder that has one folder for each class."""

import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scripts.photos import SUFFIXES

PARTS = {"train", "training", "val", "valid", "validation", "test", "testing"}


@dataclass(frozen=True)
class ClassFolders:
    """Photographs with their classes, in the order of torchvision's `ImageFolder`.

    Attributes:
        classes: the folders' names, sorted, which is their class-index order.
        photographs: each file with its class index, sorted by class and path. No file was opened.
        left_out: why a file is not among them, by its path.
    """

    classes: tuple[str, ...]
    photographs: tuple[tuple[Path, int], ...]
    left_out: dict[Path, str]


def find(folder: Path) -> ClassFolders:
    """Find the photographs below the class folders, through links too.

    Hidden files and folders count for nothing, as do those that systems and notebooks leave.

    Raises:
        NotADirectoryError: there is no such folder.
        ValueError: there are no two class folders, one holds no photograph, the names of two are
            the same to a reader, or the folder is split into parts such as `train` and `val`.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder}: no such folder.")
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    folders = [path for path in entries if path.is_dir()]
    names = tuple(path.name for path in folders)
    if parts := [path for path in folders if path.name.lower() in PARTS and _has_folder(path)]:
        raise ValueError(
            f"{folder}: is split into {' and '.join(path.name for path in parts)}; give the folder "
            f"that holds the classes, such as {parts[0]}. A fifth of it is held out."
        )
    if len(folders) < 2:
        found = f"only {names[0]}" if names else "none"
        raise ValueError(
            f"{folder}: takes a folder for each of at least two classes, and has {found}."
        )
    _check(folder, names)
    left_out = {
        path: "lies in no class folder"
        for path in entries
        if not path.is_dir() and path.suffix.lower() in SUFFIXES
    }
    photographs: list[tuple[Path, int]] = []
    for index, path in enumerate(folders):
        found_here = []
        for file in sorted(_files(path)):
            if file.suffix.lower() not in SUFFIXES:
                left_out[file] = f"its name ends in none of {' '.join(sorted(SUFFIXES))}"
            elif not file.is_file():
                left_out[file] = "is no file, or a link to none"
            else:
                found_here.append((file, index))
        if not found_here:
            raise ValueError(f"{path}: holds no photograph; remove the folder or fill it.")
        photographs += found_here
    return ClassFolders(names, tuple(photographs), left_out)


def _check(folder: Path, names: tuple[str, ...]) -> None:
    """Refuse names that a reader could not tell apart, or that no file of labels can hold."""
    known: dict[str, str] = {}
    for name in names:
        if not name.isprintable() or name != name.strip():
            raise ValueError(f"{folder}: {name!r} is no label; give the folder a plain name.")
        same = unicodedata.normalize("NFKC", name).casefold()
        if same in known:
            raise ValueError(
                f"{folder}: {known[same]} and {name} are the same name; merge the folders or "
                "rename one."
            )
        known[same] = name


def _has_folder(path: Path) -> bool:
    return any(child.is_dir() for child in path.iterdir() if not child.name.startswith("."))


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder; follow links to folders, but into each folder once."""
    known = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        folders[:] = [] if real in known else [name for name in folders if name[0] != "."]
        names = [] if real in known else [name for name in names if name[0] != "."]
        known.add(real)
        yield from (Path(root, name) for name in names)
