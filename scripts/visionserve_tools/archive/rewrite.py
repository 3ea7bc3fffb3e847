"""Write an archive that was built here again, with other files in it."""

import shutil
import zipfile
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from visionserve_tools.archive.hashes import HashError, Record, read_record, record, sha256_of
from visionserve_tools.archive.package import LEVEL
from visionserve_tools.kept import check_file


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


def rewrite(
    archive: Path,
    content: Mapping[str, bytes],
    ingredients: str,
    made_of: dict[str, Any] | None,
    left_out: Container[str] = (),
) -> None:
    """Write an archive again, and its record with it, as the user's own.

    Args:
        archive: the archive; the caller holds its store, and has checked it.
        content: the files that are other or new, by name. All others stay, to the byte.
        ingredients: SHA-256 in hex over everything that the archive is made of now.
        made_of: see `archive.hashes.Record`.
        left_out: the names of files that stay out.

    Raises:
        OSError: the disk is full, say; the archive is as it was.
    """
    part = archive.with_suffix(".mar.new")
    check_file(part)
    try:
        with zipfile.ZipFile(archive) as old, zipfile.ZipFile(part, "w") as new:
            for entry in old.infolist():
                if entry.filename not in content and entry.filename not in left_out:
                    new.writestr(entry, old.read(entry), entry.compress_type, LEVEL)
            for name, data in content.items():
                new.writestr(name, data, zipfile.ZIP_DEFLATED, LEVEL)
        shutil.copymode(archive, part)
        record(archive, ingredients, own=True, built=part, made_of=made_of)
    finally:
        part.unlink(missing_ok=True)
