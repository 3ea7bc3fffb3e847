"""SHA-256 of files, the record that is kept of an archive's, and copies that are checked."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import TypedDict


class HashError(Exception):
    """An archive is not the one that was recorded."""


class Record(TypedDict):
    """What `NAME.json` keeps of `NAME.mar`.

    Attributes:
        sha256: of the archive, in hex.
        ingredients: SHA-256 in hex of all that it was made of.
        own: whether the user chose its weights, labels or the like.
    """

    sha256: str
    ingredients: str
    own: bool


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record(archive: Path, ingredients: str, own: bool = False, built: Path | None = None) -> None:
    """Keep the hashes of an archive and of what it was made of beside it, in `NAME.json`.

    Args:
        archive: the archive.
        ingredients: SHA-256 in hex of what it was made of.
        own: whether the user chose its weights, labels or the like.
        built: where the archive is now; it is moved once its record is there, so that no archive
            is ever without one. None where it is in its place.
    """
    kept = Record(sha256=sha256_of(built or archive), ingredients=ingredients, own=own)
    moved = archive.with_suffix(".mar.part")
    if built:
        shutil.move(built, moved)
    write_record(archive, kept)
    if built:
        moved.replace(archive)


def write_record(archive: Path, kept: Record) -> None:
    """Write an archive's record, at once."""
    written = archive.with_suffix(".json.part")
    written.write_text(json.dumps(kept), encoding="utf-8")
    written.replace(archive.with_suffix(".json"))


def is_recorded(archive: Path, ingredients: str) -> bool:
    """Tell whether an archive is there, unchanged, and made of these ingredients."""
    kept = read_record(archive)
    return (
        kept is not None
        and kept["ingredients"] == ingredients
        and archive.exists()
        and kept["sha256"] == sha256_of(archive)
    )


def admit(archive: Path, store: Path, unrecorded: bool = False) -> str:
    """Copy an archive into a private folder, and compare the very bytes there with the record.

    Args:
        archive: the archive, its record beside it.
        store: a folder that no other user can write to.
        unrecorded: whether an archive without a record, built elsewhere, is taken too.

    Returns:
        The archive's SHA-256 in hex.

    Raises:
        HashError: it was changed since it was built, or has no record.
        OSError: it cannot be read.
    """
    if not archive.is_file():
        raise FileNotFoundError(f"{archive}: no such archive.")
    kept = read_record(archive)
    if kept is None and not unrecorded:
        raise HashError(
            f"{archive}: was not built here, as no {archive.stem}.json is beside it. "
            "Build it by visionserve build, or take it by --allow-unrecorded."
        )
    copy = store / f"{archive.name}.part"
    copy.touch(mode=0o600)
    shutil.copyfile(archive, copy)
    digest = sha256_of(copy)
    if kept is not None and kept["sha256"] != digest:
        copy.unlink()
        raise HashError(f"{archive}: changed since it was built; build it again.")
    copy.replace(store / archive.name)
    return digest


def read_record(archive: Path) -> Record | None:
    """Return an archive's record; None where it has none that can be read."""
    try:
        kept = json.loads(archive.with_suffix(".json").read_bytes())
        return Record(
            sha256=str(kept["sha256"]),
            ingredients=str(kept["ingredients"]),
            own=bool(kept.get("own", False)),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
