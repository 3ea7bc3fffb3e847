"""Read photographs as the server does, in a process for each of several cores."""

import hashlib
import multiprocessing
import os
from collections.abc import Sequence
from itertools import starmap
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from visionserve import tta
from visionserve.metadata import Transforms
from visionserve.preprocessing import resize
from visionserve_tools import photos
from visionserve_tools.training.interrupts import held_back
from visionserve_tools.training.near_duplicates import perceptual_hashes


class Damage(NamedTuple):
    """A corruption of `quality.corruptions`.

    Attributes:
        kind: a key of `CORRUPTIONS`.
        severity: 0 is mild, 1 is severe.
        seed: the same one damages a photograph in the same way.
    """

    kind: str
    severity: int
    seed: int


class Seen(NamedTuple):
    """What a photograph is and what the network makes of it.

    Attributes:
        sha256: of the file, in hex.
        hashes: the photograph's perceptual hash, and that of its mirror image.
        output: float32 of shape (outputs,), of the centre crop; None where there is no network.
    """

    sha256: str
    hashes: tuple[int, int]
    output: NDArray[np.float32] | None


Task = tuple[Path, Damage | None]


class Reader:
    """The work of one process.

    Args:
        transforms: the preprocessing.
        network: an OpenVINO IR from pixels to outputs, or None.
    """

    def __init__(self, transforms: Transforms, network: Path | None) -> None:
        self._transforms = transforms
        self._network = None
        if network:
            from visionserve.runtimes.openvino import OpenVINORuntime

            self._network = OpenVINORuntime(network, transforms.crop, threads=1)

    def read(self, path: Path, damage: Damage | None) -> Seen | str:
        """Read a photograph; return why it cannot be read, if that is so."""
        try:
            data = path.read_bytes()
            image = photos.read(path)
        except (OSError, ValueError) as error:
            return str(error).removeprefix(f"{path}: ")
        if damage:
            # It imports PyTorch, which takes seconds and memory.
            from visionserve_tools.quality.corruptions import CORRUPTIONS, corrupt, scaled

            transform = CORRUPTIONS[damage.kind][damage.severity]
            image = corrupt(scaled(image), transform, damage.seed)
        pixels = resize(photos.in_channels(image, self._transforms.channels), self._transforms)
        crop = tta.views(pixels, "none", self._transforms.crop)
        output = self._network(crop)[0] if self._network else None
        return Seen(hashlib.sha256(data).hexdigest(), perceptual_hashes(pixels), output)


reader: Reader


def _start(transforms: Transforms, network: Path | None) -> None:
    global reader
    # A process for each core needs no threads; OpenMP reads this when PyTorch is imported.
    os.environ["OMP_NUM_THREADS"] = "1"
    reader = Reader(transforms, network)


def _read(task: Task) -> Seen | str:
    return reader.read(*task)


def read(
    tasks: Sequence[Task], transforms: Transforms, network: Path | None, about: str
) -> list[Seen | str]:
    """Read photographs, with a bar of progress.

    Args:
        tasks: files, each with the damage that it gets, if any.
        transforms: the preprocessing.
        network: an OpenVINO IR from pixels to outputs, or None.
        about: what the bar says.

    Returns:
        What is seen in each, in order, or why it cannot be read.
    """
    cores = len(os.sched_getaffinity(0))
    if cores == 1:  # Another process would only import all of this again.
        seen = starmap(Reader(transforms, network).read, tasks)
        return list(tqdm(seen, about, len(tasks), smoothing=0))
    spawn = multiprocessing.get_context("spawn")
    with held_back():
        pool = spawn.Pool(cores, _start, (transforms, network))
    with pool:
        return list(tqdm(pool.imap(_read, tasks), about, len(tasks), smoothing=0))
