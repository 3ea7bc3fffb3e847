"""The photographs of a training: read, told apart and divided."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from visionserve.metadata import Transforms
from visionserve_tools.class_folders import ClassFolders
from visionserve_tools.training import folds, near_duplicates, reading
from visionserve_tools.training.reading import Seen

LEAST, ENOUGH = folds.FOLDS, 20


@dataclass(frozen=True)
class Data:
    """The photographs that can be read.

    Attributes:
        classes: in class-index order.
        paths: of the photographs.
        labels: int of shape (photographs,), their class indices.
        seen: what is in each.
        folds: int of shape (photographs,), each one's fold.
        near_duplicates: groups of one class, each of them in one fold.
        in_two_classes: pairs of near-duplicates of different classes.
        left_out: why a file is not among them, by its path.
    """

    classes: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: NDArray[np.int64]
    seen: tuple[Seen, ...]
    folds: NDArray[np.int64]
    near_duplicates: list[list[Path]]
    in_two_classes: list[tuple[Path, Path]]
    left_out: dict[Path, str]

    @property
    def sha256(self) -> str:
        """SHA-256 in hex over each photograph's class and hash; names of files do not count."""
        pairs = zip(self.labels, self.seen, strict=True)
        lines = sorted(f"{self.classes[label]}\t{one.sha256}\n" for label, one in pairs)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def where(self, chosen: NDArray[np.bool_]) -> list[tuple[Path, int]]:
        """Return the chosen photographs with their class indices."""
        return [(self.paths[index], int(self.labels[index])) for index in np.flatnonzero(chosen)]

    def counts(self, chosen: NDArray[np.bool_]) -> dict[str, int]:
        """Return how many of each class are chosen."""
        found = Counter(self.labels[chosen].tolist())
        return {name: found[index] for index, name in enumerate(self.classes)}


def read(found: ClassFolders, transforms: Transforms, network: Path | None, seed: int) -> Data:
    """Read the photographs of class folders.

    Args:
        found: the folders.
        transforms: the preprocessing.
        network: an OpenVINO IR from pixels to features, or None.
        seed: of the folds.

    Raises:
        ValueError: a class has too few photographs that can be read and that differ.
    """
    tasks = [(path, None) for path, _ in found.photographs]
    results = reading.read(tasks, transforms, network, "photographs")
    left_out = dict(found.left_out)
    paths, labels, seen = [], [], []
    for (path, label), result in zip(found.photographs, results, strict=True):
        if isinstance(result, str):
            left_out[path] = result
        else:
            paths.append(path)
            labels.append(label)
            seen.append(result)
    check(found.classes, labels, "can be read")
    classes = np.array(labels)
    hashes = np.array([one.hashes for one in seen], dtype=np.uint64)
    pairs = near_duplicates.pairs(hashes[:, 0], hashes[:, 1])
    groups = near_duplicates.groups(pairs, classes)
    _, first, sizes = np.unique(groups, return_index=True, return_counts=True)
    check(found.classes, classes[first], "differ from one another")
    return Data(
        classes=found.classes,
        paths=tuple(paths),
        labels=classes,
        seen=tuple(seen),
        folds=folds.divide(classes, groups, seed),
        near_duplicates=[
            [paths[index] for index in np.flatnonzero(groups == group)]
            for group in np.flatnonzero(sizes > 1)
        ],
        in_two_classes=[
            (paths[one], paths[other]) for one, other in pairs if classes[one] != classes[other]
        ],
        left_out=left_out,
    )


def check(classes: tuple[str, ...], labels: Iterable[int], which: str) -> dict[str, int]:
    """Count the photographs of each class.

    Args:
        classes: in class-index order.
        labels: the photographs' class indices.
        which: says what was counted, after "photographs that".

    Returns:
        The classes that have fewer than `ENOUGH`, with their numbers.

    Raises:
        ValueError: a class has fewer than `LEAST`.
    """
    counts = Counter(int(label) for label in labels)
    few = {name: counts[index] for index, name in enumerate(classes) if counts[index] < ENOUGH}
    if any(count < LEAST for count in few.values()):
        named = ", ".join(f"{name} has {count}" for name, count in few.items() if count < LEAST)
        raise ValueError(
            f"Give at least {LEAST} photographs of each class that {which}: {named}. "
            f"{ENOUGH} are much better."
        )
    return few
