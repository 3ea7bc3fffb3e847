"""Compare what an archive will serve with its owner's figures, from the pictures' bytes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from visionserve import processor
from visionserve.classifier import Classifier
from visionserve.config import HandlerConfig, Options
from visionserve.errors import RequestError
from visionserve.item import Item
from visionserve.metadata import Comparison
from visionserve.self_check import FAST_AGREEMENT, FAST_DIFFERENCE
from visionserve_tools.archive.expected import (
    ExpectationError,
    Expected,
    Probabilities,
    compare,
    describe,
    worst,
)
from visionserve_tools.archive.proof import Limits, limits_of

BATCH = 16
# What decoding and resizing quickly may add to what the precision may do.
FAST = Limits(difference=FAST_DIFFERENCE, agreement=FAST_AGREEMENT)


def check(classifier: Classifier, expected: Expected, config: HandlerConfig) -> Comparison:
    """Refuse an archive whose answers are not its owner's figures.

    The answers are those of one view, of all classes.

    Args:
        classifier: what the archive serves, without a cache.
        expected: the owner's figures.
        config: gives the precision and the decoding, which decide how far answers may be off.

    Raises:
        ExpectationError: they are further off; the message names the worst photographs.
        ValueError: a photograph is refused; the message names it.
    """
    categories, activation = classifier.metadata.categories, classifier.metadata.activation
    figures = expected.arranged(categories)
    found = answers(classifier, expected.photographs)
    compared = compare(found, figures, classifier.metadata.thresholds)
    precision = processor.precision(config.precision, classifier.metadata.bf16)
    limits, fast = limits_of(precision, activation), config.decode == "fast"
    difference = limits.difference + fast * FAST.difference
    agreement = limits.agreement - fast * FAST.agreement
    if not (compared.mean_difference <= difference and compared.agreement >= agreement):
        raise ExpectationError(
            f"{expected.file}: the {precision} archive would not answer as its owner "
            f"expects, and is not written: {describe(compared, activation)}. Allowed are "
            f"{difference:g} in the mean and {agreement:.0%}. "
            f"Worst: {worst(expected, figures, found, categories, activation)}."
        )
    return compared


def answers(classifier: Classifier, photographs: Sequence[Path]) -> Probabilities:
    """Return the probabilities of photographs in class-index order: (photographs, classes).

    Raises:
        ValueError: a photograph is refused; the message names it.
    """
    classes = len(classifier.metadata.categories)
    options = Options(top_k=classes, tta="none")
    found = np.empty((len(photographs), classes))
    for first in range(0, len(photographs), BATCH):
        paths = photographs[first : first + BATCH]
        outcomes = classifier.classify([Item(path.read_bytes(), options) for path in paths])
        for row, (path, outcome) in enumerate(zip(paths, outcomes, strict=True), start=first):
            if isinstance(outcome, RequestError):
                raise ValueError(f"{path}: would not be served. {outcome.message}")
            for prediction in outcome["predictions"]:
                found[row, prediction["class_id"]] = prediction["probability"]
    return found
