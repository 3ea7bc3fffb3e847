"""ImageNet's classes, with their names in English and Chinese."""

import csv
from dataclasses import dataclass

from visionserve.config import Language
from visionserve_tools import paths

FILE = paths.CONFIG / "labels" / "imagenet.tsv"


@dataclass(frozen=True)
class ImageNetClass:
    """A line of `config/labels/imagenet.tsv`.

    Attributes:
        wordnet_id: the letter `n` and the synset's offset in WordNet 3.0.
        label: torchvision's name: the first word of the synset, unless two classes share that word.
        synset: all English words of the synset.
        chinese: the name in Simplified Chinese; each class has a different one.
    """

    wordnet_id: str
    label: str
    synset: str
    chinese: str


def classes() -> list[ImageNetClass]:
    """Return the 1,000 classes in class-index order."""
    with FILE.open(encoding="utf-8", newline="") as file:
        return [ImageNetClass(*line) for line in csv.reader(file, delimiter="\t")]


def labels() -> tuple[str, ...]:
    """Return torchvision's names of the classes, in class-index order."""
    return tuple(c.label for c in classes())


def wordnet_ids() -> tuple[str, ...]:
    """Return the classes' synsets in WordNet 3.0, in class-index order."""
    return tuple(c.wordnet_id for c in classes())


def names() -> dict[Language, tuple[str, ...]]:
    """Return the names of the classes in each language other than English, in class-index order."""
    return {"zh": tuple(c.chinese for c in classes())}
