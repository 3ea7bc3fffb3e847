"""Servers that leave their process id in a file."""

from pathlib import Path

import psutil


def running(file: Path) -> int | None:
    """Return the process id that a file names, where that process runs."""
    try:
        pid = int(file.read_text())
        return pid if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE else None
    except (OSError, ValueError, psutil.NoSuchProcess):
        return None
