"""Models that are ready to classify photographs, without a server."""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from visionserve import runtimes
from visionserve.classifier import Classifier
from visionserve.config import TTA, CacheConfig, Engine, HandlerConfig, Wanted
from visionserve.errors import RequestError
from visionserve.item import Item
from visionserve.metadata import Metadata, Transforms
from visionserve.postprocessing import temper
from visionserve.preprocessing import decode, to_views
from visionserve.runtimes import Passed, Runtime
from visionserve.validation import open_image
from visionserve_tools.archive.hashes import HashError
from visionserve_tools.archive.manifest import ArchiveError
from visionserve_tools.archive.unpacked import unpacked
from visionserve_tools.archive.weights import WeightsError, resolve
from visionserve_tools.batch.rows import read_image, unreadable
from visionserve_tools.quality import labelled
from visionserve_tools.quality.variants import VARIANTS

THREADS = 2
Truth = TypeVar("Truth")
# What commands that measure a model tell in one line. A `ProofError` is a ValueError.
CANNOT = (ArchiveError, HashError, RequestError, WeightsError, ValueError, OSError)


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to classify, as a worker with this configuration does."""

    runtime: Runtime
    metadata: Metadata
    config: HandlerConfig

    def modes(self, wanted: Sequence[TTA]) -> list[TTA]:
        """Return the TTA modes that the model has, among the wanted ones.

        Raises:
            ValueError: it has none of them.
        """
        found = self.metadata.modes(wanted)
        if not found:
            raise ValueError(f"{self.metadata.architecture} has no {', '.join(wanted)}.")
        return found

    def decode(self, path: Path) -> Image.Image:
        """Decode a photograph to RGB."""
        return decode(Image.open(path), self.metadata.transforms, self.config.decode)

    def crop(self, path: Path) -> NDArray[np.uint8]:
        """Return a photograph's centre crop: uint8 of shape (1, crop, crop, 3)."""
        image, transforms = self.decode(path), self.metadata.transforms
        return to_views(image, transforms, self.config.decode, "none").stacked()

    def average(self, image: Image.Image, mode: TTA) -> NDArray[np.float32]:
        """Return the probabilities of an RGB image, averaged over its views: one a class."""
        views = to_views(image, self.metadata.transforms, self.config.decode, mode)
        averaged: NDArray[np.float32] = self.runtime.averaged([views]).probabilities[0]
        return averaged

    @cached_property
    def _classifier(self) -> Classifier:
        uncached = self.config.model_copy(update={"cache": CacheConfig(size_mb=0)})
        return Classifier(self.runtime, self.metadata, uncached, version="")

    def passed(self, data: bytes, mode: TTA) -> Passed:
        """Return what the model says of an encoded image, before any temperature.

        Raises:
            RequestError: a worker would refuse the image, too, or the model fails.
        """
        options = self.config.defaults.model_copy(update={"tta": mode, "top_k": 1})
        return self._classifier.passed(Item(data, options))

    def read(self, path: Path) -> bytes:
        """Read a photograph, or as much of it as tells that it is too large.

        Raises:
            OSError: the file cannot be read.
        """
        return read_image(path, self.config.max_image_bytes)

    def probabilities(self, path: Path, mode: TTA) -> NDArray[np.float32]:
        """Return a photograph's averaged probabilities before any temperature: one a class.

        Raises:
            RequestError, OSError: as `passed` and `read` do.
        """
        return self.passed(self.read(path), mode).probabilities

    def classify(self, path: Path, modes: Iterable[TTA]) -> dict[TTA, NDArray[np.floating[Any]]]:
        """Return the probabilities of a photograph's answer in each mode, one a class.

        Raises:
            RequestError, OSError: as `probabilities` does.
        """
        temperatures, activation = self.metadata.temperatures, self.metadata.activation
        return {
            mode: temper(self.probabilities(path, mode), temperatures.get(mode, 1), activation)
            for mode in modes
        }


@dataclass(frozen=True)
class LeftOut:
    """A photograph that gets no answer.

    Attributes:
        path: of the photograph.
        code: of the error that a client gets.
        message: of the same.
    """

    path: Path
    code: str
    message: str


@dataclass(frozen=True)
class Gathered(Generic[Truth]):
    """The photographs that a command measures a model on.

    Attributes:
        photographs: with their class index, or, for a multi-label model, all of their labels'.
        left: those that a worker refuses.
        notes: what a person has to know about their labels.
    """

    photographs: list[tuple[Path, Truth]]
    left: list[LeftOut]
    notes: list[str]


def gather(
    args: argparse.Namespace,
    categories: Sequence[str],
    config: HandlerConfig,
    count: int | None = None,
) -> Gathered[int]:
    """Find a command's photographs, and tell on standard error what is left out.

    Args:
        args: with `folder` and `index_in_name`; see `quality.labelled.read`.
        categories: the model's labels.
        config: the limits of a worker. What it refuses is found by decoding all.
        count: the largest number of photographs; None for all.

    Raises:
        ValueError, OSError: as `quality.labelled.read`; or no photograph can be decoded.
    """
    given = labelled.read(args.folder, categories, args.index_in_name, count)
    for note in given.notes:
        print(note, file=sys.stderr)
    return _without_refused(given.photographs, given.notes, config)


def gather_multi_label(
    args: argparse.Namespace,
    categories: Sequence[str],
    config: HandlerConfig,
    count: int | None = None,
) -> Gathered[tuple[int, ...]]:
    """Find the photographs of a multi-label model; see `gather`.

    Raises:
        ValueError, OSError: as `quality.labelled.read_multi_label`; or no photograph can be
            decoded.
    """
    if args.index_in_name:
        raise ValueError("A multi-label model takes labels, not --index-in-name.")
    given = labelled.read_multi_label(args.folder, categories, count)
    return _without_refused(given, [], config)


def _without_refused(
    photographs: Sequence[tuple[Path, Truth]], notes: list[str], config: HandlerConfig
) -> Gathered[Truth]:
    """Leave out photographs that a worker refuses, and tell which on standard error.

    Raises:
        ValueError: no photograph can be decoded.
    """

    def fault(path: Path) -> LeftOut | None:
        try:
            data = read_image(path, config.max_image_bytes)
            decode(open_image(data, config), Transforms(), "exact", config.max_image_pixels)
        except RequestError as error:
            return LeftOut(path, error.code, error.message)
        except (OSError, ValueError) as error:
            return LeftOut(path, **unreadable(error)["error"])
        return None

    with ThreadPoolExecutor(THREADS) as pool:
        faults = list(pool.map(fault, (path for path, _ in photographs)))
    kept = [found for found, out in zip(photographs, faults, strict=True) if out is None]
    left = [out for out in faults if out is not None]
    tell_left_out(left, len(kept))
    return Gathered(kept, left, notes)


def tell_left_out(left: Sequence[LeftOut], kept: int) -> None:
    """Tell on standard error which photographs get no answer.

    Raises:
        ValueError: none is kept.
    """
    for code, number in Counter(out.code for out in left).items():
        first = next(out for out in left if out.code == code)
        print(f"Left out, {code}: {number}, such as {first.path}: {first.message}", file=sys.stderr)
    if not kept:
        raise ValueError("No photograph is left.")


@dataclass(frozen=True)
class Archived(Loaded):
    """An archive that is ready to classify, with its own configuration.

    Attributes:
        name: its model's name in the server.
        version: its version.
        directory: where it is unpacked.
    """

    name: str
    version: str
    directory: Path

    def __str__(self) -> str:
        """Return one line for people."""
        config = self.config
        ran = f"{config.runtime} {self.runtime.precision}, {config.decode} decode"
        return f"{self.name} {self.version} ({self.metadata.architecture}, {ran})"


@contextmanager
def opened(archive: Path) -> Iterator[Archived]:
    """Unpack an archive and load it as a worker does.

    Raises:
        FileNotFoundError: there is no such file.
        HashError: the archive was changed since it was built.
        ArchiveError: the file is no archive of this project.
    """
    with unpacked(archive) as one:
        runtime = runtimes.load(
            one.directory, one.metadata, one.config.handler, one.gpu_id, THREADS
        )
        yield Archived(
            *(runtime, one.metadata, one.config.handler),
            *(one.name, one.version, one.directory),
        )


def prepare(
    name: str, config: HandlerConfig, calibration: Sequence[Path], directory: Path
) -> tuple[Runtime, Metadata]:
    """Convert and load one variant of a model with its pretrained weights."""
    # They import PyTorch, which those that measure an archive do without.
    from visionserve.models import IMAGENET_CATEGORIES
    from visionserve_tools.archive import convert

    directory.mkdir()
    metadata = convert.convert(
        name, resolve(name), IMAGENET_CATEGORIES, config, calibration, directory
    )
    return runtimes.load(directory, metadata, config, None, THREADS), metadata


def load_variants(
    name: str, variants: Sequence[str], calibration: Sequence[Path], scratch: Path
) -> dict[str, Loaded]:
    """Load variants of a model, converting once for each runtime and precision.

    The files stay in the scratch folder, because explanations read them later.
    """
    models: dict[tuple[Engine, Wanted], tuple[Runtime, Metadata]] = {}
    for variant in variants:
        config = VARIANTS[variant]
        key = config.runtime, config.precision
        if key not in models:
            print(f"Converting {name} to {variant}", file=sys.stderr)
            models[key] = prepare(name, config, calibration, scratch / "-".join(key))
    return {
        variant: Loaded(*models[config.runtime, config.precision], config)
        for variant, config in VARIANTS.items()
        if variant in variants
    }
