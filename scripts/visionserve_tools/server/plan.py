"""What a server is to serve: what is named, or what was served last."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from visionserve_tools import advice
from visionserve_tools.archive.manifest import Archive, ArchiveError
from visionserve_tools.archive.store import choose
from visionserve_tools.archive.weights import FALLBACK
from visionserve_tools.server import snapshots
from visionserve_tools.server.snapshots import Models, each
from visionserve_tools.server.started import Started
from visionserve_tools.server.torchserve import TorchServe

DEFAULT = "resnet18"


@dataclass(frozen=True)
class Plan:
    """What a server is to serve.

    Attributes:
        models: the versions, as a snapshot has them; without numbers of workers and the like unless
            they are `recorded`.
        archives: their archives.
        asked: the name that was asked for, by the file name of an archive that took its place.
        recorded: whether it is what was served last.
    """

    models: Models
    archives: list[Archive]
    asked: dict[str, str]
    recorded: bool

    @property
    def hashes(self) -> dict[str, str]:
        """The SHA-256 of each archive in hex, by file name."""
        return {archive.file: archive.sha256 for archive in self.archives}


def of_names(
    names: Sequence[str], server: TorchServe, mirror: str | None, groups: Path | None = None
) -> Plan:
    """Plan to serve what is named: of each model, the first version that is named answers.

    Models with groups are asked for by their own names the next time.

    Raises:
        ArchiveError, WeightsError, InstallError, OSError: as `archive.store.choose`.
    """
    archives = choose(names, server.profile, server.store, mirror, groups)
    models: Models = {}
    found = set()
    for archive in archives:
        versions = models.setdefault(archive.model, {})
        versions[archive.version] = {"marName": archive.file, "defaultVersion": not versions}
        found |= {archive.model, Path(archive.file).stem}
    others = [name for name in names if name.removesuffix(".mar") not in found]
    asked = {} if groups or FALLBACK in names else {f"{FALLBACK}.mar": name for name in others}
    return Plan(models, archives, asked, recorded=False)


def of_record(server: TorchServe, mirror: str | None) -> Plan:
    """Plan to serve what was served last, or `DEFAULT`; what is gone is told in a line each.

    Raises:
        ArchiveError: nothing is left.
        WeightsError, InstallError, OSError: as `archive.store.choose`.
    """
    last = snapshots.last(server.state)
    if last is None:
        if snapshots.files(server.state):
            told = f"{server.state}/logs/config: no snapshot can be read; serving {DEFAULT}."
            print(told, file=sys.stderr)
        return of_names([DEFAULT], server, mirror)
    asked: dict[str, str] = {}
    with suppress(OSError, ValueError):
        asked = Started.read(server.state).asked
    models: Models = {}
    archives: dict[str, Archive] = {}
    for model, version, entry in each(last):
        file = entry["marName"]
        path = server.store / file
        if file not in asked and not path.exists():
            print(f"{path} is gone: {model} {version} is not served.", file=sys.stderr)
            continue
        name = asked.get(file, path.stem)
        (archive,) = choose([name], server.profile, server.store, mirror)
        if archive.file == file and archive.version != version:
            told = f"{path} is {archive.version} now: {model} {version} is not served."
            print(told, file=sys.stderr)
            continue
        served = model if archive.file == file else archive.model
        archives[archive.file] = archive
        models.setdefault(served, {})[archive.version] = entry | {"marName": archive.file}
    if not models:
        raise ArchiveError(
            "Nothing is left of what was served last: name what to serve, as in "
            + advice.serve("models", f'"{DEFAULT}".')
        )
    for versions in models.values():
        if not any(entry["defaultVersion"] for entry in versions.values()):
            next(iter(versions.values()))["defaultVersion"] = True
    return Plan(models, list(archives.values()), asked, recorded=True)
