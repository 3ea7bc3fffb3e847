"""Read the JSON file of what was fitted for a model's weights, and pack it."""

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from scripts import lock
from scripts.archive.rewrite import check_recorded, rewrite
from scripts.kept import read_file
from visionserve import metadata
from visionserve.config import TTA, Strict
from visionserve.metadata import Probability, Temperature


class Fitted(Strict):
    """The content of the file: what `visionserve calibrate` fits on photographs of the classes.

    Attributes:
        architecture: a key of `visionserve.models.MODELS`.
        weights_sha256: SHA-256 of the file of weights, in hex.
        groups_sha256: SHA-256 in hex of the groups that the classes are, see `hash_groups`; empty
            without groups.
        about: a text that says what the temperatures were fitted on.
        temperatures: the temperature of each TTA mode.
        plausible: the probability of each TTA mode below which a name is not worth showing.
    """

    architecture: str
    weights_sha256: str
    groups_sha256: str = ""
    about: str
    temperatures: dict[TTA, Temperature]
    plausible: dict[TTA, Probability] = Field(default_factory=dict)

    def put_into(self, described: Mapping[str, Any]) -> dict[str, Any]:
        """Return an archive's `metadata.json` with it. Other modes keep what they have."""
        temperatures = described.get("temperatures", {}) | self.temperatures
        plausible = described.get("plausible", {}) | self.plausible
        return {**described, "temperatures": temperatures, "plausible": plausible}


def hash_groups(groups: Sequence[Sequence[int]]) -> str:
    """Return the SHA-256 in hex of an archive's groups, or nothing if it has none."""
    return hashlib.sha256(json.dumps(groups).encode()).hexdigest() if groups else ""


def read(
    path: Path, architecture: str, weights_sha256: str, groups: Sequence[Sequence[int]] = ()
) -> Fitted:
    """Read what was fitted for a model.

    Raises:
        ValueError: the file has another form, or is for another model, other weights or groups.
        OSError: the file cannot be read.
    """
    try:
        found = Fitted.model_validate_json(read_file(path))
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
    if found.groups_sha256 != hash_groups(groups):
        raise ValueError(
            f"{path}: fitted for other groups of classes, or for none; run visionserve calibrate."
        )
    return found


def pack(archive: Path, fitted: Fitted) -> None:
    """Write an archive again with what was fitted, and its record with it.

    All else in it stays. It counts as the user's own from
    then on, so that `make serve` takes it as it is.

    Raises:
        FileNotFoundError, HashError: as `check_recorded`.
        OSError: the disk is full, say; the archive is as it was.
    """
    with lock.alone(archive.parent):
        kept = check_recorded(archive)
        with zipfile.ZipFile(archive) as old:
            described = fitted.put_into(json.loads(old.read(metadata.FILE)))
        # With what was fitted before, in other modes.
        together = {name: described[name] for name in Fitted.model_fields if name in described}
        fitted = Fitted.model_validate(fitted.model_dump() | together)
        rewrite(
            archive,
            {metadata.FILE: json.dumps(described).encode()},
            with_fitted(kept["ingredients"], fitted),
            kept["made_of"] and kept["made_of"] | {"fitted": fitted.model_dump()},
        )


def with_fitted(ingredients: str, fitted: Fitted | None) -> str:
    """Return the SHA-256 in hex over an archive's ingredients and what was packed after them."""
    if fitted is None:
        return ingredients
    return hashlib.sha256(f"{ingredients} {fitted.model_dump_json()}".encode()).hexdigest()
