"""Read an archive's model name, version and SHA-256 from its manifest and record."""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

from scripts.archive.hashes import read_record, sha256_of


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
            with zipfile.ZipFile(path) as archive:
                model = json.loads(archive.read("MAR-INF/MANIFEST.json"))["model"]
            kept = read_record(path)
            digest = kept["sha256"] if kept else sha256_of(path)
            return cls(path.name, model["modelName"], str(model["modelVersion"]), digest)
        except (OSError, zipfile.BadZipFile, ValueError, KeyError, TypeError) as error:
            raise ArchiveError(f"{path}: is no model archive ({error}).") from None
