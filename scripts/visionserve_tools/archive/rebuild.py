"""Make an archive again from the recipe in its record."""

import sys
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from visionserve.config import Strict
from visionserve_tools import paths
from visionserve_tools.archive.calibrated import Fitted
from visionserve_tools.archive.hashes import HashError, read_record, sha256_of
from visionserve_tools.archive.recipe import Recipe, build, hash_of
from visionserve_tools.archive.weights import WeightsError


class MadeOf(Strict):
    """What a record keeps of how its archive was made; `archive.recipe.made_of` writes it.

    Attributes:
        recipe: the recipe; relative paths start in this project's folder.
        files: the SHA-256 in hex of each of its files and folders, by what it is.
        fitted: what was packed after the build.
        model: SHA-256 in hex over what the model was made of; see `archive.converted`.
    """

    recipe: Recipe
    files: dict[str, str]
    fitted: Fitted | None
    model: str = ""


def rebuild(
    archive: Path, changed: bool = False, mirror: str | None = None, force: bool = False
) -> Path:
    """Make an archive again, with today's builder and handler, for this machine's processor.

    Its name, version and file name stay, and so does what `visionserve calibrate` packed, unless
    the weights are others now.

    Args:
        archive: the archive, which may be gone, with its record beside it.
        changed: whether files may have changed since; each is named on standard error then.
        mirror: see `archive.weights.resolve`.
        force: see `archive.recipe.build`.

    Raises:
        HashError: there is no record, or no recipe in it.
        ValueError: a file is missing, or has changed without being allowed to; or as `build`.
        WeightsError, InstallError, OSError: as `build`.
    """
    made_of = _read(archive)
    recipe = made_of.recipe.at(lambda path: paths.ROOT / path)
    if recipe.archive != archive.name:
        recipe = replace(recipe, file=archive.stem)
    changes, missing = {}, []
    for what, path in recipe.files().items():
        try:
            if hash_of(what, path) != made_of.files.get(what):
                changes[what] = f"{what.replace('_', ' ')} {path} changed"
        except (OSError, ValueError, WeightsError) as error:
            missing.append(str(error).rstrip("."))
    kept = read_record(archive)
    if archive.exists() and kept and sha256_of(archive) != kept["sha256"]:
        changes["archive"] = "the archive itself changed"
    told = f"{archive}: since it was built, {', '.join(changes.values())}."
    if missing:
        there = f" {told}" if changes else ""
        raise ValueError(f"{archive} cannot be made again: {'; '.join(missing)}.{there}")
    if changes and not changed:
        raise ValueError(f"{told} --changed builds it of what there is now.")
    if changes:
        print(told, file=sys.stderr)
    carried = made_of.fitted
    if carried and changes.keys() & {"weights", "groups", "temperatures", "thresholds"}:
        print(f"{archive}: loses its temperatures; visionserve calibrate.", file=sys.stderr)
        carried = None
    return build(recipe, archive.parent, mirror, carried=carried, force=force)


def _read(archive: Path) -> MadeOf:
    """Read the recipe in an archive's record.

    Raises:
        HashError: there is none that can be read.
    """
    file = archive.with_suffix(".json")
    if (kept := read_record(archive)) is None:
        raise HashError(f"{file} is missing: copy it from where {archive.name} was built.")
    if kept["made_of"] is None:
        raise HashError(
            f"{file}: an earlier release wrote it, without a recipe. Use visionserve build; or "
            f"visionserve repack {archive.stem}, for today's handler around the same model."
        )
    try:
        return MadeOf.model_validate(kept["made_of"])
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        raise HashError(
            f"{file}: holds no recipe of this release ({place}: {fault['msg']})."
        ) from None
