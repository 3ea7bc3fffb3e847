"""Install packages with uv, which takes a third of pip's time, or with pip where uv cannot be had.

This takes the standard library alone, as the Makefile installs the rest with it, by
`python -m visionserve_tools.installer WHAT ARGUMENTS`. See `install`.
"""

import ast
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from visionserve_tools.paths import CONFIG

UV = CONFIG / "requirements-lock.txt"
QUIET = ("--quiet", "--no-input", "--disable-pip-version-check")
# What pip is configured with, as `pip config` calls it, and uv's option for the like. uv itself
# reads none of it.
OPTIONS = {
    "index-url": "--default-index",
    "extra-index-url": "--extra-index-url",
    "find-links": "--find-links",
    "constraint": "--constraint",
    "cert": "--cert",
    "trusted-host": "--allow-insecure-host",
    "only-binary": "--only-binary",
    "no-binary": "--no-binary",
    "target": "--target",
}
SWITCHES = {"no-index": "--no-index", "no-cache-dir": "--no-cache"}
VARIABLES = {
    "client-cert": "SSL_CLIENT_CERT",
    "proxy": "ALL_PROXY",
    "timeout": "UV_HTTP_TIMEOUT",
    "default-timeout": "UV_HTTP_TIMEOUT",
}
# How pip behaves, and not what it installs.
OF_PIP = {
    *("cache-dir", "config-file", "disable-pip-version-check", "exists-action", "log", "no-color"),
    *("no-input", "no-python-version-warning", "no-warn-script-location", "prefer-binary"),
    *("progress-bar", "quiet", "require-virtualenv", "retries", "root-user-action", "verbose"),
}


class InstallError(Exception):
    """Neither uv nor pip could install something."""


def install(arguments: Sequence[str], what: str) -> None:
    """Install packages into this Python's environment, with a line that tells how far it is.

    Args:
        arguments: those of `pip install`, of which uv has the like.
        what: the line's start, half a sentence for the user, who has to wait.

    Raises:
        InstallError: pip could not; what it said is printed.
    """
    tried = ""
    settings = _settings()
    foreign = sorted(settings.keys() - OPTIONS.keys() - SWITCHES.keys() - VARIABLES.keys() - OF_PIP)
    if foreign:
        tried = f"pip is configured with {', '.join(foreign)}, which uv has not; pip installs."
    elif uv := _uv():
        if "--require-hashes" in arguments:
            # The lock names each release, and uv refuses constraints beside it that name a range.
            settings.pop("constraint", None)
        options, variables = _translated(settings)
        command = [uv, "pip", "install", "--quiet", "--python", sys.executable]
        # An index that has a package may lack the release, as with pip.
        command += ["--index-strategy", "unsafe-best-match", *options, *arguments]
        said = _run(command, what, os.environ | variables)
        if said is None:
            return
        tried = f"{said}\nuv could not install this; pip tries it."
    if tried:
        print(tried, file=sys.stderr)
    said = _run([*_pip(), "install", *QUIET, *arguments], what, os.environ)
    if said is not None:
        print(said, file=sys.stderr)
        raise InstallError("pip could not install this; its last lines say why.")


def _run(command: Sequence[str], what: str, environment: Mapping[str, str]) -> str | None:
    """Run a command quietly, and return what it said if it failed.

    A terminal is shown what has been written so far, where the system tells it.
    """
    started = time.monotonic()
    written = 0
    print(what, end="", flush=True, file=sys.stderr)
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said
        )
        try:
            while True:
                try:
                    code = process.wait(0.2)
                    break
                except subprocess.TimeoutExpired:
                    written = _written(process.pid) or written
                    if written and sys.stderr.isatty():
                        print(f"\r{what} {written:,} MB", end="", flush=True, file=sys.stderr)
        except BaseException:
            process.terminate()
            process.wait()
            print(file=sys.stderr)
            raise
        megabytes = f" {written:,} MB written," if written else ""
        seconds = f" {time.monotonic() - started:.0f} s."
        print(f"\r{what}" * sys.stderr.isatty() + megabytes + seconds, file=sys.stderr)
        if code == 0:
            return None
        said.seek(0)
        return said.read().decode(errors="replace").strip()


def _written(pid: int) -> int:
    """Return how many megabytes a process has written, 0 where the system does not tell."""
    try:
        counts = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return int(counts["wchar"]) // 1_000_000


def _uv() -> str | None:
    """Return uv's path, installed here at its pinned release; None if it cannot be had.

    A mirror may lack it.
    """
    pinned = UV.read_text(encoding="utf-8").partition(" ")[0].partition("==")[2]
    try:
        there = version("uv") == pinned
    except PackageNotFoundError:
        there = False
    if not there:
        command = [*_pip(), "install", *QUIET, "--require-hashes", "--requirement", str(UV)]
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL)
        if done.returncode != 0:
            return None
    return shutil.which("uv", path=str(Path(sys.executable).parent))


def _pip() -> list[str]:
    """Return the command of this environment's pip, which is put there if it is missing."""
    if find_spec("pip") is None:
        subprocess.run([sys.executable, "-m", "ensurepip"], capture_output=True)
    return [sys.executable, "-m", "pip"]


def _settings() -> dict[str, str]:
    """Return what `pip install` is configured with: files, then variables, which prevail."""
    listed = subprocess.run([*_pip(), "config", "list"], capture_output=True, text=True)
    pairs = [line.partition("=") for line in listed.stdout.splitlines() if "=" in line]
    found: dict[str, str] = {}
    for section in ("global", "install", ":env:"):
        for key, _, value in pairs:
            of, _, name = key.rpartition(".")
            if of == section:
                found[name] = ast.literal_eval(value)
    return found


def _translated(settings: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Return uv's options and environment variables for pip's settings."""
    options = [
        part
        for name, option in OPTIONS.items()
        for value in settings.get(name, "").split()
        for part in (option, value)
    ]
    options += [
        option
        for name, option in SWITCHES.items()
        if settings.get(name, "0").lower() in ("1", "true", "yes", "on", "y", "t")
    ]
    return options, {VARIABLES[name]: settings[name] for name in VARIABLES.keys() & settings.keys()}


if __name__ == "__main__":
    try:
        install(sys.argv[2:], sys.argv[1])
    except InstallError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        print("Interrupted; give the command again to go on.", file=sys.stderr)
        sys.exit(130)
