"""Hash files with SHA-256, record each archive's hashes, and check archives against them."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, TypedDict

from visionserve_tools import lock
from visionserve_tools.kept import check_file, read_json


class HashError(Exception):
    """An archive differs from its record, or has none that can be read."""


class Record(TypedDict):
    """The content of `NAME.json`, the record of the archive `NAME.mar`.

    Attributes:
        sha256: the archive's SHA-256, in hex.
        ingredients: SHA-256 in hex over everything that the archive was made of.
        own: whether the user chose its weights, labels or the like.
        made_of: the recipe, with the SHA-256 of each file; see `archive.rebuild.MadeOf`.
            None of an archive of an earlier release.
    """

    sha256: str
    ingredients: str
    own: bool
    made_of: dict[str, Any] | None


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record(
    archive: Path,
    ingredients: str,
    own: bool = False,
    built: Path | None = None,
    made_of: dict[str, Any] | None = None,
) -> None:
    """Write an archive's record beside it, in `NAME.json`, and move the archive into its place.

    Args:
        archive: the archive's final path.
        ingredients: SHA-256 in hex over everything that it was made of.
        own: whether the user chose its weights, labels or the like.
        built: where the archive is now. It is moved after its record is written, so that an archive
            is never without one. None if it is in its place already.
        made_of: see `Record`.
    """
    digest = sha256_of(built or archive)
    kept = Record(sha256=digest, ingredients=ingredients, own=own, made_of=made_of)
    moved = archive.with_suffix(".mar.part")
    if built:
        check_file(moved)
        shutil.move(built, moved)
    write_record(archive, kept)
    if built:
        moved.replace(archive)


def write_record(archive: Path, kept: Record) -> None:
    """Write an archive's record in one atomic step."""
    with lock.whole(archive.with_suffix(".json")) as file:
        file.write(json.dumps(kept, indent=1, ensure_ascii=False).encode())


def is_recorded(archive: Path, ingredients: str) -> bool:
    """Tell whether an archive exists, is unchanged, and was made of these ingredients."""
    try:
        kept = read_record(archive)
    except HashError:
        return False
    return (
        kept is not None
        and kept["ingredients"] == ingredients
        and archive.is_file()
        and kept["sha256"] == sha256_of(archive)
    )


def admit(archive: Path, store: Path, unrecorded: bool = False) -> str:
    """Copy an archive into a private folder, and compare the copy with the record.

    The copy is what gets hashed, because the original could still change after a check.

    Args:
        archive: the archive, with its record beside it.
        store: a folder that no other user can write to.
        unrecorded: whether an archive without a record, built elsewhere, is accepted too.

    Returns:
        The archive's SHA-256 in hex.

    Raises:
        HashError: the archive was changed since it was built, or has no record.
        OSError: the archive cannot be read.
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
    """Return an archive's record, or None if there is none.

    Raises:
        HashError: there is one that cannot be read, for example as a full disk cut it off.
    """
    file = archive.with_suffix(".json")
    try:
        found = read_json(file)
        return Record(
            sha256=str(found["sha256"]),
            ingredients=str(found["ingredients"]),
            own=bool(found.get("own", False)),
            made_of=found.get("made_of"),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise HashError(
            f"{file}: is no record of an archive. Build {archive.name} again, or copy both from "
            "where it was built."
        ) from None
