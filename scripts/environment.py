"""Install extras of `pyproject.toml` with pip: the packages that only some tasks need."""

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
    """Install an extra, unless all its packages are installed; pip shows its own progress.

    Args:
        extra: its name in `pyproject.toml`.
        why: the reason, as half a sentence for the user, who has to wait.

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
    """Install an extra, at the releases pinned in `config/constraints.txt`.

    Where `config/requirements-EXTRA.txt` has the hashes of its packages, pip refuses others.
    PyTorch has none: its builds with and without CUDA are different files of one release. A
    machine without an NVIDIA GPU gets PyTorch without CUDA, which is much smaller, if PyTorch's
    own package index can be reached.

    Raises:
        InstallError: pip failed.
    """
    hashes = CONFIG / f"requirements-{extra}.txt"
    if hashes.exists():
        options = ["--require-hashes", "--requirement", str(hashes)]
    else:
        options = ["--constraint", f"{CONFIG}/constraints.txt", "--editable", f"{ROOT}[{extra}]"]
        torch = any(requirement.startswith("torch==") for requirement in pinned(extra))
        nvidia = Path("/proc/driver/nvidia").exists()
        if torch and not nvidia and _is_reachable(f"{CPU_TORCH}/torch/"):
            options += ["--extra-index-url", CPU_TORCH]
    if subprocess.run([sys.executable, "-m", "pip", "install", *options]).returncode != 0:
        raise InstallError(f"pip could not install `{extra}`; its last lines say why.")


def extras() -> list[str]:
    """Return the names of all extras."""
    return list(_project()["optional-dependencies"])


def dependencies() -> list[str]:
    """Return all requirements `NAME==RELEASE` of serving."""
    return list(_project()["dependencies"])


def pinned(extra: str) -> list[str]:
    """Return all requirements `NAME==RELEASE` of an extra, with its nested extras resolved."""
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
