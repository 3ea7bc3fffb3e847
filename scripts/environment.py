"""The environment that serves and the larger ones: extras of `pyproject.toml`, installed by pip."""

import importlib
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from scripts.paths import CONFIG, ROOT

CPU_TORCH = "https://download.pytorch.org/whl/cpu"
SIZES = {
    "java": "105 MB",
    "pytorch": "5 GB on disk, or 1 GB without CUDA",
    "build": "6 GB on disk, or 2 GB without CUDA",
}


class InstallError(Exception):
    """Pip could not install an extra."""


def require(extra: str, why: str) -> None:
    """Install an extra with pip's own progress, unless all of it is there.

    Args:
        extra: one of `pyproject.toml`.
        why: half a sentence for the user, who waits.

    Raises:
        InstallError: pip failed.
    """
    if all(map(_is_installed, pinned(extra))):
        return
    size = f" ({SIZES[extra]})" if extra in SIZES else ""
    print(f"{why}: installing `{extra}`{size}.", file=sys.stderr)
    install(extra)
    importlib.invalidate_caches()


def install(extra: str) -> None:
    """Install an extra in the releases of `config/constraints.txt`.

    A machine without an NVIDIA GPU gets PyTorch without CUDA where its index can be reached.

    Raises:
        InstallError: pip failed.
    """
    command = [sys.executable, "-m", "pip", "install", "--constraint", f"{CONFIG}/constraints.txt"]
    torch = any(requirement.startswith("torch==") for requirement in pinned(extra))
    if torch and not Path("/proc/driver/nvidia").exists() and _is_reachable(f"{CPU_TORCH}/torch/"):
        command += ["--extra-index-url", CPU_TORCH]
    if subprocess.run([*command, "--editable", f"{ROOT}[{extra}]"]).returncode != 0:
        raise InstallError(f"pip could not install `{extra}`; its last lines say why.")


def extras() -> list[str]:
    """Name the extras."""
    return list(_project()["optional-dependencies"])


def pinned(extra: str) -> list[str]:
    """Return the requirements `NAME==RELEASE` of an extra and of the extras that it names."""
    project = _project()
    found: list[str] = []
    for requirement in project["optional-dependencies"][extra]:
        inner = requirement.removeprefix(f"{project['name']}[").removesuffix("]")
        found += [requirement] if inner == requirement else pinned(inner)
    return found


def _project() -> dict[str, Any]:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project: dict[str, Any] = tomllib.loads(text)["project"]
    return project


def _is_installed(requirement: str) -> bool:
    try:
        version(requirement.partition("==")[0])
    except PackageNotFoundError:
        return False
    return True


def _is_reachable(url: str) -> bool:
    import requests

    try:
        return requests.head(url, timeout=3).ok
    except requests.RequestException:
        return False
