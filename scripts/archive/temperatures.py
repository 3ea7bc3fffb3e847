"""Read the JSON file of what was fitted for a model's weights, and pack it."""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from scripts import lock
from scripts.archive.hashes import HashError, Record, read_record, record, sha256_of
from scripts.kept import check_file, read_file
from visionserve import metadata
from visionserve.config import TTA, Strict
from visionserve.metadata import Temperature


class Fitted(Strict):
    """The content of the file: what `visionserve calibrate` fits on photographs of the classes.

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

    def put_into(self, described: Mapping[str, Any]) -> dict[str, Any]:
        """Return an archive's `metadata.json` with it. Other modes keep their temperatures."""
        temperatures = described.get("temperatures", {}) | self.temperatures
        return {**described, "temperatures": temperatures}


def read(path: Path, architecture: str, weights_sha256: str) -> Fitted:
    """Read what was fitted for a model.

    Raises:
        ValueError: the file has another form, or is for another model or other weights.
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
    return found


def check_recorded(archive: Path) -> Record:
    """Refuse to change an archive that is not known to be what was built.

    Raises:
        FileNotFoundError: there is no such archive.
        HashError: the archive has no record, or differs from it.
    """
    if not archive.is_file():
        raise FileNotFoundError(f"{archive}: no such archive.")
    kept = read_record(archive)
    if kept is None:
        file = archive.with_suffix(".json")
        raise HashError(f"{file} is missing: copy it from where {archive.name} was built.")
    if kept["sha256"] != sha256_of(archive):
        raise HashError(f"{archive}: changed since it was built; build it again.")
    return kept


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
        part = archive.with_suffix(".mar.new")
        check_file(part)
        try:
            with zipfile.ZipFile(archive) as old, zipfile.ZipFile(part, "w") as new:
                for entry in old.infolist():
                    content = old.read(entry)
                    if entry.filename == metadata.FILE:
                        content = json.dumps(fitted.put_into(json.loads(content))).encode()
                    new.writestr(entry, content, entry.compress_type)
            shutil.copymode(archive, part)
            made_of = f"{kept['ingredients']} {fitted.model_dump_json()}"
            record(archive, hashlib.sha256(made_of.encode()).hexdigest(), own=True, built=part)
        finally:
            part.unlink(missing_ok=True)
