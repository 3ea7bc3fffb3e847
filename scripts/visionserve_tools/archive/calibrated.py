"""Read the JSON file of what was fitted for a model's weights, and pack it."""

import base64
import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, TypeAdapter, ValidationError

from visionserve import metadata
from visionserve.config import TTA, Probability, Strict, Wanted
from visionserve.metadata import KNOWN, Familiarity, Numbers, Temperature
from visionserve_tools import lock
from visionserve_tools.archive.rewrite import check_recorded, rewrite
from visionserve_tools.kept import read_file

# What this project has fitted for official weights, a list of `Fitted`.
REGISTRY = Path(__file__).with_name("familiarity.json")


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
        thresholds: of a multi-label model, the threshold of each label.
        familiarity: how unfamiliar pictures are told, if that was fitted.
        known: base64 of the file that its method needs, if that is so.
    """

    architecture: str
    weights_sha256: str
    groups_sha256: str = ""
    about: str
    temperatures: dict[TTA, Temperature]
    plausible: dict[TTA, Probability] = Field(default_factory=dict)
    thresholds: dict[str, Probability] = Field(default_factory=dict)
    familiarity: Familiarity | None = None
    known: str | None = None

    def put_into(self, described: Mapping[str, Any]) -> dict[str, Any]:
        """Return an archive's `metadata.json` with it. Other modes keep what they have.

        Raises:
            ValueError: it was fitted for the other activation, as only a multi-label archive has
                thresholds.
        """
        if self.thresholds and not described.get("thresholds"):
            raise ValueError("Thresholds were fitted, too: give --activation sigmoid.")
        if described.get("thresholds") and not self.thresholds:
            raise ValueError("No thresholds were fitted: run visionserve calibrate.")
        temperatures = described.get("temperatures", {}) | self.temperatures
        plausible = described.get("plausible", {}) | self.plausible
        labels = zip(described["categories"], described.get("thresholds", ()), strict=False)
        thresholds = [self.thresholds.get(label, own) for label, own in labels]
        told = self.familiarity.model_dump() if self.familiarity else described.get("familiarity")
        more = {"plausible": plausible, "thresholds": thresholds, "familiarity": told}
        # An older handler would refuse a key that its archive does not have.
        needed = {key: value for key, value in more.items() if value or key in described}
        return {**described, "temperatures": temperatures, **needed}

    def files(self) -> dict[str, bytes]:
        """Return the files that belong beside `metadata.json`, by name."""
        return {KNOWN: base64.b64decode(self.known)} if self.known else {}

    def suited(self, wanted: Numbers) -> "Fitted":
        """Return it without thresholds that were fitted in other arithmetic than an archive's."""
        if self.familiarity is None or self.familiarity.numbers == wanted:
            return self
        return self.model_copy(update={"familiarity": None, "known": None})


def numbers(precision: Wanted, half_range: bool) -> Numbers:
    """Name the arithmetic of an archive; FP16 scores as FP32 does."""
    if precision != "int8":
        return "float"
    return "int8 of half the range" if half_range else "int8"


def registered(architecture: str, weights_sha256: str, wanted: Numbers) -> Fitted | None:
    """Return what this project has fitted for weights in an archive's arithmetic, if anything."""
    for one in TypeAdapter(list[Fitted]).validate_json(REGISTRY.read_bytes()):
        weights = (one.architecture, one.weights_sha256)
        if weights == (architecture, weights_sha256) and one == one.suited(wanted):
            return one
    return None


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

    All else in it stays. It counts as the user's own from then on, so that `make serve` takes it
    as it is.

    Raises:
        FileNotFoundError, HashError: as `check_recorded`.
        OSError: the disk is full, say; the archive is as it was.
    """
    with lock.alone(archive.parent):
        kept = check_recorded(archive)
        with zipfile.ZipFile(archive) as old:
            described = fitted.put_into(json.loads(old.read(metadata.FILE)))
            if fitted.familiarity is None and KNOWN in old.namelist():
                known = base64.b64encode(old.read(KNOWN)).decode()
                fitted = fitted.model_copy(update={"known": known})
        # With what was fitted before, in other modes.
        together = {name: described[name] for name in Fitted.model_fields if name in described}
        labels = zip(described["categories"], described.get("thresholds", ()), strict=False)
        together["thresholds"] = dict(labels)
        fitted = Fitted.model_validate(fitted.model_dump() | together)
        rewrite(
            archive,
            {metadata.FILE: json.dumps(described).encode(), **fitted.files()},
            with_fitted(kept["ingredients"], fitted),
            kept["made_of"] and kept["made_of"] | {"fitted": fitted.model_dump()},
            left_out=[KNOWN],
        )


def with_fitted(ingredients: str, fitted: Fitted | None) -> str:
    """Return the SHA-256 in hex over an archive's ingredients and what was packed after them."""
    if fitted is None:
        return ingredients
    return hashlib.sha256(f"{ingredients} {fitted.model_dump_json()}".encode()).hexdigest()
