"""When, where and of which commit a measurement was made."""

import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from scripts import paths


@dataclass(frozen=True)
class Circumstances:
    """What a figure depends on besides the code's inputs.

    Attributes:
        date: the day, UTC, in ISO 8601.
        processor: its name.
        cores: how many this process may use.
        commit: abbreviated, with `+` where the working tree differs from it; empty outside git.
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
    """Describe this machine, now."""
    cores = len(os.sched_getaffinity(0))
    return Circumstances(datetime.now(UTC).date().isoformat(), processor(), cores, _commit())


def processor() -> str:
    """Name the machine's processor."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _commit() -> str:
    command = ["git", "describe", "--always", "--exclude=*", "--dirty=+"]
    try:
        done = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
