"""What an archive calls the classes of its network, or makes of them, without PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from visionserve.config import Language
from visionserve.metadata import Training
from visionserve_tools.archive import imagenet, thresholds, trained
from visionserve_tools.archive.categories import read_labels, read_map
from visionserve_tools.archive.groups import read_groups

if TYPE_CHECKING:
    from visionserve_tools.archive.recipe import Recipe

MANY = 10


@dataclass(frozen=True)
class Classes:
    """The classes of an archive.

    Attributes:
        labels: of the network, in class-index order.
        categories: of the archive: the labels, or the names of groups.
        members: the indices of each group's classes; empty without groups.
        names: what people call the categories, in the languages that have names.
        wordnet_ids: the categories' synsets in WordNet 3.0; empty where they are not ImageNet's.
        thresholds: of a multi-label model, as given; empty if none are.
        training: what the weights were trained on, if that is known.
    """

    labels: tuple[str, ...]
    categories: tuple[str, ...]
    members: tuple[tuple[int, ...], ...]
    names: dict[Language, tuple[str, ...]]
    wordnet_ids: tuple[str, ...]
    thresholds: tuple[float, ...]
    training: Training | None


def read_classes(recipe: Recipe) -> Classes:
    """Read all that a recipe says of its classes.

    Raises:
        ValueError: a file does not have the expected form, or the files do not fit each other.
        OSError: one cannot be read.
    """
    report = trained.read(recipe.weights)
    training = report.training if report else None
    labels = read_categories(recipe, training)
    if recipe.groups and recipe.activation == "sigmoid":
        raise ValueError("--groups sums up a softmax: give it without --activation sigmoid.")
    given = read_groups(recipe.groups, labels) if recipe.groups else None
    categories = tuple(given.members) if given else labels
    return Classes(
        labels=labels,
        categories=categories,
        members=tuple(given.members.values()) if given else (),
        names=read_names(recipe, categories, given.names if given else None),
        wordnet_ids=imagenet.wordnet_ids() if _are_imagenet(recipe, categories) else (),
        thresholds=read_thresholds(recipe, categories),
        training=training,
    )


def read_categories(recipe: Recipe, training: Training | None = None) -> tuple[str, ...]:
    """Read the labels of the network's classes, in class-index order.

    Args:
        recipe: gives the labels.
        training: what the weights were trained on, if that is known.

    Raises:
        ValueError: the labels do not have one of the expected forms, or are not the training's.
        OSError: they cannot be read.
    """
    known = tuple(training.photographs) if training else None
    if recipe.labels is None:
        return known or imagenet.labels()
    given = read_labels(recipe.labels)
    if known and given != known:
        raise ValueError(
            f"{recipe.labels}: the weights were trained on {', '.join(known[:MANY])}"
            f"{', ...' if len(known) > MANY else ''}, in this order: leave out --labels, and name "
            "classes for people by --label-map."
        )
    return given


def read_thresholds(recipe: Recipe, categories: Sequence[str]) -> tuple[float, ...]:
    """Read the thresholds of a multi-label model, in class-index order; empty if none are given.

    Raises:
        ValueError: the model is not multi-label, the file does not have the expected form, or a
            label could not be told from several in a column of `visionserve classify`.
        OSError: it cannot be read.
    """
    if recipe.activation == "sigmoid":
        if joined := [label for label in categories if ";" in label]:
            raise ValueError(f"{joined[0]}: a semicolon separates labels; rename it.")
    elif recipe.thresholds:
        raise ValueError(
            "--thresholds are those of a multi-label model: give --activation sigmoid."
        )
    return thresholds.read(recipe.thresholds, categories) if recipe.thresholds else ()


def read_names(
    recipe: Recipe,
    categories: Sequence[str],
    groups: Mapping[Language, Mapping[str, str]] | None = None,
) -> dict[Language, tuple[str, ...]]:
    """Return what people call the classes, in class-index order, in the languages that have names.

    The label map goes before the names of groups, or where there are none ImageNet's. A class
    without a name is called by its label.

    Raises:
        ValueError: the label map does not have the expected form.
        OSError: it cannot be read.
    """
    known = imagenet.names() if _are_imagenet(recipe, categories) else {}
    for language, texts in (groups or {}).items():
        known[language] = tuple(texts.get(label, label) for label in categories)
    own = read_map(recipe.label_map, categories) if recipe.label_map else {}
    return {
        language: tuple(
            own.get(language, {}).get(label, name)
            for label, name in zip(categories, known.get(language, categories), strict=True)
        )
        for language in {**known, **own}
    }


def _are_imagenet(recipe: Recipe, categories: Sequence[str]) -> bool:
    return not recipe.labels and tuple(categories) == imagenet.labels()
