"""Weights from a mirror: a real HTTP server that behaves well or badly."""

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.helpers import SERVER_CONFIG
from visionserve.models import MODELS
from visionserve_tools.archive import download, weights
from visionserve_tools.archive.recipe import Recipe, build
from visionserve_tools.archive.weights import (
    WeightsError,
    WeightsUnavailableError,
    remembered,
    resolve,
)
from visionserve_tools.server.ports import free_port

CONTENT = np.random.default_rng(0).bytes(300_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
FILE = f"tiny-{DIGEST[:8]}.pth"
NAME = "tiny"
CUT = 2 * download.CHUNK

Behaviour = Callable[[BaseHTTPRequestHandler, int], None]


class Mirror(ThreadingHTTPServer):
    """Answers as `behave` says and remembers what it was asked: path and range."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[tuple[str, str | None]] = []
        self.behave: Behaviour = whole
        self.url = f"http://127.0.0.1:{self.server_port}/models"


class _Handler(BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        wanted = self.headers["Range"]
        self.server.asked.append((self.path, wanted))
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        self.server.behave(self, start)

    def log_message(self, *_: object) -> None:
        pass


def send(request: BaseHTTPRequestHandler, status: int, body: bytes, length: int) -> None:
    request.send_response(status)
    request.send_header("Content-Length", str(length))
    request.end_headers()
    request.wfile.write(body)


def whole(request: BaseHTTPRequestHandler, start: int) -> None:
    if start >= len(CONTENT):
        send(request, 416, b"", 0)
    else:
        body = CONTENT[start:]
        send(request, 206 if start else 200, body, len(body))


def cut(request: BaseHTTPRequestHandler, start: int) -> None:
    """End amid the file."""
    body = CONTENT[start:]
    send(request, 206 if start else 200, body[:CUT], len(body))


def silent(request: BaseHTTPRequestHandler, start: int) -> None:
    time.sleep(2)


def absent(request: BaseHTTPRequestHandler, start: int) -> None:
    send(request, 404, b"", 0)


def elsewhere(request: BaseHTTPRequestHandler, start: int) -> None:
    if request.path.startswith("/store/"):
        whole(request, start)
    else:
        request.send_response(302)
        request.send_header("Location", f"/store{request.path}")
        request.end_headers()


def other(request: BaseHTTPRequestHandler, start: int) -> None:
    send(request, 200, b"another model's", 15)


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    server = Mirror()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place in an empty torch hub's cache of a model whose file is small."""
    official = SimpleNamespace(url=f"https://download.pytorch.org/models/{FILE}")
    monkeypatch.setitem(MODELS, NAME, replace(MODELS["resnet18"], weights=official))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv(weights.MIRROR, raising=False)
    monkeypatch.setattr(download, "TIMEOUT", (1, 0.5))
    return tmp_path / "hub" / "checkpoints" / FILE


@pytest.mark.parametrize("behave", [whole, elsewhere])
@pytest.mark.parametrize("by_option", [True, False])
def test_a_mirrors_file_comes_into_the_cache_and_is_asked_for_once(
    mirror: Mirror,
    cached: Path,
    monkeypatch: pytest.MonkeyPatch,
    behave: Behaviour,
    by_option: bool,
) -> None:
    mirror.behave = behave
    if not by_option:
        monkeypatch.setenv(weights.MIRROR, f"{mirror.url}/")
    for _ in range(2):
        found = resolve(NAME, mirror=mirror.url if by_option else None)
        assert (found.path, found.sha256) == (cached, DIGEST)
    assert cached.read_bytes() == CONTENT
    assert [path for path, _ in mirror.asked if "/store/" not in path] == [f"/models/{FILE}"]
    assert list(cached.parent.iterdir()) == [cached]


def test_a_download_that_breaks_goes_on_where_it_ended(mirror: Mirror, cached: Path) -> None:
    mirror.behave = cut
    assert resolve(NAME, mirror=mirror.url).sha256 == DIGEST
    assert [wanted for _, wanted in mirror.asked] == [None, f"bytes={CUT}-", f"bytes={2 * CUT}-"]


def test_a_later_try_goes_on_where_the_first_ended(mirror: Mirror, cached: Path) -> None:
    mirror.behave = lambda request, start: (silent if start else cut)(request, start)
    with pytest.raises(WeightsUnavailableError, match=f"in time; {CUT:,} bytes are kept"):
        resolve(NAME, mirror=mirror.url)
    mirror.behave = whole
    assert resolve(NAME, mirror=mirror.url).sha256 == DIGEST
    assert mirror.asked[-1][1] == f"bytes={CUT}-"
    assert remembered(NAME, mirror.url) is None


def test_a_server_without_ranges_sends_all_of_it_again(mirror: Mirror, cached: Path) -> None:
    cached.parent.mkdir(parents=True)
    cached.with_name(f"{FILE}.part").write_bytes(CONTENT[:5])
    mirror.behave = lambda request, start: whole(request, 0)
    assert resolve(NAME, mirror=mirror.url).sha256 == DIGEST


@pytest.mark.parametrize("kept", [b"", CONTENT + b"more", b"x" * 10])
def test_another_file_is_refused_and_not_kept(mirror: Mirror, cached: Path, kept: bytes) -> None:
    cached.parent.mkdir(parents=True)
    cached.with_name(f"{FILE}.part").write_bytes(kept)
    mirror.behave = whole if kept else other
    message = rf"/models/{FILE}: expected SHA-256 {DIGEST[:8]}\.\.\., found [0-9a-f]{{64}}; "
    with pytest.raises(WeightsError, match=message):
        resolve(NAME, mirror=mirror.url)
    assert list(cached.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("behave", "reason"),
    [(silent, "the server does not answer in time"), (absent, "HTTP status 404")],
)
def test_a_failure_names_what_was_tried(
    mirror: Mirror, cached: Path, behave: Behaviour, reason: str
) -> None:
    mirror.behave = behave
    with pytest.raises(WeightsUnavailableError) as raised:
        resolve(NAME, mirror=mirror.url)
    tried = f"{cached}: not cached, and {mirror.url}/{FILE} cannot be downloaded: {reason}."
    assert str(raised.value) == tried


def test_a_failed_download_is_remembered_for_a_day(
    mirror: Mirror, cached: Path, tmp_path: Path
) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(WeightsUnavailableError, match="no connection"):
        resolve(NAME, mirror=nowhere)
    wanted = Recipe(NAME, NAME, "1.0", SERVER_CONFIG)
    with pytest.raises(WeightsUnavailableError, match="no connection"):
        build(wanted, tmp_path / "store", nowhere, again=False)
    assert remembered(NAME, nowhere) and not remembered(NAME, mirror.url)
    (memory,) = cached.parent.glob("*.json")
    os.utime(memory, times=(0, time.time() - weights.REMEMBERED - 1))
    assert remembered(NAME, nowhere) is None
    resolve(NAME, mirror=mirror.url)
    assert not memory.exists()
