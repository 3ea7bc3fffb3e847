"""Record what made a file's rows in `NAME.run.json` beside it, and check that record."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from visionserve_tools import lock
from visionserve_tools.batch.rows import RunError, Value
from visionserve_tools.kept import read_json

WAYS_OUT = "Begin it anew with --overwrite, or name another file."

# The options that rows depend on, by name; None is the server's or the archive's default.
Provenance = Mapping[str, Value]


def keep(path: Path, provenance: Provenance) -> None:
    """Write the provenance of a file's rows beside it."""
    with lock.whole(_beside(path)) as written:
        written.write(json.dumps(provenance, indent=2, ensure_ascii=False).encode() + b"\n")


def check(path: Path, provenance: Provenance) -> None:
    """Compare the provenance of a file's rows with this run's.

    Raises:
        RunError: they differ, or the file's provenance is unknown.
    """
    beside = _beside(path)
    made = None
    with suppress(OSError, ValueError):
        made = read_json(beside)
    if not isinstance(made, dict):
        raise RunError(
            f"{path}: {beside.name}, which says what made it, is missing or damaged. {WAYS_OUT}"
        )
    differing = [key for key in {**provenance, **made} if made.get(key) != provenance.get(key)]
    if differing:
        was, now = (
            ", ".join(f"{key} {_value(each.get(key))}" for key in differing)
            for each in (made, provenance)
        )
        raise RunError(f"{path}: was made with {was}; this run has {now}. {WAYS_OUT}")


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.run.json")


def _value(value: Value) -> str:
    return "by default" if value is None else str(value)
