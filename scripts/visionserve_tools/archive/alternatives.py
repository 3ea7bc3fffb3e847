"""Compare a network with its owner's figures, and where they differ find what would fit."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from visionserve.config import Activation, HandlerConfig
from visionserve.errors import RequestError
from visionserve.metadata import Comparison, Transforms
from visionserve.preprocessing import decode, to_rgb
from visionserve.validation import open_image
from visionserve_tools.archive import plain, unserved
from visionserve_tools.archive.declared import HALF, IMAGENET, PLAIN, by, numbers
from visionserve_tools.archive.expected import (
    ExpectationError,
    Expected,
    Probabilities,
    compare,
    describe,
    worst,
)
from visionserve_tools.archive.proof import LIMITS
from visionserve_tools.archive.thresholds import DEFAULT

if TYPE_CHECKING:
    from torch import Tensor, nn

BATCH = 16
# How many photographs each of some seventy ways to prepare them is tried on, and with how many of
# the closest normalizations each size is.
TRIED = 12
CLOSEST = 3
# Libraries round the levels of a resize differently.
CLOSE_ENOUGH = 0.005
# Caffe's networks take levels of 0 to 255 less the mean, blue first.
CAFFE = {"mean": (103.939, 116.779, 123.68), "std": (1.0,) * 3}


def check(
    network: nn.Module,
    transforms: Transforms,
    categories: Sequence[str],
    expected: Expected,
    config: HandlerConfig,
    activation: Activation = "softmax",
    thresholds: Sequence[float] = (),
) -> None:
    """Refuse a network that, in PyTorch and FP32, does not give its owner's figures.

    Args:
        network: the plain network with its weights.
        transforms: the preprocessing that is declared or assumed.
        categories: labels in class-index order.
        expected: the owner's figures.
        config: gives the limits of an image that is served.
        activation: what is declared or assumed to follow the network.
        thresholds: of a multi-label model.

    Raises:
        ExpectationError: the figures differ by more than FP32's `LIMITS`. The message names the
            worst photographs, and the preprocessing, activation or order of labels that would fit.
        ValueError: a photograph would not be served, a label is not the archive's, or the figures
            sum to 1 after neither softmax nor, as they need not, sigmoid.
    """
    figures = expected.arranged(categories)
    found = classify(network, transforms, _read(expected.photographs, config), activation)
    compared = compare(found, figures, thresholds)
    uneven = "" if activation == "sigmoid" else expected.uneven
    if fits(compared) and not uneven:
        return
    print("The owner's figures differ: trying what would fit them ...", file=sys.stderr)
    odd = np.array([*map(_is_odd, expected.photographs)])
    advice = (
        ""
        if uneven
        else _advice_on_decoding(
            *(network, transforms, figures, expected.photographs, odd, activation, thresholds)
        )
    )
    if not advice:
        usable = np.flatnonzero(~odd) if not odd.all() else np.arange(len(odd))
        spread = usable[np.unique(np.linspace(0, len(usable) - 1, TRIED).astype(int))]
        images = [*_read([expected.photographs[index] for index in spread], config)]
        search = Search(network, transforms, images, figures[spread], activation, thresholds)
        fitting = search.with_other_activation() if uneven else search.advice(categories)
        if uneven and not fitting:
            raise ValueError(uneven)
        advice = fitting or search.closest()
    raise ExpectationError(
        f"{expected.file}: these weights, so prepared, do not give their owner's figures, and no "
        f"archive is written: {describe(compared, activation)}. Worst: "
        f"{worst(expected, figures, found, categories, activation)}. {advice}"
    )


def fits(figures: Comparison) -> bool:
    """Tell whether probabilities are those of the same weights in FP32."""
    limits = LIMITS["fp32"]
    return figures.mean_difference <= limits.difference and figures.agreement >= limits.agreement


def classify(
    network: nn.Module,
    transforms: Transforms,
    images: Iterable[Image.Image],
    activation: Activation = "softmax",
    resize: plain.Resize | None = None,
) -> Probabilities:
    """Return the plain network's probabilities of RGB images: (images, classes)."""
    return _activated(_logits(network, transforms, images, resize), activation)


def _logits(
    network: nn.Module,
    transforms: Transforms,
    images: Iterable[Image.Image],
    resize: plain.Resize | None = None,
) -> Tensor:
    tensors, answers = (plain.centre(image, transforms, resize) for image in images), []
    with torch.inference_mode():
        while batch := [*itertools.islice(tensors, BATCH)]:
            answers.append(network(torch.stack(batch)))
    return torch.cat(answers)


def _once(resize: plain.Resize) -> plain.Resize:
    """Resize each picture once for all preprocessings that differ in their colours alone."""
    known: dict[tuple[object, ...], Image.Image] = {}

    def resized(image: Image.Image, transforms: Transforms) -> Image.Image:
        grey = len(transforms.mean) if transforms.channels == "grey" else 0
        key = id(image), transforms.resize, transforms.crop, transforms.interpolation, grey
        if key not in known:
            known[key] = resize(image, transforms)
        return known[key]

    return resized


def _activated(logits: Tensor, activation: Activation) -> Probabilities:
    return plain.activate(logits, activation).numpy().astype(np.float64)


def _read(photographs: Sequence[Path], config: HandlerConfig) -> Iterator[Image.Image]:
    """Yield photographs, decoded as the archive does, within the limits of what it serves.

    Raises:
        ValueError: one would be refused; the message names it.
    """
    for path in photographs:
        try:
            image = open_image(path.read_bytes(), config)
            yield decode(image, Transforms(), "exact", config.max_image_pixels)
        except RequestError as error:
            raise ValueError(f"{path}: would not be served. {error.message}") from None


def _decoded(path: Path) -> Image.Image:
    """Decode a photograph as most scripts do."""
    return Image.open(path).convert("RGB")


def _is_odd(path: Path) -> bool:
    """Tell whether most scripts decode a photograph otherwise than the archive does."""
    try:
        theirs = _decoded(path)
        ours = to_rgb(open_image(path.read_bytes(), HandlerConfig()))
    except (OSError, ValueError, RequestError):
        return False
    return theirs.size != ours.size or theirs.tobytes() != ours.tobytes()


def _advice_on_decoding(
    network: nn.Module,
    transforms: Transforms,
    figures: Probabilities,
    photographs: Sequence[Path],
    odd: NDArray[np.bool_],
    activation: Activation,
    thresholds: Sequence[float],
) -> str:
    """Say that some photographs are decoded otherwise, if that is all; otherwise nothing."""
    if not odd.any():
        return ""
    try:
        found = classify(network, transforms, map(_decoded, photographs), activation)
    except (OSError, ValueError):
        return ""
    if not fits(compare(found, figures, thresholds)):
        return ""
    return (
        f"{odd.sum()} of {len(odd)} pictures differ as PIL.Image.open(path).convert('RGB') decodes "
        "them, which your figures fit: the archive turns pictures upright by their EXIF "
        "orientation (PIL.ImageOps.exif_transpose), lays what is transparent on white, and brings "
        "16 bits to 8. Do so too, or leave them out."
    )


@dataclass
class Search:
    """A search for the preprocessing and the order of labels that give the owner's figures.

    It first tries every normalization with every order of channels, then every size, as declared
    otherwise and with the closest of these. That finds what is wrong in one of the two, or in both.

    Attributes:
        network: the plain network.
        declared: the preprocessing that does not fit.
        images: RGB photographs.
        figures: the owner's probabilities of them, (photographs, classes).
        activation: the activation that does not fit either.
        thresholds: of a multi-label model.
    """

    network: nn.Module
    declared: Transforms
    images: list[Image.Image]
    figures: Probabilities
    activation: Activation = "softmax"
    thresholds: Sequence[float] = ()
    _known: dict[Transforms, Tensor] = field(default_factory=dict)
    _resized: plain.Resize = field(default_factory=lambda: _once(plain.resized))

    def advice(self, categories: Sequence[str]) -> str:
        """Say what would fit; nothing if nothing does."""
        best = self._best(reorder=False)
        if self._fits(self._found(best)):
            return f"Your figures fit {difference(self.declared, best)}"
        if other := self.with_other_activation():
            return other
        ordered = self._best(reorder=True)
        found = self._found(ordered)
        order = _order(found, self.figures)
        if self._fits(found[:, order]):
            return (
                f"Your figures fit the labels in another order, {_described(order, categories)}: "
                f"put them so in --labels. {_also(self.declared, ordered)}"
            ).rstrip()
        off = compare(self._found(best), self.figures, self.thresholds).mean_difference
        return self._unserved(best, off)

    def with_other_activation(self) -> str:
        """Say that the other activation would fit; its search has the same logits."""
        other: Activation = "softmax" if self.activation == "sigmoid" else "sigmoid"
        thresholds = (DEFAULT,) * self.figures.shape[1] if other == "sigmoid" else ()
        search = replace(self, activation=other, thresholds=thresholds)
        best = search._best(reorder=False)
        if not search._fits(search._found(best)):
            return ""
        return f"Your figures fit --activation {other}. {_also(self.declared, best)}".rstrip(" .")

    def closest(self) -> str:
        """Say what comes closest, where nothing fits."""
        best = self._best(reorder=False)
        off = compare(self._found(best), self.figures, self.thresholds).mean_difference
        closest = "as it is" if best == self.declared else difference(self.declared, best)
        return (
            "No preprocessing that can be declared fits them, nor another order of labels "
            f"(closest: {closest} {off:.3f} in the mean). Are they of these very weights, in FP32, "
            "by model.eval(), and of one view a picture?"
        )

    def _best(self, reorder: bool) -> Transforms:
        """Return the closest preprocessing, with the labels as they are or in the best order."""

        def compared(transforms: Transforms) -> Comparison:
            found = self._found(transforms)
            order = _order(found, self.figures) if reorder else range(found.shape[1])
            return compare(found[:, order], self.figures, self.thresholds)

        tried: dict[Transforms, float] = {}

        def first_that_fits(candidates: Iterable[Transforms]) -> Transforms | None:
            for candidate in candidates:
                figures = compared(candidate)
                tried[candidate] = figures.mean_difference
                if fits(figures):
                    return candidate
            return None

        if found := first_that_fits(colours(self.declared)):
            return found
        closest = sorted(tried, key=tried.__getitem__)[:CLOSEST]
        sized = (other for base in (self.declared, *closest) for other in sizes(base))
        return first_that_fits(sized) or min(tried, key=tried.__getitem__)

    def _unserved(self, closest: Transforms, off: float) -> str:
        """Say which resize would fit of those that no archive does; nothing if none does.

        Args:
            closest: the closest preprocessing of an archive.
            off: how far it is off.
        """
        kept = ("mean", "std", "range", "channels")
        best = {key: getattr(closest, key) for key in kept}
        bases = dict.fromkeys((self.declared, self.declared.model_copy(update=best)))
        kind = self.declared.interpolation  # What an archive does not follow replaces the filter.
        others = [(base, one) for base in bases for one in sizes(base) if one.interpolation == kind]
        for words, resize in unserved.RESIZES.items():
            once = _once(resize)
            for base, other in others:
                found = classify(self.network, other, self.images, self.activation, once)
                compared = compare(found, self.figures, self.thresholds)
                if compared.mean_difference <= min(CLOSE_ENOUGH, off / 3):
                    return (
                        f"Your figures fit {words} ({_size(other)}), which no archive does: train "
                        "on pictures that Pillow or torchvision resizes, or build without --expect "
                        f"and measure what it costs. {_also(self.declared, base)}"
                    ).rstrip()
        return ""

    def _found(self, transforms: Transforms) -> Probabilities:
        if transforms not in self._known:
            self._known[transforms] = _logits(self.network, transforms, self.images, self._resized)
        return _activated(self._known[transforms], self.activation)

    def _fits(self, found: Probabilities) -> bool:
        return fits(compare(found, self.figures, self.thresholds))


def colours(declared: Transforms) -> list[Transforms]:
    """Return a preprocessing with other normalizations and channels; first as it is."""
    count = len(declared.mean)
    unit = [IMAGENET, HALF, PLAIN]
    normalizations: list[dict[str, Any]] = [
        *({"mean": declared.mean, "std": declared.std, "range": declared.range},),
        *(each | {"range": "0-1"} for each in unit),
        *({key: values[::-1] for key, values in IMAGENET.items()} | {"range": "0-1"},),
        *(each | {"range": "0-255"} for each in (PLAIN, CAFFE)),
    ]
    orders = ["rgb", "bgr", "grey"] if count == 3 else ["grey"]
    orders.sort(key=lambda order: order != declared.channels)
    tried = [
        Transforms.model_validate(
            declared.model_dump()
            | {"channels": channels, "range": each["range"]}
            | {key: tuple(each[key])[:count] for key in ("mean", "std")}
        )
        for channels in orders
        for each in normalizations
    ]
    return [*dict.fromkeys(tried)]


def sizes(declared: Transforms) -> list[Transforms]:
    """Return a preprocessing with other sizes and filters; first as it is."""
    crop, resize = declared.crop, declared.resize
    tried: list[tuple[int | tuple[int, int], int]] = [
        *((resize, crop), ((crop, crop), crop), (crop, crop), (round(crop / 0.875), crop)),
        *((232, crop), (256, crop), ((256, 256), crop)),
    ]
    filters = sorted(("bilinear", "bicubic"), key=lambda name: name != declared.interpolation)
    return [
        declared.model_copy(update={"resize": size, "crop": crop, "interpolation": name})
        for name in filters
        for size, crop in dict.fromkeys(tried)
        if (size if isinstance(size, int) else min(size)) >= crop
    ]


def difference(declared: Transforms, other: Transforms) -> str:
    """Say how another preprocessing differs, in words and then as options."""
    words, options = [], []
    if (other.mean, other.std, other.range) != (declared.mean, declared.std, declared.range):
        words.append(_normalization(other))
        options += [f"--mean {numbers(other.mean)}", f"--std {numbers(other.std)}"]
    if other.range != declared.range:
        options.append(f"--range {other.range}")
    if other.channels != declared.channels:
        words.append("grey" if other.channels == "grey" else other.channels.upper())
        options.append(f"--channels {other.channels}")
    if other.resize != declared.resize:
        words.append(_size(other))
        size = other.resize
        options.append(f"--resize {size if isinstance(size, int) else 'x'.join(map(str, size))}")
        options.append(f"--crop {other.crop}")
    if other.interpolation != declared.interpolation:
        words.append(other.interpolation)
        options.append(f"--interpolation {other.interpolation}")
    return f"{', '.join(words)}: {' '.join(options)}"


def _size(transforms: Transforms) -> str:
    size = transforms.resize
    return f"resize {size}" if isinstance(size, int) else f"squashed to {by(size)}"


def _normalization(transforms: Transforms) -> str:
    if {*transforms.mean} == {0.0} and {*transforms.std} == {1.0}:
        return f"{transforms.range} without normalization"
    if {*transforms.mean, *transforms.std} == {0.5}:
        return "mean = std = 0.5"
    return "another mean and std"


def _also(declared: Transforms, other: Transforms) -> str:
    return "" if other == declared else f"And they fit {difference(declared, other)}"


def _order(found: Probabilities, figures: Probabilities) -> list[int]:
    """Return, for each of the owner's classes, the class of ours whose probabilities are closest.

    Each is taken once: this is the linear assignment problem over the summed differences.
    """
    from scipy.optimize import linear_sum_assignment

    costs = np.zeros((found.shape[1],) * 2)
    for ours, theirs in zip(found, figures, strict=True):
        costs += np.nan_to_num(np.abs(theirs[:, np.newaxis] - ours))
    return [int(index) for index in linear_sum_assignment(costs)[1]]


def _described(order: Sequence[int], categories: Sequence[str]) -> str:
    """Name the order in which the network's outputs should be labelled."""
    labels = [""] * len(categories)
    for theirs, ours in enumerate(order):
        labels[ours] = categories[theirs]
    if labels == sorted(categories):
        return "sorted by name"
    if labels == [*categories][::-1]:
        return "reversed"
    return ", ".join(labels)
