"""Read the user's own labels, and a map from labels to the names shown beside them."""

import csv
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from visionserve.config import Language
from visionserve_tools import class_folders

TABLES = {".csv", ".tsv"}
# The headings of a table's columns, the first one that it has. `class` may head either column.
INDEX = ("index", "idx", "class_index", "class_idx", "class_id", "label_id", "id", "class")
LABEL = ("label", "class_name", "label_name", "name", "category", "class")
# An index and a label in one, as in `0,dog`; but not `1,2-dichloroethane`.
INDEXED = re.compile(r"\d+\s*[,;\t]\s*[^\W\d].*")
# A label with a number before or behind it, as in `0 cat`, `01_dog`, `[2] bird` or `cat: 0`.
NUMBERED = (
    re.compile(r"\W?(?P<number>\d{1,9})[\W_]+(?P<name>.*\w.*)"),
    re.compile(r"(?P<name>.*\w)[\W_]+(?P<number>\d{1,9})\W?"),
)
SHOWN = 10


def read_labels(source: Path) -> tuple[str, ...]:
    """Read labels in class-index order.

    Args:
        source: a text with one label a line; a CSV or TSV file with the columns index and label; a
            JSON list, or object of indices to labels, such as TorchServe's `index_to_name.json`, or
            Hugging Face's `config.json`; or a folder with a folder for each class, whose names are
            sorted as torchvision's `ImageFolder` does, and printed.

    Raises:
        ValueError: there is no label; one is empty, stands there twice or has an index before it;
            all carry their `numbers`, in a text or in another order than the labels'; indices are
            not 0, 1, 2 and so on; or a file is not UTF-8 or has another form.
        OSError: the source cannot be read.
    """
    if source.is_dir():
        labels = class_folders.names(source)
        plain = [int(label) for label in labels if label.isdecimal() and len(label) < 10]
        order = plain if _counts(plain, len(labels)) else numbers(labels)
        if odd := _out_of_order(labels, order):
            raise ValueError(
                f"{source}: its folders, sorted by name as ImageFolder does, are not in the order "
                f"of their numbers ({odd}): give a file of labels in the order of your network's "
                "classes."
            )
        shown = ", ".join(f"{index} {label}" for index, label in enumerate(labels[:SHOWN]))
        rest = f" and {len(labels) - SHOWN} more" if len(labels) > SHOWN else ""
        print(f"{source}: {len(labels)} class folders: {shown}{rest}.", file=sys.stderr)
        return labels
    text = _read(source)
    if source.suffix.lower() == ".json" or text.lstrip().startswith(("{", '["')):
        found = _from_json(source, text)
    elif source.suffix.lower() in TABLES:
        found = _from_table(source, text)
    else:
        found = _from_lines(source, text)
    labels = check_labels(source, found)
    if odd := _out_of_order(labels, numbers(labels)):
        raise ValueError(f"{source}: the labels are not in the order of their numbers ({odd}).")
    return labels


def numbers(labels: Sequence[str]) -> list[int] | None:
    """Return the numbers that labels carry, if all do and these are their places: `0 cat`, `1 dog`.

    Places are 0, 1, 2 and so on, or begin at 1, in any order. Where names differ by their numbers
    alone, as `1 star` and `2 star`, the numbers belong to them.
    """
    for form in NUMBERED:
        found = [match for match in map(form.fullmatch, labels) if match]
        carried = [int(match["number"]) for match in found]
        alone = {match["name"] for match in found}
        if _counts(carried, len(labels)) and len(alone) == len(labels) > 1:
            return carried
    return None


def _counts(found: Sequence[int], length: int) -> bool:
    return sorted(found) in ([*range(length)], [*range(1, length + 1)])


def _out_of_order(labels: Sequence[str], order: Sequence[int] | None) -> str:
    """Name the first label whose number is not that of its place, if there is one."""
    for index, (label, wanted, number) in enumerate(
        zip(labels, sorted(order), order, strict=True) if order else ()
    ):
        if wanted != number:
            return f"{label} is class {index}"
    return ""


def read_map(file: Path, labels: Sequence[str]) -> dict[Language, dict[str, str]]:
    """Read a JSON object that maps labels to the names shown beside them.

    It is `{"names": {"zh": {"alp": "高山雪景"}}}`, or `{"alp": "高山雪景"}` for all languages.

    Returns:
        Language to label to name. A label that has no name is left out.

    Raises:
        ValueError: the file does not hold such an object, a key is not one of the labels or
            languages, or a name is empty or that of two labels.
        OSError: the file cannot be read.
    """
    return named(file, parse(file), labels)


def named(file: Path, content: Any, labels: Sequence[str]) -> dict[Language, dict[str, str]]:
    """Return the names in the content of a file, as `read_map` does.

    Raises:
        ValueError: as `read_map` raises it.
    """
    languages: tuple[Language, ...] = get_args(Language)
    maps: Any = content if isinstance(content, dict) else None
    if isinstance(content, dict) and isinstance(content.get("names"), dict) and len(content) == 1:
        maps = content["names"]
        if unknown := sorted(maps.keys() - set(languages)):
            known = ", ".join(languages)
            raise ValueError(f"{file}: no such language: {', '.join(unknown)}; there are {known}.")
    elif maps is not None:
        maps = dict.fromkeys(languages, content)
    if maps is None or not all(map(_is_map, maps.values())):
        raise ValueError(
            f'{file}: is no JSON object of labels to names, {{"alp": "a meadow"}}, or of languages '
            'to such, {"names": {"zh": {"alp": "高山雪景"}}}.'
        )
    for names in maps.values():
        if unknown := sorted(names.keys() - set(labels)):
            raise ValueError(f"{file}: no such label: {', '.join(unknown)}.")
        check_labels(file, [(f"{label}'s name", names.get(label, label)) for label in labels])
    return {language: maps[language] for language in languages if language in maps}


def _is_map(names: Any) -> bool:
    return isinstance(names, dict) and all(isinstance(name, str) for name in names.values())


def check_labels(file: Path, found: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Refuse empty and doubled labels, and those with an index before them.

    Args:
        file: what the messages name.
        found: the place of each label in the file, as text, and the label.

    Returns:
        The labels, without spaces around them.

    Raises:
        ValueError: there is none, or one that cannot be.
    """
    places: dict[str, str] = {}
    for place, label in found:
        label = label.strip()
        if not label:
            raise ValueError(f"{file}: {place} is blank; each class needs a label.")
        if INDEXED.fullmatch(label):
            raise ValueError(
                f"{file}: {place} is an index with a label ({label}): call the file labels.csv and "
                "begin it with the line index,label; or leave out the indices."
            )
        if not label.isprintable():
            raise ValueError(f"{file}: {place} holds a control character ({label!r}).")
        if label in places:
            raise ValueError(f"{file}: {label} stands in {places[label]} and {place}.")
        places[label] = place
    if not places:
        raise ValueError(f"{file}: holds no label.")
    return tuple(places)


def _from_lines(file: Path, text: str) -> list[tuple[str, str]]:
    """Read one label a line; blank lines at the end do not count."""
    lines = [line.strip() for line in text.rstrip().splitlines()]
    if numbers(lines) and not INDEXED.fullmatch(lines[0]):
        raise ValueError(
            f"{file}: each line carries its number ({lines[0]}): write the labels alone, in the "
            "order of the network's classes; labels that have numbers go into a JSON list."
        )
    return [(f"line {number}", line) for number, line in enumerate(lines, start=1)]


def _from_table(file: Path, text: str) -> list[tuple[str, str]]:
    """Read the columns of indices and labels, which headings or else whole numbers tell."""
    first = text.partition("\n")[0]
    delimiter = "\t" if file.suffix.lower() == ".tsv" else max(",;\t", key=first.count)
    reader = csv.reader(text.splitlines(), delimiter=delimiter, skipinitialspace=True)
    rows = [
        (f"line {reader.line_num}", [cell.strip() for cell in row]) for row in reader if any(row)
    ]
    if not rows:
        raise ValueError(f"{file}: holds no label.")
    width = len(rows[0][1])
    for place, row in rows:
        if len(row) != width:
            raise ValueError(f"{file}: {place} has {len(row)} columns, the first line {width}.")
    heads = [cell.lower().replace(" ", "_") for cell in rows[0][1]]
    has_heads = not any(cell.isdecimal() for cell in heads)
    rows = rows[has_heads:]
    numbers = [all(row[column].isdecimal() for _, row in rows) for column in range(width)]
    index = _column(heads, INDEX, numbers) if has_heads else None
    if index is None and numbers.count(True) == 1:
        index = numbers.index(True)
    texts = [column != index for column in range(width)]
    label = _column(heads, LABEL, texts) if has_heads else 1 - (index or 0) if width == 2 else None
    if index is None or label is None:
        raise ValueError(
            f"{file}: needs a column index and a column label, named in its first line."
        )
    return _in_order(file, [(place, row[index], row[label]) for place, row in rows])


def _column(heads: Sequence[str], known: Sequence[str], allowed: Sequence[bool]) -> int | None:
    """Return the column with the first known heading, among those allowed."""
    found = [heads.index(head) for head in known if head in heads and allowed[heads.index(head)]]
    return found[0] if found else None


def _from_json(file: Path, text: str) -> list[tuple[str, str]]:
    """Read a list of labels, or an object of indices to labels or of labels to indices."""
    content = _json(file, text)
    if isinstance(content, dict):
        content = content.get("id2label", content.get("label2id", content))
    if isinstance(content, list) and all(isinstance(label, str) for label in content):
        return [(f"index {index}", label) for index, label in enumerate(content)]
    if isinstance(content, dict):
        if content and all(type(index) is int for index in content.values()):
            content = {str(index): label for label, index in _unequal(file, content).items()}
        # TorchServe's file may give a list of a WordNet id and a label.
        named = {
            index: name[-1] if isinstance(name, list) and name else name
            for index, name in content.items()
        }
        if all(isinstance(name, str) for name in named.values()):
            entries = named.items()
            return _in_order(file, [(f"index {index}", index, label) for index, label in entries])
    raise ValueError(
        f'{file}: is no JSON list of labels, ["cat", "dog"], nor object of indices to labels, '
        '{"0": "cat", "1": "dog"}.'
    )


def _unequal(file: Path, indices: Mapping[str, int]) -> Mapping[str, int]:
    if len(set(indices.values())) < len(indices):
        raise ValueError(f"{file}: gives one index to two labels.")
    return indices


def _in_order(file: Path, entries: Sequence[tuple[str, str, str]]) -> list[tuple[str, str]]:
    """Order labels by their indices.

    Args:
        file: what the messages name.
        entries: the place in the file, the index and the label of each class.
    """
    ordered: dict[int, tuple[str, str]] = {}
    for place, index, label in entries:
        if not index.isdecimal():
            raise ValueError(f"{file}: {place} is no index, 0, 1, 2 and so on ({index}).")
        if int(index) in ordered:
            other = ordered[int(index)][0]
            raise ValueError(f"{file}: index {int(index)} stands in {other} and {place}.")
        ordered[int(index)] = place, label
    if missing := sorted(set(range(len(ordered))) - ordered.keys()):
        raise ValueError(
            f"{file}: has {len(ordered)} labels, but none for index {missing[0]}; indices begin at "
            "0 and leave none out."
        )
    return [ordered[index] for index in range(len(ordered))]


def parse(file: Path) -> Any:
    """Read a JSON file whose objects have each key once.

    Raises:
        ValueError: the file is no such JSON, or not UTF-8.
        OSError: the file cannot be read.
    """
    return _json(file, _read(file))


def _json(file: Path, text: str) -> Any:
    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in found]
        if doubled := [key for key in dict.fromkeys(keys) if keys.count(key) > 1]:
            raise ValueError(f"{file}: {doubled[0]} stands there twice.")
        return dict(found)

    try:
        return json.loads(text, object_pairs_hook=pairs)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{file}: is no JSON ({error}).") from None


def _read(file: Path) -> str:
    """Read UTF-8 text, without the byte order mark that some editors put before it."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        if "\0" in text:
            raise ValueError(f"{file}: holds NULs, as after a power cut; write it again.")
        return text
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ValueError(
            f"{file}: is not UTF-8 (byte 0x{byte:02x} at {error.start}); save it as UTF-8."
        ) from None
