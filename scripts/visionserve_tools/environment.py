"""Install extras of `pyproject.toml` with pip: the packages that only some tasks need."""

import importlib
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from visionserve_tools.paths import CONFIG

PROJECT = "visionserve"

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
        options = ["--constraint", f"{CONFIG}/constraints.txt", *pinned(extra)]
        torch = any(requirement.startswith("torch==") for requirement in pinned(extra))
        nvidia = Path("/proc/driver/nvidia").exists()
        if torch and not nvidia and _is_reachable(f"{CPU_TORCH}/torch/"):
            options += ["--extra-index-url", CPU_TORCH]
    if subprocess.run([sys.executable, "-m", "pip", "install", *options]).returncode != 0:
        raise InstallError(f"pip could not install `{extra}`; its last lines say why.")


def extras() -> list[str]:
    """Return the names of all extras."""
    return metadata(PROJECT).get_all("Provides-Extra") or []


def dependencies() -> list[str]:
    """Return all requirements `NAME==RELEASE` of serving on this machine."""
    return [_pin(requirement) for requirement in _required("")]


def pinned(extra: str) -> list[str]:
    """Return all requirements `NAME==RELEASE` of an extra, with its nested extras resolved."""
    found: list[str] = []
    always = dependencies()
    for requirement in _required(extra):
        if requirement.name == PROJECT:
            found += [pin for inner in requirement.extras for pin in pinned(inner)]
        elif (pin := _pin(requirement)) not in always:
            found.append(pin)
    return found


def _required(extra: str) -> list[Requirement]:
    """Return what this machine needs of the project with an extra, as its metadata has it."""
    found = [Requirement(text) for text in requires(PROJECT) or []]
    return [one for one in found if not one.marker or one.marker.evaluate({"extra": extra})]


def _pin(requirement: Requirement) -> str:
    return str(requirement).partition(";")[0].strip()


def _is_installed(pin: str) -> bool:
    requirement = Requirement(pin)
    try:
        return requirement.specifier.contains(version(requirement.name), prereleases=True)
    except PackageNotFoundError:
        return False


def _is_reachable(url: str) -> bool:
    import requests

    try:
        return requests.head(url, timeout=3).ok
    except requests.RequestException:
        return False
