"""What an archive's manifest and record say of it."""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

from scripts.archive.hashes import read_record, sha256_of


class ArchiveError(Exception):
    """A name stands for no archive, or a file is none."""


@dataclass(frozen=True)
class Archive:
    """An archive of a store.

    Attributes:
        file: its file name.
        model: its model's name in the server.
        version: its version.
        sha256: in hex, as recorded, or of the file where no record is.
    """

    file: str
    model: str
    version: str
    sha256: str

    @classmethod
    def read(cls, path: Path) -> "Archive":
        """Read an archive's manifest and record.

        Raises:
            ArchiveError: the file is no model archive.
        """
        try:
            with zipfile.ZipFile(path) as archive:
                model = json.loads(archive.read("MAR-INF/MANIFEST.json"))["model"]
            kept = read_record(path)
            digest = kept["sha256"] if kept else sha256_of(path)
            return cls(path.name, model["modelName"], str(model["modelVersion"]), digest)
        except (OSError, zipfile.BadZipFile, ValueError, KeyError, TypeError) as error:
            raise ArchiveError(f"{path}: is no model archive ({error}).") from None
