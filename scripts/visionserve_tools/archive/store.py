"""Find or build the archives that a server is started with."""

import glob
import sys
from collections.abc import Sequence
from pathlib import Path

from visionserve_tools import lock, paths
from visionserve_tools.archive.hashes import HashError, admit, read_record, write_record
from visionserve_tools.archive.manifest import Archive, ArchiveError, has_groups, read_name
from visionserve_tools.archive.recipe import UnknownModelError, build, grouped, served
from visionserve_tools.archive.weights import FALLBACK, WeightsUnavailableError


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
        ArchiveError: the store has another model or version by that file name.
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
            _keep(store / archive.name, archive)
            admit(archive, store, unrecorded)
        if kept is not None:
            write_record(store / archive.name, kept | {"own": True})
    return archive.stem


def choose(
    names: Sequence[str],
    profile: str,
    store: Path,
    mirror: str | None = None,
    groups: Path | None = None,
) -> list[Archive]:
    """Find or build the archive for each name.

    Each is found as `obtain` does. If a model's weights are unavailable, an archive that was built
    of other ingredients takes its place, or else `FALLBACK`, and standard error says so.

    Args:
        names: names of models that can be built, or of archives in the store, without `.mar`.
        profile: the profile whose configuration a built archive gets.
        store: the folder of archives.
        mirror: see `archive.weights.resolve`.
        groups: a file of groups that become the models' classes. They make another model, by the
            name `archive.recipe.grouped`; its archive may be the user's own, too.

    Raises:
        ArchiveError: there is no archive for a name, or its file is not an archive; or with groups,
            the name is such an archive's.
        WeightsError, InstallError, OSError: an archive cannot be built.
    """
    chosen: dict[str, Archive] = {}
    replaced = []
    for name in dict.fromkeys(name.removesuffix(".mar") for name in names):
        wanted = grouped(name, groups)
        if groups and (path := _own(name, store) or _of_groups(name, store)):
            raise ArchiveError(f"{path} has its classes: give groups to visionserve build.")
        try:
            path = obtain(name, profile, store, mirror, groups)
        except WeightsUnavailableError as error:
            print(error, file=sys.stderr)
            path = store / f"{wanted}.mar"
            if not path.exists():
                path = obtain(FALLBACK, profile, store, groups=groups)
                replaced.append(wanted)
        chosen[path.name] = Archive.read(path)
    if replaced:
        count = f": {len(chosen)} for the {len(names)} asked for" if len(names) > 1 else ""
        print(
            f"Serving {grouped(FALLBACK, groups)} in place of {', '.join(replaced)}{count}.",
            file=sys.stderr,
        )
    return list(chosen.values())


def obtain(
    name: str, profile: str, store: Path, mirror: str | None = None, groups: Path | None = None
) -> Path:
    """Find the archive of a name, or build it if it is a model that can be built.

    The user's own archive is taken as it is, even if it has the name of a model that can be built;
    so is one that was built here with groups, where its name is given without them.
    Where no file is called NAME, the only version NAME-VERSION of that model is taken. A failed
    download is tried again after a day, or when the user runs `visionserve build`.

    Args:
        name: a model or an archive in the store, without `.mar`.
        profile: the profile whose configuration a built archive gets.
        store: the folder of archives.
        mirror: see `archive.weights.resolve`.
        groups: as for `choose`.

    Raises:
        ArchiveError: there is no archive of this name, or there are several versions.
        WeightsUnavailableError: the model's weights cannot be had.
        WeightsError, InstallError, OSError: the archive cannot be built.
    """
    path = _own(grouped(name, groups), store)
    if path or (not groups and (path := _of_groups(name, store))):
        return path
    config = paths.profile(profile) / paths.MODEL_CONFIG
    try:
        return build(served(name, config, groups), store, mirror, again=False)
    except UnknownModelError as error:
        raise ArchiveError(f"{store}/{name}.mar is not there, and {error}") from None


def _keep(archive: Path, new: Path) -> None:
    """Refuse to put a new archive in the place of another model or version."""
    if archive.exists():
        old, wanted = read_name(archive), read_name(new)
        if old != wanted:
            raise ArchiveError(
                f"{archive} is {' '.join(old)}, and is not overwritten: rename {new} and its "
                f".json, such as to {'-'.join(wanted)}."
            )


def find(name: str, store: Path) -> Path:
    """Return the archive of a name, which may be gone where its record is there.

    Where no file is called NAME, it is the only version NAME-VERSION of that model.

    Raises:
        ArchiveError: there is none, or several versions.
    """
    path = store / f"{name.removesuffix('.mar')}.mar"
    if path.exists() or path.with_suffix(".json").exists():
        return path
    found = _only(path, _versions(path))
    if found is None:
        there = ", ".join(sorted(other.stem for other in store.glob("*.mar"))) or "none"
        raise ArchiveError(f"{path} is not there; of archives there are: {there}.")
    return found


def named(given: str, store: Path) -> Path:
    """Return the archive that is a file, or that a store has by a name; see `find`.

    Raises:
        ArchiveError: there is none of this name.
    """
    path = Path(given)
    return path if path.is_file() or path.name != given else find(given, store)


def _own(name: str, store: Path) -> Path | None:
    """Return the user's own archive of a name, if there is one.

    Raises:
        ArchiveError: only versions of it are there, and more than one.
    """
    path = store / f"{name}.mar"
    if path.exists():
        return path if _is_own(path) else None
    return _only(path, [other for other in _versions(path) if _is_own(other)])


def _versions(path: Path) -> list[Path]:
    """Return the archives NAME-VERSION of the model whose archive NAME is not there."""
    others = sorted(path.parent.glob(f"{glob.escape(path.stem)}-*.mar"))
    return [other for other in others if read_name(other)[0] == path.stem]


def _only(path: Path, versions: Sequence[Path]) -> Path | None:
    if len(versions) > 1:
        several = ", ".join(other.stem for other in versions)
        raise ArchiveError(f"{path} is not there; name a version: {several}.")
    return versions[0] if versions else None


def _of_groups(name: str, store: Path) -> Path | None:
    """Return the archive that `choose` built with groups under a name of its own, if any."""
    path = store / f"{name}.mar"
    return path if has_groups(path) else None


def _is_own(archive: Path) -> bool:
    kept = read_record(archive)
    return archive.exists() and (kept is None or kept["own"])
