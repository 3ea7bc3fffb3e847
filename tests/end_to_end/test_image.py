"""The image of `make image`, run as `docker run --read-only` does, by `make test-image`."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from visionserve_tools import photos

IMAGE = os.environ.get("IMAGE")
URL = "http://127.0.0.1:8000"
TIMEOUT = 300
CAT = photos.greeting().read_bytes()
FORBIDDEN = ("torch", "torchvision", "nncf", "skimage", "sklearn", "scipy", "pip", "setuptools")

pytestmark = pytest.mark.skipif(IMAGE is None, reason="`make test-image` runs it")

# What `docker run --read-only --tmpfs ...` makes, without a container engine.
ENTER = """
set -e
mount --bind "$ROOT" "$ROOT"
mount -o remount,ro,bind "$ROOT"
mount -t tmpfs tmpfs "$ROOT/tmp"
mount -t tmpfs -o uid=10001,gid=10001,mode=0700 tmpfs "$ROOT/opt/visionserve/.torchserve"
mount -t proc proc "$ROOT/proc"
mount --rbind /dev "$ROOT/dev"
exec chroot --userspec=10001:10001 "$ROOT" env --ignore-environment --chdir="$DIRECTORY" "$@"
"""


def buildah(*arguments: str) -> str:
    return subprocess.run(
        ["buildah", *arguments], capture_output=True, text=True, check=True
    ).stdout


@pytest.fixture(scope="module")
def root() -> Iterator[tuple[Path, dict[str, Any]]]:
    """A mounted container of the image, and its configuration."""
    container = buildah("from", "--pull-never", str(IMAGE)).strip()
    try:
        config = json.loads(buildah("inspect", "--type", "image", str(IMAGE)))["OCIv1"]["config"]
        yield Path(buildah("mount", container).strip()), config
    finally:
        buildah("rm", container)


@contextmanager
def running(root: tuple[Path, dict[str, Any]], log: Path) -> Iterator[psutil.Process]:
    """Start the container, its output in a file of root's, and wait until it answers."""
    path, config = root
    log.touch(mode=0o600)
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", ENTER, "enter"]
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*command, *config["Env"], *config["Cmd"]],
            env={"PATH": os.environ["PATH"], "ROOT": str(path), "DIRECTORY": config["WorkingDir"]},
            stdout=output,
            stderr=output,
        )
    try:
        deadline = time.monotonic() + TIMEOUT
        while not answers():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        (first,) = psutil.Process(process.pid).children()
        yield first
        stop = config["StopSignal"]
        if first.is_running():
            first.send_signal(getattr(signal, stop))
        assert process.wait(timeout=60) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def answers() -> bool:
    try:
        return requests.get("http://127.0.0.1:8001/ping", timeout=5).ok
    except requests.RequestException:
        return False


def ask(model: str) -> requests.Response:
    """Ask about the cat, with bytes behind the image that keep the answer out of the cache."""
    url = f"{URL}/predictions/{model}"
    headers = {"Content-Type": "image/png"}
    return requests.post(url, data=CAT + os.urandom(8), headers=headers, timeout=60)


def test_it_holds_no_torch_no_tools_and_no_configuration_of_pip(
    root: tuple[Path, dict[str, Any]],
) -> None:
    path, _ = root
    (packages,) = (path / "opt/visionserve/.venv/lib").glob("python*/site-packages")
    assert [name for name in FORBIDDEN if (packages / name).exists()] == []
    assert not (path / "root/.cache").exists() and not (path / "usr/bin/gcc").exists()
    conf = path / "etc/pip.conf"
    assert not conf.exists() or conf.read_bytes() == b""


def test_it_runs_read_only_loses_no_request_when_it_stops_and_starts_again(
    root: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    log = tmp_path / "output"
    stopping = threading.Event()
    (model,) = [value.removeprefix("MODEL=") for value in root[1]["Env"] if "MODEL=" in value]

    def client() -> list[int]:
        statuses = []
        while not stopping.is_set():
            try:
                statuses.append(ask(model).status_code)
            except requests.ConnectionError as error:
                # Came too late: no connection was made, and nothing was sent.
                assert stopping.is_set() and "Connection refused" in str(error), error
        return statuses

    with running(root, log) as first:
        family = [first, *first.children(recursive=True)]
        assert {process.uids().real for process in family} == {10001}
        assert any("java" in process.name() for process in family)
        response = ask(model)
        assert response.status_code == 200, response.text
        assert response.json()["predictions"][0]["label"] == "Egyptian cat"
        with ThreadPoolExecutor(4) as pool:
            clients = [pool.submit(client) for _ in range(4)]
            time.sleep(2)
            stopping.set()
            first.send_signal(signal.SIGQUIT)
            statuses = [status for each in clients for status in each.result()]
        assert len(statuses) > 4 and set(statuses) == {200}
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    assert [line["status"] for line in lines].count(200) >= len(statuses)
    with running(root, log) as first:
        assert ask(model).status_code == 200
        (java,) = [each for each in first.children(recursive=True) if each.name() == "java"]
        java.kill()
        # The restart policy needs a container that ends.
        first.wait(timeout=20)
