"""Functions and names that many tests share."""

import io
import json
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path

import pytest
import requests
import yaml
from PIL import Image

from visionserve_tools import paths
from visionserve_tools.archive.manifest import MANIFEST
from visionserve_tools.server.nginx import Site, Upstream
from visionserve_tools.server.ports import free_port
from visionserve_tools.server.torchserve import TorchServe

REAL = "efficientnet_lite0"
RANDOM = "random_weights_resnet18"
SMALL = "squeezenet1_1"  # It is converted in a third to half of the time of a ResNet-18.
SERVER_CONFIG = paths.CONFIG / "server" / "model-config.yaml"
# How an upright picture is turned to lie in its file by an EXIF orientation.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def encode(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def write_config(directory: Path, workers: int = 2, **handler: object) -> Path:
    """Write the server profile's model-config.yaml in FP32, with other settings and no cache."""
    config = yaml.safe_load(SERVER_CONFIG.read_text()) | {"minWorkers": workers}
    config["handler"] |= {"precision": "fp32", "cache": {"size_mb": 0}} | handler
    path = directory / "model-config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def packed(archive: Path, config: Path, name: str, path: Path) -> None:
    """Write an archive again with another name and configuration."""
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(path, "w") as new:
        manifest = json.loads(old.read(MANIFEST))
        manifest["model"]["modelName"] = name
        content = {
            MANIFEST: json.dumps(manifest),
            manifest["model"]["configFile"]: config.read_text(),
        }
        for entry in old.namelist():
            new.writestr(entry, content.get(entry) or old.read(entry))


def copy_sources(root: Path) -> None:
    """Copy this source tree to a folder, without an environment, stores or state."""
    for folder in ("handler", "config", "scripts"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(paths.ROOT / folder, root / folder, ignore=ignored)
    for file in ("pyproject.toml", "LICENSE", ".github/NOTICES.md"):
        (root / file).parent.mkdir(exist_ok=True)
        shutil.copy(paths.ROOT / file, root / file)


def called(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command in this process, where all that it imports is loaded."""
    main = import_module(f"visionserve_tools.commands.{name}").main
    words = [f"visionserve {name}", *map(str, arguments)]
    out, error = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    terminated = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(error):
        patch.setattr(sys, "argv", words)
        try:
            code = main()
        except SystemExit as end:
            code = end.code
        finally:
            signal.signal(signal.SIGTERM, terminated)
    for stream in (out, error):
        stream.seek(0)
    return subprocess.CompletedProcess(words, code or 0, out.read(), error.read())


@contextmanager
def written_later(file: Path, text: str) -> Iterator[None]:
    """Write a file 0.2 s after the block begins."""
    writer = threading.Timer(0.2, file.write_text, [text])
    writer.start()
    try:
        yield
    finally:
        writer.join()


def upstream_of(server: TorchServe) -> Upstream:
    return Upstream(server.client.inference, server.state / "key_file.json")


def site_of(*servers: TorchServe, rate: str = "10000r/s", trusted: tuple[str, ...] = ()) -> Site:
    """A site on free ports, at a rate that no test meets unless it gives another one."""
    listen, probes = (f"127.0.0.1:{free_port()}" for _ in range(2))
    upstreams = tuple(upstream_of(server) for server in servers)
    return Site(upstreams, listen, probes, REAL, rate, trusted)


def spend(site: Site) -> None:
    """Send as many requests as an nginx lets one client send at once."""
    with requests.Session() as session:
        while session.get(f"http://{site.listen}/ping", timeout=60).status_code != 429:
            pass
