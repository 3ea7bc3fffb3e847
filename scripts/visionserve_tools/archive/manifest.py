"""Read what an archive's manifest, configuration and record say, without unpacking it."""

import json
import zipfile
import zlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from visionserve import metadata
from visionserve.config import ModelConfig
from visionserve_tools.archive.hashes import read_record, sha256_of

MANIFEST = "MAR-INF/MANIFEST.json"
CREATED = "%d/%m/%Y %H:%M:%S"
# What zipfile, json and yaml raise for files that are not, or not wholly, what they should be.
FAULTS = (
    *(OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError),
    *(ValueError, KeyError, TypeError, yaml.YAMLError),
)


class ArchiveError(Exception):
    """No archive has the given name, or a file is not an archive."""


@dataclass(frozen=True)
class Archive:
    """An archive of a store.

    Attributes:
        file: its file name.
        model: its model's name in the server.
        version: its version.
        sha256: its SHA-256 in hex, from the record, or from the file if there is no record.
    """

    file: str
    model: str
    version: str
    sha256: str

    @classmethod
    def read(cls, path: Path) -> "Archive":
        """Read an archive's manifest and record.

        Raises:
            ArchiveError: the file is not a model archive.
        """
        try:
            with _opened(path) as archive:
                model = _model(archive)
            kept = read_record(path)
            digest = kept["sha256"] if kept else sha256_of(path)
            return cls(path.name, model["modelName"], str(model["modelVersion"]), digest)
        except FAULTS as error:
            raise ArchiveError(f"{path}: is no model archive ({_line(error)}).") from None


def read_name(path: Path) -> tuple[str, str]:
    """Read the name and version that an archive's model has in the server.

    Raises:
        ArchiveError: the file is not a model archive.
    """
    try:
        with _opened(path) as archive:
            model = _model(archive)
            return model["modelName"], str(model["modelVersion"])
    except FAULTS as error:
        raise ArchiveError(f"{path}: is no model archive ({_line(error)}).") from None


def read_age(path: Path) -> timedelta | None:
    """Read how long ago an archive's model was built; None if the archive does not tell.

    The archiver writes the time of its own clock, without a zone, so that an archive from elsewhere
    may be hours off.
    """
    try:
        with _opened(path) as archive:
            built = json.loads(archive.read(MANIFEST))["createdOn"]
        return max(datetime.now() - datetime.strptime(built, CREATED), timedelta())
    except FAULTS:
        return None


def read_config(path: Path) -> ModelConfig:
    """Read an archive's configuration.

    Raises:
        ArchiveError: the file is not a model archive, or its configuration cannot be used.
    """
    try:
        with _opened(path) as archive:
            file = _model(archive)["configFile"]
            return ModelConfig.model_validate(yaml.safe_load(archive.read(file)))
    except FAULTS as error:
        raise ArchiveError(f"{path}: is no model archive ({_line(error)}).") from None


def has_groups(path: Path) -> bool:
    """Tell whether a file is an archive whose classes are groups of its network's classes."""
    try:
        with _opened(path) as archive:
            return bool(json.loads(archive.read(metadata.FILE))["groups"])
    except FAULTS:
        return False


def _opened(path: Path) -> zipfile.ZipFile:
    if path.exists() and not path.is_file():  # A pipe would be waited for.
        raise OSError("not a regular file")
    return zipfile.ZipFile(path)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _model(archive: zipfile.ZipFile) -> dict[str, Any]:
    model: dict[str, Any] = json.loads(archive.read(MANIFEST))["model"]
    return model
