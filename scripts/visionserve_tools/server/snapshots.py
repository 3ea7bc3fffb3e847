"""What a server serves, or served last: TorchServe's own snapshots, the one record of it.

TorchServe 0.12 writes a snapshot into `logs/config` when it has started, at each change through its
management API, whoever makes it, and when it is stopped. So there is one even after `kill -9`.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from visionserve.config import ModelConfig
from visionserve_tools.server.properties import read_properties
from visionserve_tools.server.retire import PLACEHOLDER

PROPERTY = "model_snapshot"
NUMBERS = ("minWorkers", "maxWorkers", "batchSize", "maxBatchDelay", "responseTimeout")
DAMAGES = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)

Entry = dict[str, Any]
"""What TorchServe keeps of a version: `marName`, `defaultVersion`, `minWorkers` and the like."""
Models = dict[str, dict[str, Entry]]
"""The versions of each model."""


def last(state: Path) -> Models | None:
    """Return what the server of a state folder serves, or served last; None if no snapshot tells.

    A damaged one is passed over: TorchServe writes empty ones when the disk is full.
    """
    for file in reversed(files(state)):
        with suppress(*DAMAGES):
            return _read(file)
    return None


def each(models: Mapping[str, Mapping[str, Entry]]) -> Iterator[tuple[str, str, Entry]]:
    """Yield each version: its model's name, its own, and its entry."""
    for model, versions in models.items():
        for version, entry in versions.items():
            yield model, version, entry


def shape(models: Mapping[str, Mapping[str, Entry]]) -> set[tuple[str, str, str, bool]]:
    """Return of each version the model, the version, the archive, and whether it is the default."""
    return {
        (model, version, entry["marName"], entry["defaultVersion"])
        for model, version, entry in each(models)
    }


def follow(entry: Entry, old: ModelConfig, new: ModelConfig) -> None:
    """Have a version's numbers follow its archive, but for those that were set since its start."""
    for number in NUMBERS:
        if entry.get(number) == getattr(old, number):
            entry[number] = getattr(new, number)


def text(models: Models) -> str:
    """Return a snapshot for TorchServe to start with."""
    count = sum(len(versions) for versions in models.values())
    return json.dumps({"name": "visionserve", "modelCount": count, "models": models})


def files(state: Path) -> list[Path]:
    """Return the snapshots of a state folder, the oldest one first."""
    found = (state / "logs" / "config").glob("*.cfg")
    return sorted(found, key=lambda file: (file.lstat().st_mtime_ns, file.name))


def date(state: Path) -> None:
    """Have the snapshots that there are count as older than those that follow.

    TorchServe names a snapshot by the local time, and the file system dates it by the clock. If the
    clock is set back, later snapshots look older. So each start, and each change by `visionserve
    manage`, first dates those that there are before 1970, in their order.
    """
    found = files(state)
    for rank, file in enumerate(found, start=-len(found)):
        with suppress(FileNotFoundError):
            os.utime(file, (rank, rank), follow_symlinks=False)


def _read(file: Path) -> Models:
    """Read a snapshot, without what was being unregistered (`server.retire`).

    Raises:
        OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError: it is damaged.
    """
    given = json.loads(read_properties(file)[PROPERTY])["models"]
    models: Models = {}
    for model, versions in given.items():
        for version, entry in versions.items():
            if not isinstance(entry["marName"], str) or not isinstance(
                entry["defaultVersion"], bool
            ):
                raise ValueError(f"{file}: {model} {version} is malformed.")
        if not versions.get(PLACEHOLDER, {"defaultVersion": False})["defaultVersion"]:
            models[model] = {v: entry for v, entry in versions.items() if v != PLACEHOLDER}
    return models
