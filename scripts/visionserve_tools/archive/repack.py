"""Put today's handler and page around the model of an archive, without PyTorch."""

import hashlib
import zipfile
from pathlib import Path

from pydantic import ValidationError

from visionserve import metadata
from visionserve.metadata import Metadata
from visionserve_tools import lock
from visionserve_tools.archive import handler
from visionserve_tools.archive.manifest import ArchiveError, read_config
from visionserve_tools.archive.rewrite import check_recorded, rewrite


def repack(archive: Path) -> list[str]:
    """Replace the handler's files of an archive by today's, and write its record.

    All other files stay, to the byte. The archive counts as the user's own from then on, so that
    `make serve` takes it as it is.

    Returns:
        The names of the files that were other ones; none if the handler was today's already.

    Raises:
        FileNotFoundError, HashError: as `archive.rewrite.check_recorded`.
        ArchiveError: today's handler cannot read the archive's metadata or configuration, or the
            file is no archive of this project.
        OSError: the disk is full, say; the archive is as it was.
    """
    with lock.alone(archive.parent):
        kept = check_recorded(archive)
        runtime = read_config(archive).handler.runtime
        _check(archive)
        if differing := handler.differing(archive):
            content = {name: path.read_bytes() for name, path in handler.files(runtime).items()}
            digest = hashlib.sha256(kept["ingredients"].encode())
            for data in content.values():
                digest.update(data)
            rewrite(archive, content, digest.hexdigest(), kept["made_of"], left_out=differing)
        return differing


def _check(archive: Path) -> None:
    """Refuse an archive whose metadata today's handler does not know.

    Raises:
        ArchiveError: it is one.
    """
    with zipfile.ZipFile(archive) as packed:
        if not {metadata.FILE, handler.ENTRY} <= {*packed.namelist()}:
            raise ArchiveError(f"{archive}: is no archive of this project.")
        try:
            Metadata.model_validate_json(packed.read(metadata.FILE))
        except ValidationError as error:
            fault = error.errors()[0]
            place = ".".join(map(str, fault["loc"]))
            raise ArchiveError(
                f"{archive}: today's handler cannot read its {metadata.FILE} ({place}: "
                f"{fault['msg']}); make it again: visionserve rebuild {archive.stem}"
            ) from None
