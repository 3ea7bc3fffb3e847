"""Temperatures that were fitted for a model's weights, in a JSON file that the builder packs."""

from pathlib import Path

from pydantic import ValidationError

from visionserve.config import TTA, Strict
from visionserve.metadata import Metadata, Temperature


class Temperatures(Strict):
    """The file.

    Attributes:
        architecture: a name in `visionserve.models.MODELS`.
        weights_sha256: SHA-256 of the file of weights, in hex.
        about: what they were fitted on, for people.
        temperatures: one for each TTA mode.
    """

    architecture: str
    weights_sha256: str
    about: str
    temperatures: dict[TTA, Temperature]


def read(path: Path, metadata: Metadata) -> dict[TTA, Temperature]:
    """Read the temperatures of a model.

    Raises:
        ValueError: the file is another thing, or another model's or other weights'.
        OSError: it cannot be read.
    """
    try:
        found = Temperatures.model_validate_json(path.read_bytes())
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        raise ValueError(f"{path}: no file of temperatures: {place}: {fault['msg']}.") from None
    model = metadata.architecture, metadata.weights_sha256
    if (found.architecture, found.weights_sha256) != model:
        raise ValueError(
            f"{path}: fitted for {found.architecture} with weights {found.weights_sha256[:8]}..., "
            f"not for {model[0]} with weights {model[1][:8]}...; run visionserve calibrate."
        )
    return found.temperatures
