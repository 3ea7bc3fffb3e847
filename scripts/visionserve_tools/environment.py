"""Install extras of `pyproject.toml`: the packages that only some tasks need."""

import importlib
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from visionserve_tools import installer
from visionserve_tools.installer import InstallError as InstallError
from visionserve_tools.paths import CONFIG

PROJECT = "visionserve"

CPU_TORCH = "https://download.pytorch.org/whl/cpu"
SIZES = {
    "java": "105 MB",
    "pytorch": "5 GB on disk, or 1 GB without CUDA",
    "build": "6 GB on disk, or 2 GB without CUDA",
}


def require(extra: str, why: str) -> None:
    """Install an extra, unless all its packages are installed at their pinned releases.

    Args:
        extra: its name in `pyproject.toml`.
        why: the reason, as half a sentence for the user, who has to wait.

    Raises:
        InstallError: it cannot be installed.
    """
    if all(map(_is_installed, pinned(extra))):
        return
    install(extra, f"{why}: ")
    importlib.invalidate_caches()


def install(extra: str, why: str = "") -> None:
    """Install an extra, at the releases pinned in `config/constraints.txt`.

    Where `config/requirements-EXTRA.txt` has the hashes of its packages, others are refused. A
    machine without an NVIDIA GPU gets PyTorch without CUDA, which is much smaller, if PyTorch's own
    package index can be reached. That build has no hash there: it is another file of the release.

    Args:
        extra: its name in `pyproject.toml`.
        why: what the line about it begins with.

    Raises:
        InstallError: it cannot be installed.
    """
    size = f" ({SIZES[extra]})" if extra in SIZES else ""
    what = f"{why}{'installing' if why else 'Installing'} `{extra}`{size}."
    nested = _nested(extra)
    nvidia = Path("/proc/driver/nvidia").exists()
    if "pytorch" in nested and not nvidia and _is_reachable(f"{CPU_TORCH}/torch/"):
        nested.remove("pytorch")
        installer.install([*_constrained("pytorch"), "--extra-index-url", CPU_TORCH], what)
        what = "The rest of it."
    locked = [path for one in nested if (path := CONFIG / f"requirements-{one}.txt").exists()]
    if CONFIG / f"requirements-{extra}.txt" in locked:
        options = [part for path in locked for part in ("--requirement", str(path))]
        installer.install(["--no-deps", "--require-hashes", *options], what)
    elif nested:
        installer.install(_constrained(extra), what)


def _constrained(extra: str) -> list[str]:
    return ["--constraint", f"{CONFIG}/constraints.txt", *pinned(extra)]


def _nested(extra: str) -> list[str]:
    """Return the names of the extras that one consists of, itself last."""
    inner = [
        one for each in _required(extra) if each.name == PROJECT for one in sorted(each.extras)
    ]
    found = [name for one in inner for name in _nested(one)]
    return [*dict.fromkeys(found), extra]


def extras() -> list[str]:
    """Return the names of all extras."""
    return metadata(PROJECT).get_all("Provides-Extra") or []


def dependencies(machine: str | None = None) -> list[str]:
    """Return all requirements `NAME==RELEASE` of serving.

    Args:
        machine: the processor to serve on, as `platform.machine` names it; this machine's if None.
    """
    return [_pin(requirement) for requirement in _required("", machine)]


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


def _required(extra: str, machine: str | None = None) -> list[Requirement]:
    """Return what a machine needs of the project with an extra, as its metadata has it."""
    found = [Requirement(text) for text in requires(PROJECT) or []]
    here = {"extra": extra} | ({"platform_machine": machine} if machine else {})
    return [one for one in found if not one.marker or one.marker.evaluate(here)]


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
