"""ImageNet's classes, with their names in English and Chinese."""

import csv
from dataclasses import dataclass

from scripts import paths
from visionserve.config import Language

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


def translate(categories: tuple[str, ...]) -> dict[Language, tuple[str, ...]]:
    """Return the names of ImageNet's classes in each language other than English.

    Args:
        categories: labels in class-index order. A label that differs from ImageNet's was renamed by
            the user, and stays the same in every language.
    """
    from visionserve.models import IMAGENET_CATEGORIES

    named = zip(classes(), categories, IMAGENET_CATEGORIES, strict=True)
    return {"zh": tuple(c.chinese if label == own else label for c, label, own in named)}
