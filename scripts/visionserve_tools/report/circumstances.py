"""The date, machine and commit of a measurement."""

import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from visionserve_tools import paths


@dataclass(frozen=True)
class Circumstances:
    """The date, machine and commit that a figure depends on besides the code's inputs.

    Attributes:
        date: the day, UTC, in ISO 8601.
        processor: the processor's name.
        cores: the number of cores that this process may use.
        commit: the abbreviated commit, with `+` if the working tree differs from it; empty outside
            git.
    """

    date: str
    processor: str
    cores: int
    commit: str

    def __str__(self) -> str:
        """Return one line for people."""
        commit = f", commit {self.commit}" if self.commit else ""
        return f"{self.date}, {self.processor}, {self.cores} cores{commit}"


def here() -> Circumstances:
    """Return the present circumstances on this machine."""
    cores = len(os.sched_getaffinity(0))
    return Circumstances(datetime.now(UTC).date().isoformat(), processor(), cores, _commit())


def processor() -> str:
    """Return the name of the machine's processor."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _commit() -> str:
    if not paths.IN_CHECKOUT:
        return ""  # A wheel may be installed within another repository.
    command = ["git", "describe", "--always", "--exclude=*", "--dirty=+"]
    try:
        done = subprocess.run(
            command, cwd=paths.SOURCES, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
