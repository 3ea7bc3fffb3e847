"""Find the photographs of a folder that has one folder for each class.

The order of the classes is that of torchvision's `ImageFolder`: the folders' names, sorted. Links
are followed. Hidden files and folders count for nothing, as systems and notebooks leave them.
"""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from visionserve_tools.photos import SUFFIXES

PARTS = {"train", "training", "val", "valid", "validation", "test", "testing"}


@dataclass(frozen=True)
class ClassFolders:
    """Photographs with their classes.

    Attributes:
        classes: the folders' names, in class-index order.
        photographs: each file with its class index, sorted by class and path. No file was opened.
        left_out: why a file is not among them, by its path.
    """

    classes: tuple[str, ...]
    photographs: tuple[tuple[Path, int], ...]
    left_out: dict[Path, str]


def visible(folder: Path) -> list[Path]:
    """Return what lies in a folder, sorted, without what is hidden.

    Raises:
        OSError: the folder cannot be read.
    """
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def below(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Yield the files below a folder, sorted; links are followed, but not back up.

    Args:
        folder: where to begin.
        above: the folders, resolved, that count as above it.

    Raises:
        OSError: a folder cannot be read.
    """
    own = folder.resolve()
    if own in above:
        return
    for path in visible(folder):
        if path.is_dir():
            yield from below(path, above | {own})
        else:
            yield path


def names(folder: Path) -> tuple[str, ...]:
    """Return the classes of a folder, in class-index order.

    Raises:
        ValueError: it has no folders, or they are parts of a data set, such as `train` and `val`.
        OSError: the folder cannot be read.
    """
    folders = [path for path in visible(folder) if path.is_dir()]
    if not folders:
        raise ValueError(f"{folder}: holds no class folders.")
    named = [path for path in folders if path.name.lower() in PARTS]
    if parts := named if named == folders else list(filter(_has_folder, named)):
        raise ValueError(
            f"{folder}: is split into {' and '.join(path.name for path in parts)}; give the folder "
            f"that holds the classes, such as {parts[0]}."
        )
    return tuple(path.name for path in folders)


def find(folder: Path) -> ClassFolders:
    """Find the photographs to train on.

    Raises:
        NotADirectoryError: there is no such folder.
        ValueError: as `names`; or there is only one class folder, one holds no photograph, or the
            names of two are the same to a reader.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder}: no such folder.")
    classes = names(folder)
    if len(classes) < 2:
        raise ValueError(
            f"{folder}: takes a folder for each of at least two classes, and has only {classes[0]}."
        )
    _check(folder, classes)
    left_out = {
        path: "lies in no class folder"
        for path in visible(folder)
        if not path.is_dir() and path.suffix.lower() in SUFFIXES
    }
    photographs: list[tuple[Path, int]] = []
    for index, name in enumerate(classes):
        found = []
        for file in below(folder / name, frozenset({folder.resolve()})):
            if file.suffix.lower() not in SUFFIXES:
                left_out[file] = f"its name ends in none of {' '.join(sorted(SUFFIXES))}"
            elif not file.is_file():
                left_out[file] = "is no file, or a link to none"
            else:
                found.append((file, index))
        if not found:
            raise ValueError(f"{folder / name}: holds no photograph; remove the folder or fill it.")
        photographs += found
    return ClassFolders(classes, tuple(photographs), left_out)


def _check(folder: Path, classes: tuple[str, ...]) -> None:
    """Refuse names that a reader could not tell apart, or that no file of labels can hold."""
    known: dict[str, str] = {}
    for name in classes:
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
    return any(child.is_dir() for child in visible(path))
