"""Read the JSON file of temperatures fitted for a model's weights, which the builder packs."""

from pathlib import Path

from pydantic import ValidationError

from visionserve.config import TTA, Strict
from visionserve.metadata import Temperature


class Temperatures(Strict):
    """The content of the file.

    Attributes:
        architecture: a key of `visionserve.models.MODELS`.
        weights_sha256: SHA-256 of the file of weights, in hex.
        about: a text that says what the temperatures were fitted on.
        temperatures: the temperature of each TTA mode.
    """

    architecture: str
    weights_sha256: str
    about: str
    temperatures: dict[TTA, Temperature]


def read(path: Path, architecture: str, weights_sha256: str) -> dict[TTA, Temperature]:
    """Read the temperatures for a model.

    Raises:
        ValueError: the file has another form, or is for another model or other weights.
        OSError: the file cannot be read.
    """
    try:
        found = Temperatures.model_validate_json(path.read_bytes())
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        raise ValueError(f"{path}: no file of temperatures: {place}: {fault['msg']}.") from None
    if (found.architecture, found.weights_sha256) != (architecture, weights_sha256):
        raise ValueError(
            f"{path}: fitted for {found.architecture} with weights {found.weights_sha256[:8]}..., "
            f"not for {architecture} with weights {weights_sha256[:8]}...; "
            "run visionserve calibrate."
        )
    return found.temperatures
