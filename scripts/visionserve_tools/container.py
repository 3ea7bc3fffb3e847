"""The container image: its base, and its build with buildah."""

import ast
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from visionserve_tools import paths
from visionserve_tools.emulation import emulated, own

DOCKERFILE = paths.CONFIG / "Dockerfile"
DEBIAN = "bookworm"
OWN_BASE = f"localhost/visionserve-base:{DEBIAN}"
INCLUDED = "ca-certificates,python3,python3-venv"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CERTIFICATE = "/etc/pip.crt"
SOURCES = Path("/etc/apt/sources.list.d/debian.sources")


def build(tag: str, device: str, model: str, architecture: str) -> None:
    """Build the image for a device, a model and an architecture.

    Raises:
        EmulationError: this machine runs no programs of the architecture.
        subprocess.CalledProcessError: a command failed.
    """
    text = DOCKERFILE.read_text(encoding="utf-8")
    found = re.search(r"^ARG BASE=(\S+)$", text, re.MULTILINE)
    assert found
    # Buildah 1.28 does not resolve an argument in FROM.
    build = "--platform=$BUILDPLATFORM ${BASE}"
    with emulated(architecture) as entered, pip_volumes() as volumes:
        text = text.replace(build, f"--platform=linux/{own()} {base(found[1], own())}")
        text = text.replace("${BASE}", base(found[1], architecture, entered))
        command = [
            *entered,
            *("buildah", "build", "--isolation", "chroot", "--layers", "--tag", tag),
            # OCI's has no health check.
            *("--format", "docker", "--force-rm"),
            *("--arch", architecture),
            *("--build-arg", f"DEVICE={device}", "--build-arg", f"MODEL={model}"),
            *(f"--volume={source}:{target}:ro" for source, target in volumes.items()),
            *("--file", "-", str(paths.SOURCES)),
        ]
        resolved = text.replace("${DEVICE}", device)
        subprocess.run(command, input=resolved, text=True, check=True)


def base(official: str, architecture: str, entered: Sequence[str] = ()) -> str:
    """Return the name of a base image that is here: the official one, or one made of Debian."""
    name = f"docker.io/library/{official}"
    if architecture == own() and _is_here(name):
        return name
    name = OWN_BASE if architecture == own() else f"{OWN_BASE}-{architecture}"
    if not _is_here(name):
        make_base(name, architecture, entered)
    return name


def make_base(name: str, architecture: str, entered: Sequence[str]) -> None:
    """Make a base image from Debian, with Debian's Python; see `emulated` for `entered`."""
    # In a user namespace nobody may make devices; debootstrap mounts them where it thinks of LXC.
    environment = os.environ | ({"container": "lxc"} if entered else {})
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        debootstrap = [*entered, "debootstrap", f"--arch={architecture}", "--variant=minbase"]
        command = [*debootstrap, f"--include={INCLUDED}", DEBIAN, scratch]
        subprocess.run(command, check=True, env=environment)
        (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
        if SOURCES.exists():
            (root / "etc/apt/sources.list").unlink()
            (root / "etc/apt/sources.list.d/debian.sources").write_bytes(SOURCES.read_bytes())
        for leftovers in (
            "var/cache/apt",
            "var/lib/apt/lists",
            "usr/share/doc",
            "usr/share/locale",
        ):
            subprocess.run(["find", root / leftovers, "-type", "f", "-delete"], check=True)
        container = _buildah("from", "scratch")
        _buildah("add", container, scratch, "/")
        _buildah("config", "--arch", architecture, "--env", f"PATH={PATH}", container)
        _buildah("commit", "--rm", container, name)


@contextmanager
def pip_volumes() -> Iterator[dict[str, str]]:
    """Mount this machine's pip configuration into the build, but not into the image.

    Yields:
        Each path on this machine with its path in the build: the configuration, and the files and
        folders that it names.
    """
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    )
    pairs = [line.partition("=") for line in listed.stdout.splitlines()]
    settings = {key.rpartition(".")[2]: ast.literal_eval(value) for key, _, value in pairs}
    volumes = {}
    if certificate := settings.get("cert"):
        # Not at its own path, where Debian's upgrade of ca-certificates replaces it.
        settings["cert"] = volumes[certificate] = CERTIFICATE
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as file:
        lines = (f"{key} = {' '.join(value.split())}" for key, value in settings.items())
        file.write("\n".join(["[global]", *lines, ""]))
        file.flush()
        Path(file.name).chmod(0o644)
        words = [word for value in settings.values() for word in value.split()]
        # A package index on the disk links to files beside it, so its parent folder is mounted.
        named = [
            Path(word.removeprefix("file://")).parent if "://" in word else Path(word)
            for word in words
            if word.startswith(("/", "file://"))
        ]
        local = {str(path): str(path) for path in named if path.exists()}
        yield volumes | {file.name: "/etc/pip.conf"} | local


def _is_here(image: str) -> bool:
    return subprocess.run(["buildah", "inspect", image], capture_output=True).returncode == 0


def _buildah(*arguments: str) -> str:
    done = subprocess.run(["buildah", *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()
