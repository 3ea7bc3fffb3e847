"""Unpack an archive, to use its model without a server."""

import json
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from visionserve.config import ModelConfig
from visionserve.metadata import Metadata
from visionserve_tools.archive import handler
from visionserve_tools.archive.hashes import admit
from visionserve_tools.archive.manifest import FAULTS, MANIFEST, ArchiveError


@dataclass(frozen=True)
class Unpacked:
    """An archive that is unpacked.

    Attributes:
        name: its model's name in the server.
        version: its version.
        config: its configuration.
        metadata: what it says about its model.
        directory: where its files are.
    """

    name: str
    version: str
    config: ModelConfig
    metadata: Metadata
    directory: Path

    @property
    def gpu_id(self) -> int | None:
        """The CUDA device that the archive is made for; None for a CPU."""
        return 0 if self.config.deviceType == "gpu" else None


@contextmanager
def unpacked(archive: Path) -> Iterator[Unpacked]:
    """Unpack an archive into a folder that is removed at the end.

    If it has another handler than today's, standard error says that today's is used.

    Raises:
        FileNotFoundError: there is no such file.
        HashError: the archive was changed since it was built.
        ArchiveError: the file is no archive of this project.
    """
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / "content"
        admit(archive, Path(scratch), unrecorded=True)
        copy = Path(scratch) / archive.name
        try:
            zipfile.ZipFile(copy).extractall(directory)
            manifest = json.loads((directory / MANIFEST).read_bytes())["model"]
            config = ModelConfig.load(directory / manifest["configFile"])
            metadata = Metadata.load(directory)
            name, version = manifest["modelName"], str(manifest["modelVersion"])
        except FAULTS as error:
            reason = " ".join(str(error).split())
            raise ArchiveError(f"{archive}: is no archive of this project ({reason}).") from None
        if any(name.endswith(".py") for name in handler.differing(copy)):
            print(
                f"{archive.name} has another handler; it is measured with today's.", file=sys.stderr
            )
        yield Unpacked(name, version, config, metadata, directory)
