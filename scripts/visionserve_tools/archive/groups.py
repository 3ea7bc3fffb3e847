"""Read which classes of a network make one class of an archive, a group, and what it is called."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from visionserve.config import Language
from visionserve_tools import paths
from visionserve_tools.archive.categories import check_labels, named, parse

FOLDER = paths.CONFIG / "groups"
OTHER = "other"
RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")
FORM = (
    'is no JSON object of groups to lists of labels, indices and ranges, {"dog": ["beagle", 207, '
    '"151-268"]}, nor {"groups": such an object, "other": "the rest", "names": {"zh": {"dog": '
    '"狗"}}}.'
)


@dataclass(frozen=True)
class Groups:
    """Groups of a network's classes, which have each class in exactly one of them.

    Attributes:
        members: the name of each group, in the file's order, and its classes' indices in ascending
            order. The classes that the file does not name are the last group.
        names: what people call groups in each language: language to group to name. A group that
            has no name is left out.
    """

    members: dict[str, tuple[int, ...]]
    names: dict[Language, dict[str, str]]


def find_groups(text: str) -> Path:
    """Return the file of groups that a user means: a path, or the name of one in `config/groups`.

    Raises:
        ValueError: there is no such file.
    """
    packaged = {file.stem: file for file in sorted(FOLDER.glob("*.json"))}
    file = Path(text) if Path(text).is_file() else packaged.get(text)
    if file is None:
        raise ValueError(
            f"{text}: no such file of groups, nor one of config/groups: {', '.join(packaged)}."
        )
    return file


def read_groups(file: Path, labels: Sequence[str]) -> Groups:
    """Read groups of a network's classes.

    A member is a label, an index or a range of indices with both its ends. A text that is a label
    is that label, even where it looks like an index; of two classes that share a label, each has to
    be named by its index.

    Args:
        file: JSON, an object of groups to lists of members; or an object whose `groups` is such a
            one, whose `other` names the classes that are in no group ("other" without it), and
            whose `names` names groups in languages, as a label map does.
        labels: of the network, in class-index order.

    Raises:
        ValueError: the file has another form; a group is empty or stands there twice; a member is
            unknown, beyond the last class or in two places; or `names` names no group. The message
            is one line.
        OSError: the file cannot be read.
    """
    content = parse(file)
    whole = isinstance(content, dict) and isinstance(content.get("groups"), dict)
    if whole and (unknown := content.keys() - {"groups", "other", "names"}):
        raise ValueError(f"{file}: takes groups, other and names, not {sorted(unknown)[0]}.")
    given: Any = content["groups"] if whole else content
    other = content.get("other", OTHER) if whole else OTHER
    if not (
        isinstance(given, dict)
        and given
        and isinstance(other, str)
        and all(isinstance(members, list) for members in given.values())
    ):
        raise ValueError(f"{file}: {FORM}")
    other = other.strip()
    groups = check_labels(file, [(f"group {group!r}", group) for group in given])
    places: dict[int, str] = {}
    for group, members in zip(groups, given.values(), strict=True):
        if not members:
            raise ValueError(f"{file}: {group} is empty; a group has a member at least.")
        for index in (one for member in members for one in _indices(file, group, member, labels)):
            if index in places:
                raise ValueError(
                    f"{file}: {labels[index]} ({index}) stands in {places[index]} and {group}."
                )
            places[index] = group
    if rest := [index for index in range(len(labels)) if index not in places]:
        if other in groups:
            raise ValueError(
                f"{file}: {len(rest)} classes, such as {labels[rest[0]]}, are in no group, and "
                f'{other} is a group: name them with "other": "something else".'
            )
        groups += check_labels(file, [("other", other)])
        places |= dict.fromkeys(rest, other)
    found: dict[str, list[int]] = {group: [] for group in groups}
    for index, group in sorted(places.items()):
        found[group].append(index)
    names = content.get("names", {}) if whole else {}
    return Groups(
        members={group: tuple(indices) for group, indices in found.items()},
        names=named(file, {"names": names}, [*dict.fromkeys((*groups, other))]),
    )


def _indices(file: Path, group: str, member: Any, labels: Sequence[str]) -> Sequence[int]:
    """Return the class indices of a member.

    Raises:
        ValueError: it is unknown, or beyond the last class.
    """
    if isinstance(member, str) and (count := labels.count(member)):
        if count > 1:
            raise ValueError(f"{file}: {group}: {count} classes are {member}; give its index.")
        return [labels.index(member)]
    span = RANGE.fullmatch(member) if isinstance(member, str) else None
    if type(member) is not int and span is None:
        close = get_close_matches(str(member).casefold(), map(str.casefold, labels), n=1, cutoff=0)
        closest = next(label for label in labels if label.casefold() == close[0])
        raise ValueError(f"{file}: {group}: there is no class {member}; the closest is {closest}.")
    first = int(span[1]) if span else member
    last = int(span[2] or first) if span else member
    if first > last:
        raise ValueError(f"{file}: {group}: the range {member} ends before it begins.")
    if not 0 <= first <= last < len(labels):
        raise ValueError(
            f"{file}: {group}: {member} is beyond the {len(labels)} classes, 0 to "
            f"{len(labels) - 1}."
        )
    return range(first, last + 1)
