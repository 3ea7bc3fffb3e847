"""SHA-256 of files, and the record that is kept of an archive's."""

import hashlib
import json
from pathlib import Path


class HashError(Exception):
    """An archive is not the one that was recorded."""


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record(archive: Path, ingredients: str) -> None:
    """Keep the hashes of an archive and of what it was made of beside it, in `NAME.json`."""
    kept = {"sha256": sha256_of(archive), "ingredients": ingredients}
    written = archive.with_suffix(".json.part")
    written.write_text(json.dumps(kept), encoding="utf-8")
    written.replace(archive.with_suffix(".json"))


def is_recorded(archive: Path, ingredients: str) -> bool:
    """Tell whether an archive is there, unchanged, and made of these ingredients."""
    kept = _read(archive)
    return (
        kept is not None
        and kept["ingredients"] == ingredients
        and archive.exists()
        and kept["sha256"] == sha256_of(archive)
    )


def verify(archive: Path) -> None:
    """Compare an archive with its record; one that was built elsewhere has none.

    Raises:
        HashError: it was changed since it was built.
    """
    kept = _read(archive)
    if kept is not None and archive.exists() and kept["sha256"] != sha256_of(archive):
        raise HashError(f"{archive}: changed since it was built; build it again.")


def _read(archive: Path) -> dict[str, str] | None:
    path = archive.with_suffix(".json")
    if not path.exists():
        return None
    kept: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return kept
