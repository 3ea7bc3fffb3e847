"""nginx in front of two real TorchServes, one of which dies."""

import base64
import http.client
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, suppress
from dataclasses import replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import requests
from PIL import Image

from scripts import paths, photos
from scripts.batch.rows import RunError
from scripts.batch.server_engine import classify
from scripts.server.client import Client
from scripts.server.nginx import Proxy, ProxyError, Site, Upstream
from scripts.server.ports import free_port, free_ports
from scripts.server.torchserve import TorchServe
from tests.helpers import REAL, encode, site_of, spend, upstream_of
from visionserve.config import Options

TIMEOUT = 60
PREDICTIONS = f"/predictions/{REAL}"
PNG = {"Content-Type": "image/png"}
Start = Callable[..., str]


@pytest.fixture(scope="module")
def other(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    """A second TorchServe, with keys of its own; it may run or not."""
    other = TorchServe("server", tmp_path_factory.mktemp("other"), store, free_ports())
    yield other
    other.stop()


def running(server: TorchServe) -> TorchServe:
    if server.pid is None:
        server.start([f"{REAL}={REAL}.mar"])
    return server


@pytest.fixture
def second(other: TorchServe) -> TorchServe:
    """The second TorchServe, running."""
    return running(other)


@pytest.fixture
def site(server: TorchServe, second: TorchServe) -> Site:
    """Both servers."""
    return site_of(server, second)


@pytest.fixture
def address(proxy: Proxy, site: Site) -> str:
    """An nginx of the test's own in front of both servers."""
    proxy.start(site)
    return f"http://{site.listen}"


@pytest.fixture(scope="module")
def shared(
    server: TorchServe, other: TorchServe, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """An nginx in front of both servers, for the tests that only ask it."""
    proxy, site = (
        Proxy(tmp_path_factory.mktemp("shared") / "nginx"),
        site_of(server, running(other)),
    )
    proxy.start(site)
    yield f"http://{site.listen}"
    proxy.stop()


def access_log(tmp_path: Path) -> list[dict[str, object]]:
    """What a stopped nginx has logged."""
    lines = (tmp_path / "nginx" / "logs" / "access.log").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def cat() -> bytes:
    return photos.greeting().read_bytes()


@pytest.mark.parametrize("authorization", [None, "Bearer of nothing"])
def test_each_server_gets_its_own_token_and_no_client_one(
    authorization: str | None, address: str, proxy: Proxy, cat: bytes, tmp_path: Path
) -> None:
    headers = PNG | ({"Authorization": authorization} if authorization else {})
    for _ in range(4):
        response = requests.post(address + PREDICTIONS, data=cat, headers=headers, timeout=TIMEOUT)
        assert response.status_code == 200
        assert response.json()["predictions"][0]["label"] == "Egyptian cat"
    proxy.stop()
    asked = access_log(tmp_path)
    assert len({entry["upstream"] for entry in asked}) == 2
    assert [entry["upstream_status"] for entry in asked] == ["200"] * 4


def test_tokens_are_for_the_user_alone(address: str, second: TorchServe, tmp_path: Path) -> None:
    key = second.client.token("inference")["Authorization"].removeprefix("Bearer ")
    holders = [
        path
        for path in (tmp_path / "nginx").rglob("*")
        if path.is_file() and key in path.read_text(errors="replace")
    ]
    assert [path.name for path in holders] == ["torchserve-2.key"]
    assert holders[0].is_symlink() and holders[0].stat().st_mode & 0o077 == 0
    assert (tmp_path / "nginx").stat().st_mode & 0o077 == 0


def test_the_page_of_the_default_model_is_at_the_root(shared: str, server: TorchServe) -> None:
    direct = requests.get(
        server.client.inference + PREDICTIONS,
        headers={"Accept": "text/html"} | server.client.token("inference"),
        timeout=TIMEOUT,
    )
    page = requests.get(f"{shared}/?data=1", timeout=TIMEOUT)
    assert page.status_code == 200
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert page.headers["Content-Security-Policy"] == direct.headers["Content-Security-Policy"]
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    assert page.headers["Server"] == "nginx"
    assert requests.post(shared, data=b"x", timeout=TIMEOUT).status_code == 405


def test_ping(shared: str) -> None:
    response = requests.get(f"{shared}/ping", timeout=TIMEOUT)
    assert (response.status_code, response.json()) == (200, {"status": "Healthy"})


@pytest.mark.parametrize(
    "path",
    [
        "/models",
        f"/models/{REAL}",
        "/token",
        "/metrics",
        "/api-description",
        "/v1/models",
        f"/v1/models/{REAL}/ready",
        "/v2/",
        f"/v2/models/{REAL}/config",
        f"/v2/models/{REAL}/versions",
        "/v2/health",
        "/predictions/",
        "/predictions/../models",
        "/predictions/%2e%2e/models",
        f"/predictions/{REAL}/1.0/more",
        "/error",
    ],
)
def test_nothing_else_is_there(path: str, shared: str) -> None:
    connection = http.client.HTTPConnection(shared.removeprefix("http://"), timeout=TIMEOUT)
    connection.request("GET", path)
    response = connection.getresponse()
    assert response.status == 404
    told = json.loads(response.read())["error"]
    assert (told["code"] if isinstance(told, dict) else told[:9]) == "not_found"
    connection.close()


def test_a_large_image_fits_in_every_shape(shared: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1310, 1310, 3), dtype=np.uint8)
    image = encode(Image.fromarray(noise), "PNG", compress_level=0)
    assert 5_000_000 < len(image) <= 5 * 1024 * 1024
    text = base64.b64encode(image).decode()
    for response in (
        requests.post(shared + PREDICTIONS, data=image, headers=PNG, timeout=TIMEOUT),
        requests.post(shared + PREDICTIONS, files={"data": image}, timeout=TIMEOUT),
        requests.post(shared + PREDICTIONS, json={"data": text}, timeout=TIMEOUT),
    ):
        assert response.status_code == 200, response.text


def test_a_larger_body_does_not(shared: str) -> None:
    files = {"data": bytes(7 * 1024 * 1024)}
    response = requests.post(shared + PREDICTIONS, files=files, timeout=TIMEOUT)
    assert response.status_code == 413
    assert response.headers["Content-Type"] == "application/json"
    assert response.json()["error"]["code"] == "body_too_large"


def test_the_forms_that_everybody_tries_first(shared: str, cat: bytes, tmp_path: Path) -> None:
    """curl --data-binary names another content type, and curl -T another method."""
    image, text = tmp_path / "cat.png", tmp_path / "data.txt"
    image.write_bytes(cat)
    text.write_text("data=1&top_k=2%")

    def curl(*words: str) -> tuple[str, Any]:
        command = ["curl", "-sS", "-w", "%{http_code}", *words, shared + PREDICTIONS]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return out[-3:], json.loads(out[:-3])

    for words in (("--data-binary", f"@{image}"), ("-T", str(image)), ("-F", f"data=@{image}")):
        status, answer = curl(*words)
        assert (status, answer["predictions"][0]["label"]) == ("200", "Egyptian cat")
    status, answer = curl("--data-binary", f"@{text}")
    assert (status, answer["error"]["code"]) == ("415", "unsupported_format")


def test_curl_is_told_to_go_on(shared: str, cat: bytes, tmp_path: Path) -> None:
    """curl -T waits a second for this answer before it sends the image."""
    image = tmp_path / "cat.png"
    image.write_bytes(cat)
    command = ["curl", "-sv", "-T", str(image), shared + PREDICTIONS]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert re.findall(r"^< HTTP/1.1 (\d+)", told, re.MULTILINE) == ["100", "200"]


def test_options_have_dashes_or_underscores(shared: str, server: TorchServe, cat: bytes) -> None:
    for url, token in ((shared, {}), (server.client.inference, server.client.token("inference"))):
        for name in ("X-Classify-top_k", "x-classify-TOP-K"):
            headers = PNG | token | {name: "1", "X-Classify-TTA": "none"}
            response = requests.post(url + PREDICTIONS, data=cat, headers=headers, timeout=TIMEOUT)
            assert len(response.json()["predictions"]) == 1, (url, name)


def test_torchserves_own_errors_pass(shared: str) -> None:
    unknown = requests.get(f"{shared}/predictions/unknown", timeout=TIMEOUT)
    assert (unknown.status_code, unknown.json()["type"]) == (404, "ModelNotFoundException")
    empty = requests.post(shared + PREDICTIONS, data=b"", headers=PNG, timeout=TIMEOUT)
    assert (empty.status_code, empty.json()["error"]["code"]) == (400, "empty_request")


def test_a_client_may_send_so_many_requests(proxy: Proxy, server: TorchServe) -> None:
    """Whatever address it gives, where it is no load balancer."""
    site = site_of(server, rate="1r/m")
    proxy.start(site)

    def ask(session: requests.Session, number: int) -> requests.Response:
        headers = {"X-Forwarded-For": f"10.0.0.{number}"}
        return session.get(f"http://{site.listen}/ping", headers=headers, timeout=TIMEOUT)

    with requests.Session() as session:
        responses = [ask(session, number) for number in range(44)]
    assert [response.status_code for response in responses] == [200] * 41 + [429] * 3
    assert responses[-1].json()["error"]["code"] == "too_many_requests"
    assert responses[-1].headers["Retry-After"]


def test_an_ipv6_network_is_one_client(proxy: Proxy, server: TorchServe) -> None:
    """All addresses with the same 64 bits share a rate; IPv4 written as IPv6 has its own."""
    site = site_of(server, rate="1r/m", trusted=("127.0.0.1",))
    proxy.start(site)

    def ask(address: str) -> int:
        headers = {"X-Forwarded-For": address}
        url = f"http://{site.listen}/predictions/{REAL}?x"
        return requests.get(url, headers=headers, timeout=TIMEOUT).status_code

    same = [f"2001:db8:0:7:{number:x}::1" for number in range(42)]
    assert [ask(address) for address in same] == [400] * 41 + [429]
    assert [ask(address) for address in ("2001:DB8::7:0:0:0:2", "2001:db8:0:7::")] == [429] * 2
    others = ["2001:db8:0:8::1", "2001:db8::1", "::1", "192.0.2.1"]
    assert [ask(address) for address in others] == [400] * 4
    mapped = [f"::ffff:192.0.2.{number}" for number in range(45)]
    assert [ask(address) for address in mapped] == [400] * 45


def test_a_client_that_retries_waits_as_long_as_it_is_told(
    proxy: Proxy, server: TorchServe, cat: bytes
) -> None:
    site = site_of(server, rate="12r/m")
    proxy.start(site)
    spend(site)
    response = Client(f"http://{site.listen}", "", retries=6).predict(REAL, cat)
    assert response.status_code == 200
    retries = response.raw.retries
    assert retries and {tried.status for tried in retries.history} == {429}


def test_a_server_gets_no_more_large_images_than_it_holds(proxy: Proxy, server: TorchServe) -> None:
    site = site_of(server, rate="20r/s", trusted=("127.0.0.1",))
    proxy.start(site)
    noise = np.random.default_rng(0).integers(0, 256, (2000, 2400), np.uint8)
    large = encode(Image.fromarray(noise), "PNG", compress_level=1)
    assert 4_500_000 < len(large) < 5 * 1024 * 1024

    def ask(number: int) -> requests.Response:
        headers = PNG | {"X-Forwarded-For": f"10.0.0.{number}", "X-Classify-TTA": "none"}
        url = f"http://{site.listen}{PREDICTIONS}"
        return requests.post(url, data=large, headers=headers, timeout=TIMEOUT)

    with ThreadPoolExecutor(120) as pool:
        responses = list(pool.map(ask, range(120)))
    shed = [response for response in responses if response.status_code == 502]
    assert {response.status_code for response in responses} == {200, 502}
    assert shed[0].headers["Retry-After"] and len(shed) <= 72


def test_nobody_works_for_a_client_that_hung_up(
    proxy: Proxy, server: TorchServe, cat: bytes, tmp_path: Path
) -> None:
    """TorchServe would classify what it has, so nginx passes on no request whose client is gone."""
    site = site_of(server)
    proxy.start(site)
    with ThreadPoolExecutor(30) as pool:

        def hang_up(_: int) -> None:
            connection = half_sent(site, cat, tta="ten_crop")
            connection.send(cat[1000:])
            time.sleep(0.05)
            connection.close()

        list(pool.map(hang_up, range(30)))
    url = f"http://{site.listen}{PREDICTIONS}"
    assert requests.post(url, data=cat, headers=PNG, timeout=TIMEOUT).status_code == 200
    proxy.stop()
    asked = [entry["upstream"] for entry in access_log(tmp_path)]
    assert len(asked) <= 10 and {*asked} == {"unix:torchserve-1.sock"}


def test_a_trace_finds_its_request(
    proxy: Proxy, server: TorchServe, client: Client, tmp_path: Path
) -> None:
    site = site_of(server)
    proxy.start(site)
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    url = f"http://{site.listen}{PREDICTIONS}"
    identities = []
    for given in (
        trace,
        "00-" + "0" * 32 + "-b7ad6b7169203331-01",
        trace.upper(),
        f"{trace}-x",
        None,
    ):
        headers = PNG | ({"traceparent": given} if given else {})
        response = requests.post(url, data=b"x", headers=headers, timeout=TIMEOUT)
        assert response.status_code == 415
        identities.append(response.headers["X-Request-Id"])
    proxy.stop()
    written = (server.state / "logs" / "request_log.log").read_text().splitlines()
    for lines in (access_log(tmp_path), [json.loads(line) for line in written]):
        found = {line["request_id"]: line["traceparent"] for line in lines}
        assert [found[identity] for identity in identities] == [trace, "", "", "", ""]


def test_a_page_of_another_origin_asks_where_it_is_allowed(
    proxy: Proxy, server: TorchServe, cat: bytes
) -> None:
    """As a browser does (https://fetch.spec.whatwg.org/#http-cors-protocol); nobody by default."""
    site = site_of(server)
    app, other = "https://app.example", "https://other.example:8443"
    preflight = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type,x-classify-top-k",
    }

    def ask(method: str, origin: str, **request: Any) -> requests.Response:
        headers = {"Origin": origin} | request.pop("headers", {})
        url = f"http://{site.listen}{request.pop('path', PREDICTIONS)}"
        return requests.request(method, url, headers=headers, timeout=TIMEOUT, **request)

    proxy.start(site)
    assert ask("OPTIONS", app, headers=preflight).status_code == 405
    response = ask("POST", app, data=cat, headers=PNG)
    assert not [name for name in response.headers if name.startswith("Access-Control-")]
    proxy.start(replace(site, origins=(app, other)))
    for origin in (app, other):
        told = ask("OPTIONS", origin, headers=preflight)
        assert (told.status_code, told.content) == (204, b"")
        assert told.headers["Access-Control-Allow-Origin"] == origin
        assert {"POST", "PUT"} <= {*told.headers["Access-Control-Allow-Methods"].split(", ")}
        allowed = {*told.headers["Access-Control-Allow-Headers"].lower().split(", ")}
        options = {f"x-classify-{name.replace('_', '-')}" for name in Options.model_fields}
        assert {"content-type", "inference-header-content-length"} | options <= allowed
        for answer in (
            ask("POST", origin, data=cat, headers=PNG),
            ask("POST", origin, data=b"x", headers=PNG),
            ask("GET", origin, path="/absent"),
            ask("GET", origin, path="/v2"),
        ):
            assert answer.headers["Access-Control-Allow-Origin"] == origin
            assert "x-request-id" in answer.headers["Access-Control-Expose-Headers"].lower()
            assert "Origin" in answer.headers["Vary"]
            assert "Access-Control-Allow-Credentials" not in answer.headers
    for stranger in (
        "https://app.example.evil",
        "http://app.example",
        "https://app.example:1",
        "*",
    ):
        assert ask("OPTIONS", stranger, headers=preflight).status_code == 405
        assert "Access-Control-Allow-Origin" not in ask("GET", stranger, path="/ping").headers
    for bad in (
        "*",
        "null",
        "app.example",
        "https://app.example/",
        'https://a" 1; b',
        "https://*.x",
    ):
        with pytest.raises(ProxyError, match="allow-origin"):
            proxy.start(replace(site, origins=(bad,)))


def test_no_server_is_an_error_of_its_own(proxy: Proxy, server: TorchServe) -> None:
    absent = Upstream(f"http://127.0.0.1:{free_port()}", server.state / "key_file.json")
    site = replace(site_of(server), upstreams=(absent, absent))
    proxy.start(site)
    for _ in range(5):
        response = requests.post(
            f"http://{site.listen}{PREDICTIONS}", data=b"x", headers=PNG, timeout=TIMEOUT
        )
        assert response.status_code == 502
        assert response.json()["error"]["code"] == "unavailable"
    with pytest.raises(RunError, match="502"):
        client = Client(f"http://{site.listen}", "")
        list(classify(client, REAL, {}, [photos.greeting()], 1, retries=1))


def test_a_bad_configuration_is_refused(proxy: Proxy, server: TorchServe) -> None:
    for rate in ("many", "0r/s", "-1r/s", "nanr/s", "99999999999999999999r/s", "1１r/s"):
        with pytest.raises(ProxyError, match="rate"):
            proxy.start(site_of(server, rate=rate))
    site = site_of(server)
    for port in ("0", "65536", "9" * 5000):
        upstream = Upstream(f"http://127.0.0.1:{port}", server.state / "key_file.json")
        for bad in (
            replace(site, listen=f"127.0.0.1:{port}"),
            replace(site, probes=f"127.0.0.1:{port}"),
            replace(site, upstreams=(upstream,)),
        ):
            with pytest.raises(ProxyError, match="from 1 to 65535"):
                proxy.start(bad)
    with pytest.raises(ProxyError) as refusal:
        proxy.start(replace(site, listen="999.1.1.1:8000"))
    assert len(str(refusal.value).splitlines()) == 1
    assert proxy.pid is None


def test_new_tokens_are_taken_on_at_once(proxy: Proxy, second: TorchServe, cat: bytes) -> None:
    """nginx sends no token of yesterday, after a restart or amid a rotation."""
    site = site_of(second)
    proxy.start(site)
    url = f"http://{site.listen}{PREDICTIONS}"
    headers = PNG | {"X-Classify-TTA": "none"}

    def ask(_: int = 0) -> int:
        return requests.post(url, data=cat, headers=headers, timeout=TIMEOUT).status_code

    assert ask() == 200
    second.stop()
    second.start([f"{REAL}={REAL}.mar"])
    assert ask() == 200
    with ThreadPoolExecutor(4) as pool:
        asked = pool.map(ask, range(80))
        for _ in range(20):
            second.client.rotate()
        assert set(asked) == {200}
    metrics = requests.get(f"http://{site.probes}/metrics", timeout=TIMEOUT).text
    assert 'refused_tokens_total{server="torchserve-1"} 0\n' in metrics


def test_a_refused_token_is_not_the_clients_fault(
    proxy: Proxy, server: TorchServe, cat: bytes, tmp_path: Path
) -> None:
    other_keys = tmp_path / "key_file.json"
    other_keys.write_text('{"inference": {"key": "x", "expiration time": "2026-01-02T03:04:05Z"}}')
    site = replace(site_of(server), upstreams=(Upstream(server.client.inference, other_keys),))
    proxy.start(site)
    url = f"http://{site.listen}{PREDICTIONS}"
    response = requests.post(url, data=cat, headers=PNG, timeout=TIMEOUT)
    assert (response.status_code, response.headers["Retry-After"]) == (503, "2")
    assert response.json()["error"]["code"] == "unavailable"
    metrics = requests.get(f"http://{site.probes}/metrics", timeout=TIMEOUT).text
    samples = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if line[0] != "#")
    server_1 = '{server="torchserve-1"}'
    assert int(samples[f"visionserve_gate_refused_tokens_total{server_1}"]) > 0
    written = int(samples[f"visionserve_gate_key_written_seconds{server_1}"])
    assert written == int(other_keys.stat().st_mtime)
    assert samples[f"visionserve_gate_key_expires_seconds{server_1}"] == "1767323040"
    assert samples["visionserve_gate_ready"] == "0"


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Move the wall clock of the nginx that the test starts by so many seconds."""
    (library,) = Path("/usr/lib").glob("*/faketime/libfaketime.so.1")
    file = tmp_path / "clock"
    file.write_text("+0")
    settings = {"TIMESTAMP_FILE": str(file), "NO_CACHE": "1", "DONT_FAKE_MONOTONIC": "1"}
    for name, value in settings.items():
        monkeypatch.setenv(f"FAKETIME_{name}", value)
    # nginx's workers have the variables of their environment that its configuration names.
    shutil.copytree(paths.CONFIG / "nginx", tmp_path / "config" / "nginx")
    shutil.copy(paths.CONFIG / "openapi.json", tmp_path / "config")
    config = tmp_path / "config" / "nginx" / "nginx.conf"
    names = "".join(f"env FAKETIME_{name};\n" for name in settings)
    config.write_text(names + config.read_text())
    monkeypatch.setattr(paths, "CONFIG", tmp_path / "config")
    monkeypatch.setenv("LD_PRELOAD", str(library))

    def move(seconds: int) -> None:
        file.write_text(f"{seconds:+}")

    return move


def test_what_cannot_answer_is_not_ready_and_says_so_at_once(
    second: TorchServe,
    proxy: Proxy,
    clock: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server whose workers hang is healthy by TorchServe's own `/ping`.

    nginx's clock is set back by an hour after the last answer, and again after a request.
    """
    site = site_of(second)
    proxy.start(site)
    monkeypatch.undo()
    pings = [f"http://{address}/ping" for address in (site.listen, site.probes)]
    unknown = f"http://{site.listen}/predictions/unknown"

    def statuses() -> list[int]:
        return [requests.get(ping, timeout=TIMEOUT).status_code for ping in pings]

    def ask(timeout: float = TIMEOUT) -> requests.Response:
        url = f"http://{site.listen}{PREDICTIONS}"
        return requests.post(url, data=b"x", headers=PNG, timeout=timeout)

    def refused_at_once() -> bool:
        try:
            response = ask(timeout=1)
        except requests.Timeout:
            return False
        assert (response.status_code, response.json()["error"]["code"]) == (503, "unavailable")
        return True

    def until(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.2)

    assert statuses() == [200, 200]
    assert requests.get(unknown, timeout=TIMEOUT).status_code == 404
    assert requests.post(pings[1], timeout=TIMEOUT).status_code == 405
    workers = [worker["pid"] for worker in second.client.describe(REAL)[0]["workers"]]
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    try:
        clock(-3600)
        until(lambda: statuses() == [503, 503])
        date = requests.get(unknown, timeout=TIMEOUT).headers["Date"]
        assert 3500 < time.time() - parsedate_to_datetime(date).timestamp() < 3700
        token = second.client.token("inference")
        healthy = requests.get(f"{second.client.inference}/ping", headers=token, timeout=TIMEOUT)
        assert healthy.status_code == 200
        with ThreadPoolExecutor(1) as pool:
            hanging = pool.submit(ask)
            time.sleep(1)
            clock(-7200)
            until(refused_at_once)
            assert not hanging.done()
            assert requests.get(unknown, timeout=TIMEOUT).status_code == 404
            for worker in workers:
                os.kill(worker, signal.SIGCONT)
            assert hanging.result().status_code == 415
    finally:
        for worker in workers:
            os.kill(worker, signal.SIGCONT)
    until(lambda: statuses() == [200, 200])
    until(lambda: ask().status_code == 415)


def test_a_clock_that_is_set_back_keeps_no_server_away(
    server: TorchServe,
    proxy: Proxy,
    clock: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server that could not be connected to is asked again once it is there."""
    site = site_of(server)
    port = free_port()
    absent = replace(site.upstreams[0], url=f"http://127.0.0.1:{port}")
    proxy.start(replace(site, upstreams=(*site.upstreams, absent)))
    monkeypatch.undo()

    def ask() -> int:
        url = f"http://{site.listen}{PREDICTIONS}"
        return requests.post(url, data=b"x", headers=PNG, timeout=TIMEOUT).status_code

    assert {ask() for _ in range(10)} == {415}
    clock(-3600)
    with closing(socket.create_server(("127.0.0.1", port))) as other:
        other.settimeout(0.1)
        deadline = time.monotonic() + 20
        asked = False
        while not asked and time.monotonic() < deadline:
            with ThreadPoolExecutor(1) as pool:
                status = pool.submit(ask)
                with suppress(TimeoutError):
                    other.accept()[0].close()
                    asked = True
                assert status.result() == 415
    assert asked


def test_start_says_where_the_earlier_configuration_goes_on(
    proxy: Proxy, server: TorchServe, second: TorchServe, tmp_path: Path
) -> None:
    site = site_of(server)
    proxy.start(site)
    with closing(socket.socket()) as bystander:
        bystander.bind(("127.0.0.1", 0))
        bystander.listen()
        taken = f"127.0.0.1:{bystander.getsockname()[1]}"
        with pytest.raises(ProxyError, match=r"earlier configuration: .*in use"):
            proxy.start(replace(site, listen=taken, upstreams=(upstream_of(second),)))
    absent = replace(upstream_of(second), key_file=tmp_path / "absent.json")
    with pytest.raises(FileNotFoundError):
        proxy.start(replace(site, upstreams=(absent,)))
    url = f"http://{site.listen}{PREDICTIONS}"
    assert requests.post(url, data=b"x", headers=PNG, timeout=TIMEOUT).status_code == 415
    assert requests.get(f"http://{site.listen}/ping", timeout=TIMEOUT).status_code == 200
    for _ in range(5):
        site = replace(site, listen=f"127.0.0.1:{free_port()}")
        proxy.start(site)
        assert requests.get(f"http://{site.listen}/ping", timeout=TIMEOUT).status_code == 200
    keys = list((tmp_path / "nginx").glob("keys-*"))
    assert len(keys) == 2, "Workers of the last configuration but one may still have requests."


def nginxes(state: Path) -> set[int]:
    """The nginx processes that work in a folder."""
    found = psutil.process_iter(["name", "cwd"])
    return {p.pid for p in found if (p.info["name"], p.info["cwd"]) == ("nginx", str(state))}


def half_sent(site: Site, cat: bytes, tta: str = "none") -> http.client.HTTPConnection:
    """A request whose body is not complete, so that a worker of nginx has to wait for it."""
    connection = http.client.HTTPConnection(site.listen, timeout=TIMEOUT)
    connection.putrequest("POST", PREDICTIONS)
    for name, value in (PNG | {"X-Classify-TTA": tta, "Content-Length": len(cat)}).items():
        connection.putheader(name, str(value))
    connection.endheaders()
    connection.send(cat[:1000])
    return connection


@pytest.mark.parametrize("how", ["killed", "ending"])
def test_what_a_master_left_is_ended_and_the_site_answers(
    how: str, proxy: Proxy, server: TorchServe, cat: bytes, tmp_path: Path
) -> None:
    state = (tmp_path / "nginx").resolve()
    site = site_of(server)
    proxy.start(site)
    assert proxy.pid is not None
    left = nginxes(state) - {proxy.pid}
    pending = half_sent(site, cat)
    os.kill(proxy.pid, signal.SIGQUIT if how == "ending" else signal.SIGKILL)
    time.sleep(0.5)
    with ThreadPoolExecutor(2) as pool:
        again = replace(site, probes=f"127.0.0.1:{free_port()}")
        started = pool.submit(proxy.start, again)
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline and not started.done():
            with closing(socket.socket()) as probe:
                if probe.connect_ex(("127.0.0.1", int(again.probes.rpartition(":")[2]))) == 0:
                    break
            time.sleep(0.05)
        pending.send(cat[1000:])
        assert pending.getresponse().status == 200, "a request was cut off"
        pending.close()
        started.result()
    response = requests.get(f"http://{again.probes}/ping", timeout=TIMEOUT)
    assert response.status_code == 200
    url = f"http://{site.listen}{PREDICTIONS}"
    assert requests.post(url, data=b"x", headers=PNG, timeout=TIMEOUT).status_code == 415
    assert left.isdisjoint(nginxes(state))
    os.kill(proxy.pid, signal.SIGKILL)
    stop = [sys.executable, "-m", "scripts", "proxy", "stop", "--state", str(state)]
    for told in ("its master had died", "No nginx ran."):
        done = subprocess.run(stop, cwd=paths.ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert told in done.stdout and len(done.stdout.splitlines()) == 1
        assert nginxes(state) == set()


def test_two_starts_at_once_end_with_one_nginx(
    proxy: Proxy, server: TorchServe, tmp_path: Path
) -> None:
    first = site_of(server)
    sites = [first, replace(first, probes=f"127.0.0.1:{free_port()}")] * 2
    with ThreadPoolExecutor(4) as pool:
        for started in [pool.submit(Proxy(tmp_path / "nginx").start, site) for site in sites]:
            started.result()
    masters = [pid for pid in nginxes(tmp_path / "nginx") if psutil.Process(pid).ppid() == 1]
    assert len(masters) == 1 and proxy.pid in masters
    assert requests.get(f"http://{first.listen}/ping", timeout=TIMEOUT).status_code == 200


def test_no_request_is_lost_when_a_server_dies(
    address: str, proxy: Proxy, client: Client, second: TorchServe, tmp_path: Path
) -> None:
    images = [path.read_bytes() for path in photos.packaged()[:3]]
    answers = [client.predict(REAL, image, tta="none").json() for image in images]
    headers = PNG | {"X-Classify-TTA": "none"}
    total = 240

    def ask(number: int) -> bool:
        response = requests.post(
            address + PREDICTIONS, data=images[number % 3], headers=headers, timeout=TIMEOUT
        )
        assert response.status_code == 200, response.text
        return bool(response.json() == answers[number % 3])

    assert second.pid is not None
    family = psutil.Process(second.pid).children(recursive=True)
    assert family
    with ThreadPoolExecutor(12) as pool:
        futures = [pool.submit(ask, number) for number in range(total)]
        for _ in itertools.islice(as_completed(futures), total // 4):
            pass
        os.killpg(os.getpgid(second.pid), signal.SIGKILL)
        assert [future.result() for future in futures] == [True] * total
    _, alive = psutil.wait_procs(family, timeout=TIMEOUT)
    assert not alive
    assert second.pid is None

    proxy.stop()
    asked = access_log(tmp_path)
    assert len(asked) == total
    dead = "unix:torchserve-2.sock"
    assert any(entry["upstream"] == dead for entry in asked), "it never answered"
    assert any(f"{dead}, " in str(entry["upstream"]) for entry in asked), "nothing was asked again"


def test_one_setting_of_a_profile_moves_the_size_of_an_image_everywhere(
    server: TorchServe, store: Path, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TorchServe's bodies and nginx's follow it; the session's own archive still has 5 MB."""
    config = tmp_path / "config"
    shutil.copytree(paths.CONFIG, config)
    for profile in ("edge", "server"):
        file = config / profile / "model-config.yaml"
        file.write_text(
            file.read_text().replace("handler:", "handler:\n  max_image_bytes: 10000000")
        )
    monkeypatch.setattr(paths, "CONFIG", config)
    edge = TorchServe("edge", tmp_path / "edge", store)
    assert int(edge.properties["max_request_size"]) > 10_000_000 * 4 / 3
    site = site_of(server)
    proxy.start(site)
    url = f"http://{site.listen}/predictions/{REAL}"
    for size, code in ((9_000_000, "image_too_large"), (20_000_000, "body_too_large")):
        response = requests.post(url, b"\xff\xd8\xff" + bytes(size), timeout=60)
        assert (response.status_code, response.json()["error"]["code"]) == (413, code)
