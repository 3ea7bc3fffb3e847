"""Read labelled photographs: class folders, a CSV, or class indices in their names."""

import csv
import io
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from PIL import Image

from visionserve_tools import class_folders, photos
from visionserve_tools.archive import imagenet

WORDNET = re.compile(r"([0-9]+)_(n[0-9]{8})(?![0-9])")
INDEX = re.compile(r"([0-9]+)(?![0-9A-Za-z])")
IMAGENET = 1000
SHOWN = 10
FORMS = (
    "Give FOLDER/class name/picture.jpg, a CSV with the columns path and label, or, for class "
    "indices in the names of folders or files, --index-in-name."
)


MULTI_LABEL_FORMS = (
    "Give a CSV with the columns path and labels, the labels separated by ; or |, or path and a "
    "column of 1 and 0 for each label."
)
SEPARATORS = re.compile("[;|]")


@dataclass(frozen=True)
class Labelled:
    """Photographs with their class indices.

    Attributes:
        photographs: each with its class index.
        notes: what a person has to know about them, a sentence each.
    """

    photographs: list[tuple[Path, int]]
    notes: list[str]


def read(
    source: Path, categories: Sequence[str], indexed: bool = False, count: int | None = None
) -> Labelled:
    """Find photographs and the class of each.

    The class is the label that the photograph's folder directly below `source` is named by, as in
    torchvision's `ImageFolder`, or the one that the CSV gives. It is looked up among the labels of
    the model, so that the order of folders does not matter. ImageNet's own names give the class
    without labels if the model has 1,000 classes: files that are all named by index and WordNet ID
    (`285_n02124075_cat.JPEG`), or folders that are named by the ID.

    Args:
        source: a folder, or a file that `read_csv` reads. Links are followed.
        categories: the model's labels, in class-index order.
        indexed: whether names, or the CSV's labels, are class indices; see `label_of`.
        count: the largest number of photographs, spread evenly over all; None for all.

    Raises:
        FileNotFoundError: there are no photographs.
        ValueError: a photograph has no label, or labels that the model does not have; they are
            named with the closest ones that it has.
        OSError: the folder or the CSV cannot be read.
    """
    classes = len(categories)
    notes: list[str] = []
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such folder or CSV. {FORMS}")
    if source.is_file():
        named = list(read_csv(source).items())
        indices = _indices(named, categories, source) if not indexed else None
        found = [
            (path, indices[text] if indices else _index(text, classes)) for path, text in named
        ]
    else:
        paths, notes = _pictures(source)
        if indexed:
            found = [(path, label_of(path, classes)) for path in paths]
        elif classes == IMAGENET and all(map(_is_imagenet, paths)):
            found = [(path, label_of(path, classes)) for path in paths]
            notes.append("Classes are the indices before the WordNet IDs in the files' names.")
        else:
            named = [(path, class_folder(path, source)) for path in paths]
            indices = _indices(named, categories, source)
            found = [(path, indices[text]) for path, text in named]
    count = min(count or len(found), len(found))
    chosen = [found[index * len(found) // count] for index in range(count)]
    present = {label for _, label in chosen}
    absent = [category for index, category in enumerate(categories) if index not in present]
    if absent and classes < IMAGENET:
        notes.append(f"No picture of {len(absent)} of {classes} classes: {_few(absent)}.")
    return Labelled(chosen, notes)


def is_plain(source: Path, categories: Sequence[str]) -> bool:
    """Tell whether a folder's photographs have no labels: it has no class folders, nor names.

    Args:
        source: a folder or a CSV, which has labels.
        categories: as for `read`.

    Raises:
        FileNotFoundError: the folder has no photographs.
        OSError: it cannot be read.
    """
    if not source.is_dir():
        return False
    paths, _ = _pictures(source)
    named = len(categories) == IMAGENET and all(map(_is_imagenet, paths))
    return not named and all(path.parent == source for path in paths)


def unlabelled(source: Path) -> tuple[list[Path], list[str]]:
    """Return the photographs of a folder or a CSV, whatever labels they have, and notes.

    Raises:
        ValueError, OSError: as `read`, but for labels.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such folder or CSV.")
    return (list(read_csv(source)), []) if source.is_file() else _pictures(source)


def read_multi_label(
    source: Path, categories: Sequence[str], count: int | None = None
) -> list[tuple[Path, tuple[int, ...]]]:
    """Read a CSV of photographs that have any number of labels each.

    Its first line names the column `path`, and either `labels`, in which `;` or `|` separates the
    labels of a photograph, or none are; or a column for each label of the model, in which 1 or
    `true` says that the photograph has it, and 0 or `false` that it has not.

    Args:
        source: UTF-8; the paths in it are relative to its folder.
        categories: the model's labels, in class-index order.
        count: the largest number of photographs, spread evenly over all; None for all.

    Returns:
        Absolute paths with the class indices of their labels.

    Raises:
        FileNotFoundError: there is no such file, or no photograph in it.
        ValueError: it has another form, a path twice, or a label that the model does not have.
        OSError: it cannot be read.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such CSV. {MULTI_LABEL_FORMS}")
    if source.is_dir():
        raise ValueError(f"{source}: the model gives several labels. {MULTI_LABEL_FORMS}")
    normal = [unicodedata.normalize("NFC", category) for category in categories]
    known = {category: index for index, category in enumerate(normal)}
    found: dict[Path, tuple[int, ...]] = {}
    head: list[str] = []
    for where, cells in _lines(source):
        if not head:
            head = [unicodedata.normalize("NFC", cell) for cell in cells]
            named = [column.lower() for column in head]
            joint = next((named.index(one) for one in ("labels", "label") if one in named), None)
            if "path" not in named:
                raise ValueError(f"{where}: names no column path. {MULTI_LABEL_FORMS}")
            place = named.index("path")
            columns = [*head[:place], *head[place + 1 :]]
            if joint is None and sorted(columns) != sorted(normal):
                odd = [label for label in normal if label not in columns] or [
                    column for column in columns if column not in known
                ]
                raise ValueError(
                    f"{where}: has no column labels, nor one for each label: {_few(odd)}. "
                    f"{_few_classes(normal)}{MULTI_LABEL_FORMS}"
                )
            continue
        if len(cells) != len(head):
            raise ValueError(f"{where}: has not {len(head)} fields.")
        path = absolute(source.parent / cells[place])
        if not cells[place] or path in found:
            told = f"{cells[place]} stands in another line, too" if cells[place] else "has no path"
            raise ValueError(f"{where}: {told}.")
        if joint is None:
            marks = dict(zip(head, cells, strict=True))
            labels = [label for label in normal if _is_marked(marks[label], f"{where}: {label}")]
        else:
            parts = SEPARATORS.split(unicodedata.normalize("NFC", cells[joint]))
            labels = [part.strip() for part in parts if part.strip()]
        if unknown := [label for label in labels if label not in known]:
            raise ValueError(
                f"{where}: the model has no label {unknown[0]!r} (the closest is "
                f"{_closest(unknown[0], normal)!r}). {_few_classes(normal)}"
            )
        found[path] = tuple(sorted({known[label] for label in labels}))
    if not found:
        raise FileNotFoundError(f"{source}: names no images.")
    count = min(count or len(found), len(found))
    pairs = list(found.items())
    return [pairs[index * len(pairs) // count] for index in range(count)]


def _is_marked(cell: str, where: str) -> bool:
    marks = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
    if cell.lower() not in marks:
        raise ValueError(f"{where}: {cell or 'nothing'} is neither 1 nor 0.")
    return marks[cell.lower()]


def _lines(file: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the lines of a CSV that are not blank: what errors call each, and its cells.

    Raises:
        ValueError: the file is no UTF-8 or no CSV.
        OSError: it cannot be read.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{file}: is no UTF-8 text.") from None
    first = text.partition("\n")[0]
    delimiter = ";" if ";" in first and "," not in first else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        for cells in reader:
            if any(cells):
                yield f"{file}, line {reader.line_num}", [cell.strip() for cell in cells]
    except csv.Error as error:
        raise ValueError(f"{file}, line {reader.line_num}: is no CSV ({error}).") from None


def read_csv(file: Path) -> dict[Path, str]:
    """Read a CSV of paths and labels.

    The first line names the columns `path` and `label`, among others, or there are two columns, of
    paths and of labels. A column `labels` holds any number of labels, and is read as it is. Where
    no comma is in the first line, semicolons separate, as they do where spreadsheets have commas in
    numbers.

    Args:
        file: UTF-8; the paths in it are relative to its folder.

    Returns:
        Absolute paths, links in them as they are, to labels.

    Raises:
        ValueError: the file has another form, or a path twice.
        FileNotFoundError: the file has no line below its head.
        OSError: the file cannot be read.
    """
    labels: dict[Path, str] = {}
    columns: tuple[int, int] | None = None
    many = False
    for where, cells in _lines(file):
        if columns is None:
            head = [cell.lower() for cell in cells]
            named = next((name for name in ("label", "labels") if name in head), None)
            if "path" in head and named:
                columns, many = (head.index("path"), head.index(named)), named == "labels"
                continue
            if len(cells) != 2:
                raise ValueError(f"{where}: has to name the columns path and label.")
            columns = 0, 1
        if len(cells) <= max(columns):
            raise ValueError(f"{where}: has no path and label.")
        name, label = (cells[column] for column in columns)
        if not name or not (label or many):
            raise ValueError(f"{where}: has no {'label' if name else 'path'}.")
        path = absolute(file.parent / name)
        if path in labels:
            raise ValueError(f"{where}: {name} stands in another line, too.")
        labels[path] = unicodedata.normalize("NFC", label)
    if not labels:
        raise FileNotFoundError(f"{file}: names no images.")
    return labels


def absolute(path: Path) -> Path:
    """Return an absolute path without `..`; links in it stay."""
    return Path(os.path.abspath(path))  # noqa: PTH100  (resolve() would follow links)


def class_folder(path: Path, source: Path) -> str:
    """Return the name of the folder directly below `source` that a photograph lies in, in NFC.

    macOS writes accents in names as characters of their own (NFD), which look the same.

    Raises:
        ValueError: it lies in no such folder.
    """
    folder, *rest = path.relative_to(source).parts
    if not rest:
        raise ValueError(f"{path}: lies in no class folder. {FORMS}")
    text = os.fsencode(folder).decode(errors="backslashreplace")
    return unicodedata.normalize("NFC", text)


def label_of(path: Path, classes: int) -> int:
    """Read a photograph's class index from names.

    The first of these names that begins with a class index gives it:

    1. a file name with the index and its WordNet ID, `285_n02124075_cat.JPEG`, in any folder;
    2. the folder's name, `285/20240101_x.jpg` or `285_cat/1.jpg`;
    3. the file's name, `285_cat.jpg` or `285.jpg`.

    A number that is not a class index, such as a date, is ignored.

    Args:
        path: of the photograph.
        classes: their number.

    Raises:
        ValueError: there is no class index.
    """
    for pattern, name in ((WORDNET, path.name), (INDEX, path.parent.name), (INDEX, path.stem)):
        found = pattern.match(name)
        if found and int(found[1]) < classes:
            return int(found[1])
    raise ValueError(f"{path}: neither folder nor name begins with a class index under {classes}.")


def _index(text: str, classes: int) -> int:
    if not text.isdecimal() or int(text) >= classes:
        raise ValueError(f"{text!r} is no class index under {classes}.")
    return int(text)


def _is_imagenet(path: Path) -> bool:
    """Tell whether a file is named by a class index and that class's WordNet ID."""
    found = WORDNET.match(path.name)
    return found is not None and _wordnet_ids().get(found[2]) == int(found[1])


@cache
def _wordnet_ids() -> Mapping[str, int]:
    return {known.wordnet_id: index for index, known in enumerate(imagenet.classes())}


def _pictures(directory: Path) -> tuple[list[Path], list[str]]:
    """Return the images below a folder, sorted, and notes about what else there is.

    Raises:
        FileNotFoundError: there are no images.
    """
    files = list(class_folders.below(directory))
    found = [path for path in files if path.suffix.lower() in photos.SUFFIXES]
    if not found:
        raise FileNotFoundError(f"{directory}: no images below it.")
    others = [path for path in files if path.suffix.lower() not in photos.SUFFIXES]
    notes = []
    if others:
        names = [str(path.relative_to(directory)) for path in others]
        notes.append(f"Left out, no image by its name: {_few(names)}.")
    filled = {path.relative_to(directory).parts[0] for path in found}
    empty = [
        path.name
        for path in class_folders.visible(directory)
        if path.is_dir() and path.name not in filled
    ]
    if empty:
        notes.append(f"No picture in {_few(empty)}.")
    return found, notes


def _indices(
    named: Sequence[tuple[Path, str]], categories: Sequence[str], source: Path
) -> dict[str, int]:
    """Look up the class index of each label that occurs.

    Raises:
        ValueError: the model does not have a label, or has it twice.
    """
    known: dict[str, int] = dict(_wordnet_ids()) if len(categories) == IMAGENET else {}
    normal = [unicodedata.normalize("NFC", category) for category in categories]
    known |= {category: index for index, category in enumerate(normal)}
    counts = Counter(text for _, text in named)
    unknown = [text for text in counts if text not in known]
    if unknown:
        shown = [
            f"{text!r} ({counts[text]} pictures; the closest is {_closest(text, normal)!r})"
            for text in unknown[:SHOWN]
        ]
        told = _few(shown + unknown[SHOWN:])
        raise ValueError(f"{source}: the model has no class {told}. {_few_classes(normal)}{FORMS}")
    doubled = [text for text in counts if normal.count(text) > 1]
    if doubled:
        raise ValueError(f"{source}: the model has several classes {_few(doubled)}. {FORMS}")
    return {text: known[text] for text in counts}


def _closest(text: str, categories: Sequence[str]) -> str:
    folded = {category.casefold(): category for category in reversed(categories)}
    return folded[get_close_matches(text.casefold(), folded, n=1, cutoff=0)[0]]


def _few_classes(categories: Sequence[str]) -> str:
    return f"Its classes are {', '.join(categories)}. " if len(categories) <= 2 * SHOWN else ""


def _few(names: Sequence[str]) -> str:
    """Join names, the first ten of them."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def enlarge(
    photographs: Sequence[tuple[Path, int]], side: int, directory: Path
) -> list[tuple[Path, int]]:
    """Write smaller photographs again in a size that cameras have, as JPEG files.

    Fast decoding at a reduced scale has no effect on small photographs, so it is measured on
    enlarged ones. They lack a large photograph's detail, which interpolation cannot add.

    Args:
        photographs: with their labels; one whose shorter side is long enough stays as it is.
        side: the least length of the shorter side, in pixels.
        directory: where to write.

    Raises:
        ValueError: a photograph cannot be read; it is named.
    """
    enlarged = []
    for number, (path, label) in enumerate(photographs):
        image = photos.read(path)
        if min(image.size) < side:
            width, height = (round(side * length / min(image.size)) for length in image.size)
            path = directory / f"{number}.jpg"
            image.resize((width, height), Image.Resampling.BICUBIC).save(path, quality=95)
        enlarged.append((path, label))
    return enlarged
