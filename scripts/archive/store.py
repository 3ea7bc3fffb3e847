"""Find or build the archives that a server is started with."""

import sys
from collections.abc import Sequence
from pathlib import Path

from scripts import lock, paths
from scripts.archive.hashes import HashError, admit, read_record, write_record
from scripts.archive.manifest import Archive, ArchiveError
from scripts.archive.recipe import Recipe, UnknownModelError, build
from scripts.archive.weights import FALLBACK, WeightsUnavailableError


def adopt(archive: Path, store: Path, unrecorded: bool = False) -> str:
    """Copy an archive and its record into the store, unless they are there already.

    Args:
        archive: an archive that was built elsewhere.
        store: the folder of archives.
        unrecorded: whether the archive may lack its record.

    Returns:
        The archive's file name without `.mar`.

    Raises:
        HashError: the archive has no record, or differs from it.
        OSError: the archive cannot be read.
    """
    if not archive.is_file():
        raise FileNotFoundError(f"{archive}: no such archive.")
    kept = read_record(archive)
    if kept is None and not unrecorded:
        file = archive.with_suffix(".json")
        raise HashError(f"{file} is missing: copy it from where {archive.name} was built.")
    store.mkdir(parents=True, exist_ok=True)
    with lock.alone(store):
        if archive.resolve() != (store / archive.name).resolve():
            admit(archive, store, unrecorded)
        if kept is not None:
            write_record(store / archive.name, kept | {"own": True})
    return archive.stem


def choose(
    names: Sequence[str], profile: str, store: Path, mirror: str | None = None
) -> list[Archive]:
    """Find or build the archive for each name.

    The user's own archive is taken as it is, even if it has the name of a model that can be built.
    If a model's weights are unavailable, `FALLBACK` takes its place, and standard error says so.

    Args:
        names: names of models that can be built, or of archives in the store, without `.mar`.
        profile: the profile whose configuration a built archive gets.
        store: the folder of archives.
        mirror: see `scripts.archive.weights.resolve`.

    Raises:
        ArchiveError: there is no archive for a name, or its file is not an archive.
        WeightsError, InstallError, OSError: an archive cannot be built.
    """
    chosen: dict[str, Archive] = {}
    replaced = []
    for name in dict.fromkeys(name.removesuffix(".mar") for name in names):
        path = store / f"{name}.mar"
        if not _is_own(path):
            path = _build(name, profile, store, mirror)
            replaced += [name] if path.stem != name else []
        chosen[path.name] = Archive.read(path)
    if replaced:
        count = f": {len(chosen)} for the {len(names)} asked for" if len(names) > 1 else ""
        print(f"Serving {FALLBACK} in place of {', '.join(replaced)}{count}.", file=sys.stderr)
    return list(chosen.values())


def _is_own(archive: Path) -> bool:
    kept = read_record(archive)
    return archive.exists() and (kept is None or kept["own"])


def _build(name: str, profile: str, store: Path, mirror: str | None) -> Path:
    """Build a model unless it is built; if its weights are unavailable, build `FALLBACK`.

    A failed download is tried again after a day, or when the user runs `visionserve build`.
    """
    config = paths.CONFIG / profile / "model-config.yaml"
    try:
        return build(Recipe(name, name, "1.0", config), store, mirror, again=False)
    except UnknownModelError as error:
        raise ArchiveError(f"{store}/{name}.mar is not there, and {error}") from None
    except WeightsUnavailableError as error:
        print(error, file=sys.stderr)
        return build(Recipe(FALLBACK, FALLBACK, "1.0", config), store, again=False)
