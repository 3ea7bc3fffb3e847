"""nginx in front of two real TorchServes, one of which dies."""

import base64
import hashlib
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
import threading
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
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

from tests.helpers import RANDOM, REAL, called, encode, packed, site_of, spend, upstream_of
from visionserve.config import Options
from visionserve_tools import paths, photos
from visionserve_tools.archive.hashes import read_record, sha256_of, write_record
from visionserve_tools.batch.rows import RunError
from visionserve_tools.batch.server_engine import classify
from visionserve_tools.commands import proxy as proxy_command
from visionserve_tools.server.canary import Canary
from visionserve_tools.server.client import Client
from visionserve_tools.server.nginx import Proxy, ProxyError, Site, Upstream
from visionserve_tools.server.ports import free_port, free_ports
from visionserve_tools.server.properties import read_properties
from visionserve_tools.server.torchserve import TorchServe

TIMEOUT = 60
PREDICTIONS = f"/predictions/{REAL}"
PNG = {"Content-Type": "image/png"}
Start = Callable[..., str]


@pytest.fixture(scope="module")
def other(
    store: Path, single_config: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TorchServe]:
    """A second TorchServe, of one worker, with keys of its own; it may run or not."""
    folder, archive = tmp_path_factory.mktemp("other"), f"{REAL}.mar"
    packed(store / archive, single_config, REAL, folder / archive)
    other = TorchServe("server", folder / "state", folder, free_ports(), unrecorded=True)
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
    site = site_of(server, rate="30r/m")
    proxy.start(site)
    spend(site)
    response = Client(f"http://{site.listen}", "", retries=6).predict(REAL, cat)
    assert response.status_code == 200
    retries = response.raw.retries
    assert retries and {tried.status for tried in retries.history} == {429}


def test_a_server_gets_no_more_large_images_than_it_holds(proxy: Proxy, server: TorchServe) -> None:
    """48 of them wait for its workers, which stand still until the others are refused."""
    site = site_of(server, rate="20r/s", trusted=("127.0.0.1",))
    proxy.start(site)
    large = encode(Image.new("RGB", (64, 64)), "PNG") + os.urandom(4_600_000)

    def ask(number: int) -> requests.Response:
        headers = PNG | {"X-Forwarded-For": f"10.0.0.{number}", "X-Classify-TTA": "none"}
        url = f"http://{site.listen}{PREDICTIONS}"
        return requests.post(url, data=large, headers=headers, timeout=TIMEOUT)

    workers = [worker["pid"] for worker in server.client.describe(REAL)[0]["workers"]]
    with ThreadPoolExecutor(60) as pool:
        try:
            for worker in workers:
                os.kill(worker, signal.SIGSTOP)
            asked = [pool.submit(ask, number) for number in range(60)]
            responses = [one.result() for one in itertools.islice(as_completed(asked), 12)]
        finally:
            for worker in workers:
                os.kill(worker, signal.SIGCONT)
    assert {response.status_code for response in responses} == {502}
    assert responses[0].headers["Retry-After"]
    assert sorted(one.result().status_code for one in asked) == [200] * 48 + [502] * 12


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
    for path in ("/", PREDICTIONS):
        asked = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
        page = requests.get(f"http://{site.listen}{path}", headers=asked, timeout=TIMEOUT)
        assert (page.status_code, page.headers["Retry-After"]) == (502, "2")
        assert page.headers["Content-Type"] == "text/html; charset=utf-8"
        assert '<meta http-equiv="refresh" content="5">' in page.text
        style = page.text.partition("<style>")[2].partition("</style>")[0]
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        policy = f"default-src 'none'; style-src 'sha256-{digest}'; frame-ancestors 'none'"
        assert page.headers["Content-Security-Policy"] == policy
        plain = requests.get(f"http://{site.listen}{path}", timeout=TIMEOUT)
        assert plain.json()["error"]["code"] == "unavailable"
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
    """Move the wall clock of the nginx that the test starts by so many seconds.

    It is also less patient with servers that do not answer.
    """
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
    gate = config.with_name("gate.lua")
    patient, hasty = "local PATIENCE = 12 ", "local PATIENCE = 4 "
    assert patient in gate.read_text()
    gate.write_text(gate.read_text().replace(patient, hasty))
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


def test_no_request_is_lost_as_nginx_reloads_while_a_server_is_absent(
    server: TorchServe, proxy: Proxy
) -> None:
    """A new configuration, and a clock that is set back, have it reload."""
    site = site_of(server)
    absent = replace(site.upstreams[0], url=f"http://127.0.0.1:{free_port()}")
    proxy.start(replace(site, upstreams=(*site.upstreams, absent)))
    assert proxy.pid is not None
    master, over = psutil.Process(proxy.pid), threading.Event()

    def ask() -> set[int]:
        url, found = f"http://{site.listen}{PREDICTIONS}", set()
        while not over.is_set():
            found.add(requests.post(url, data=b"x", headers=PNG, timeout=TIMEOUT).status_code)
        return found

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        try:
            for _ in range(30):
                master.send_signal(signal.SIGHUP)
                time.sleep(0.1)
        finally:
            over.set()
    assert set().union(*(one.result() for one in asking)) == {415}


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
    for _ in range(3):
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


def test_a_body_that_comes_after_the_end_began_is_answered(
    proxy: Proxy, site: Site, cat: bytes, tmp_path: Path
) -> None:
    """nginx removes its own sockets at once, between its parts as well."""
    dead = Upstream(f"http://127.0.0.1:{free_port()}", site.upstreams[0].key_file)
    proxy.start(replace(site, upstreams=(dead, *site.upstreams)))
    pending = [half_sent(site, cat) for _ in range(4)]
    time.sleep(0.2)
    assert proxy.pid is not None
    os.kill(proxy.pid, signal.SIGQUIT)
    deadline = time.monotonic() + TIMEOUT
    while list((tmp_path / "nginx").glob("*.sock")) and time.monotonic() < deadline:
        time.sleep(0.02)
    for each in pending:
        each.send(cat[1000:])
    for each in pending:
        response = each.getresponse()
        answer = json.load(response)
        assert response.status == 200 and answer["predictions"], answer
        each.close()


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
    (master := psutil.Process(proxy.pid)).kill()
    psutil.wait_procs([master])
    for told in ("its master had died", "No nginx ran."):
        done = called("proxy", "stop", "--state", state)
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
    assert proxy.status().startswith(f"runs at http://{first.listen}, probes at http://127")
    assert proxy.status().endswith(f", process {proxy.pid}")
    assert requests.get(f"http://{first.listen}/ping", timeout=TIMEOUT).status_code == 200


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


CLIENTS = 1000
# Added to a handler's entry point: its model raises while there is a file.
BREAKS = """
from visionserve.runtimes.openvino import OpenVINORuntime

answers = OpenVINORuntime.passed


def passed(self, pixels):
    if Path({switch!r}).exists():
        raise RuntimeError("broken")
    return answers(self, pixels)


OpenVINORuntime.passed = passed
"""


@pytest.fixture(scope="module")
def switch(
    server: TorchServe, newer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """Have the server serve version 2.0 of the random ResNet-18, which fails while a file is there.

    Yields:
        The file.
    """
    switch, copy = tmp_path_factory.mktemp("switch") / "broken", newer.with_name("breaks.mar")
    with zipfile.ZipFile(newer) as packed, zipfile.ZipFile(copy, "w") as breaks:
        for name in packed.namelist():
            more = BREAKS.format(switch=str(switch)) if name == "visionserve_handler.py" else ""
            breaks.writestr(name, packed.read(name) + more.encode())
    kept = read_record(newer)
    assert kept
    write_record(copy, {**kept, "sha256": sha256_of(copy)})
    server.register(copy.name)
    yield switch
    switch.unlink(missing_ok=True)
    server.client.unregister(RANDOM, "2.0")
    for file in (copy, copy.with_suffix(".json")):
        file.unlink()


def sent(*words: str, state: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Run `visionserve proxy start` on a state, and return what it tells, or its one-line error."""
    sys.argv = ["visionserve proxy", "start", "--state", str(state), *words]
    code = proxy_command.main()
    told = capsys.readouterr()
    assert bool(code) == bool(told.err) and len(told.err.splitlines()) <= 1, told
    return told.out + told.err


def ask_as(
    address: str,
    site: Site,
    body: bytes,
    path: str = f"/predictions/{RANDOM}",
    method: str = "POST",
    ask: Callable[..., requests.Response] = requests.request,
) -> requests.Response:
    """Ask as a client of an address, in a connection of its own unless `ask` keeps one."""
    headers = {"X-Forwarded-For": address, "X-Classify-TTA": "none"}
    if method == "POST":
        headers["Content-Type"] = "application/json" if body[:1] == b"{" else "image/png"
    url = f"http://{site.listen}{path}"
    return ask(method, url, data=body, headers=headers, timeout=TIMEOUT)


def counted(site: Site, metric: str) -> dict[str, float]:
    """What nginx counts of the random ResNet-18, by version."""
    text = requests.get(f"http://{site.probes}/metrics", timeout=TIMEOUT).text
    found = re.findall(rf'^{metric}{{model="{RANDOM}",version="(\S+)"}} (\S+)$', text, re.MULTILINE)
    return {version: float(value) for version, value in found}


def torchserve_counted(server: TorchServe, metric: str) -> dict[str, float]:
    """What TorchServe itself counts of the random ResNet-18, by version; `default` for none."""
    address = read_properties(server.state / "config.properties")["metrics_address"]
    text = requests.get(f"{address}/metrics", timeout=TIMEOUT).text
    found: dict[str, float] = {}
    for labels, value in re.findall(rf"^{metric}{{(.*)}} (\S+)$", text, re.MULTILINE):
        pairs: dict[str, str] = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if RANDOM in pairs.values():
            version = pairs.get("ModelVersion") or pairs["model_version"]
            found[version] = found.get(version, 0) + float(value)
    return found


@pytest.fixture
def canary(proxy: Proxy, server: TorchServe, switch: Path) -> Site:
    """A site with a canary of 5 %, whose clients are the addresses that a load balancer names."""
    own = replace(site_of(server, trusted=("127.0.0.1",)), model=RANDOM)
    site = replace(own, canaries=(Canary(RANDOM, "2.0", 5),))
    proxy.start(site)
    return site


def versions_of(site: Site, cat: bytes, addresses: Iterable[str]) -> dict[str, str]:
    """Which version answers each client."""
    with ThreadPoolExecutor(4) as pool:
        answers = {one: pool.submit(ask_as, one, site, cat) for one in addresses}
    return {one: answer.result().json()["version"] for one, answer in answers.items()}


def test_a_canary_gets_its_share_of_the_clients_and_all_that_they_ask(
    canary: Site, server: TorchServe, cat: bytes
) -> None:
    """By TorchServe's own count of 1,000 clients, and by the answers at every door."""
    before = torchserve_counted(server, "ts_inference_requests_total")
    numbers = iter(range(CLIENTS))

    def ask_on(_: int) -> None:
        connection = http.client.HTTPConnection(canary.listen, timeout=TIMEOUT)
        for number in numbers:
            headers = PNG | {"X-Forwarded-For": f"10.9.{number // 250}.{number % 250}"}
            connection.request("POST", f"/predictions/{RANDOM}", b"x", headers)
            response = connection.getresponse()
            assert response.status == 415 and response.read()
        connection.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask_on, range(4)))
    now = torchserve_counted(server, "ts_inference_requests_total")
    rose = {version: count - before.get(version, 0) for version, count in now.items()}
    assert sum(rose.values()) == CLIENTS and 0.04 * CLIENTS <= rose["2.0"] <= 0.06 * CLIENTS
    assert counted(canary, "visionserve_gate_requests_total") == {
        "2.0": rose["2.0"],
        "default": CLIENTS - rose["2.0"],
    }
    assert counted(canary, "visionserve_gate_failures_total") == {"2.0": 0, "default": 0}
    assert all(value > 0 for value in counted(canary, "visionserve_gate_seconds_total").values())

    found = versions_of(canary, cat, (f"2001:db8:0:{number:x}::1" for number in range(24)))
    text = base64.b64encode(cat).decode()
    v1 = json.dumps({"instances": [{"b64": text}]}).encode()
    v2 = json.dumps(
        {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [text]}]}
    ).encode()
    for version in ("1.0", "2.0"):
        address = next(one for one, answered in found.items() if answered == version)
        other = address.replace("::1", ":7::2")
        for path, body in (
            ("/invocations", cat),
            (f"/explanations/{RANDOM}", cat),
            (f"/v1/models/{RANDOM}:predict", v1),
            (f"/v1/models/{RANDOM}:explain", v1),
            (f"/v2/models/{RANDOM}/infer", v2),
            (f"/v2/models/{RANDOM}/explain", v2),
        ):
            answer = ask_as(other, canary, body, path)
            assert re.findall(r'version": ?"([\d.]+)"', answer.text)[0] == version, (
                path,
                answer.text,
            )
        page = ask_as(other, canary, b"", "/", "GET")
        (facts,) = re.findall(r'id="facts">(.*?)</script>', page.text, re.DOTALL)
        assert json.loads(facts)["version"] == version
        for named in ("1.0", "2.0"):
            path = f"/predictions/{RANDOM}/{named}"
            assert ask_as(other, canary, cat, path).json()["version"] == named
        assert ask_as(other, canary, cat, f"/predictions/{REAL}").json()["model"] == REAL


def test_a_canary_is_changed_under_load_and_nothing_is_lost(
    canary: Site,
    server: TorchServe,
    cat: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each command is one, without what nginx was started with; each client keeps its version."""
    monkeypatch.setattr(sys, "argv", sys.argv)
    state = (tmp_path / "nginx").resolve()
    processes = nginxes(state)
    done: list[tuple[str, float, requests.Response]] = []
    over = threading.Event()

    def ask_on(number: int) -> None:
        """Half of the clients keep their connection."""
        address = f"10.9.0.{number}"
        with requests.Session() as session:
            while not over.is_set():
                ask = session.request if number % 2 else requests.request
                began = time.monotonic()
                done.append((address, began, ask_as(address, canary, cat, ask=ask)))

    def change(share: str, default: str | None = None) -> tuple[float, float]:
        """Make a change and have clients ask. Returns when it was made, and when they had asked."""
        told = sent("--canary", f"{RANDOM}=2.0:{share}", state=state, capsys=capsys)
        assert nginxes(state) == processes, "new ones would close connections that clients keep"
        text = f"{RANDOM} 2.0 answers {share.removesuffix('%')} % of the model's clients."
        assert told.splitlines()[1:] == [text] * (share != "0%")
        if default:
            server.client.set_default(RANDOM, default)
        changed, count = time.monotonic(), len(done)
        while len(done) < count + 12:
            assert not any(one.done() for one in asking)
            time.sleep(0.02)
        return changed, time.monotonic()

    def answered(since: float, until: float) -> dict[str, set[str]]:
        """Which versions answered each client's requests that began in a time."""
        found: dict[str, set[str]] = {}
        for address, began, response in done:
            if since <= began < until:
                found.setdefault(address, set()).add(response.json()["version"])
        return found

    with ThreadPoolExecutor(6) as pool:
        asking = [pool.submit(ask_on, number) for number in range(6)]
        try:
            changes = [("100%", None), ("0%", None), ("50%", None), ("100%", "2.0"), ("0%", None)]
            times = [change(*one) for one in changes]
        finally:
            over.set()
            for one in asking:
                one.result()
            server.client.set_default(RANDOM, "1.0")
    assert [response.text for _, _, response in done if response.status_code != 200] == []
    every, none, half, default, finished = (answered(*one) for one in times)
    for found, version in ((every, "2.0"), (none, "1.0"), (default, "2.0"), (finished, "2.0")):
        assert {*map(frozenset, found.values())} == {frozenset({version})}
    assert {*map(frozenset, half.values())} == {frozenset({"1.0"}), frozenset({"2.0"})}


def test_a_broken_canary_costs_its_clients_alone(
    canary: Site, server: TorchServe, switch: Path, cat: bytes, proxy: Proxy
) -> None:
    """What nginx counts is what its clients saw; back at 0 %, all is well."""
    proxy.start(replace(canary, canaries=(Canary(RANDOM, "2.0", 50),)))
    found = versions_of(canary, cat, (f"10.9.1.{number}" for number in range(8)))
    lucky, unlucky = (
        [address for address, version in found.items() if version == one] for one in ("1.0", "2.0")
    )
    assert lucky and unlucky
    before = counted(canary, "visionserve_gate_requests_total")
    switch.touch()
    try:
        with ThreadPoolExecutor(6) as pool:
            asked = [
                (address in lucky, pool.submit(ask_as, address, canary, cat))
                for _ in range(3)
                for address in (*lucky, *unlucky)
            ]
            statuses = [(well, answer.result().status_code) for well, answer in asked]
    finally:
        switch.unlink()
    assert {status for well, status in statuses if well} == {200}
    failed = [status for well, status in statuses if not well]
    # 504 where a request waited for a worker that was being started.
    assert failed and set(failed) <= {500, 503, 504}
    failures = counted(canary, "visionserve_gate_failures_total")
    assert failures == {"2.0": len(failed), "default": 0}
    now = counted(canary, "visionserve_gate_requests_total")
    assert now["2.0"] - before["2.0"] == len(failed)
    assert now["default"] - before["default"] == len(statuses) - len(failed)
    proxy.start(replace(canary, canaries=()))
    assert {*versions_of(canary, cat, unlucky).values()} == {"1.0"}


def test_a_canary_of_a_container_is_taken_back(
    server: TorchServe,
    switch: Path,
    cat: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Where nginx runs in the foreground, another process's command changes it, too."""
    site, state = site_of(server), tmp_path / "nginx"
    (upstream,) = site.upstreams
    words = ("--state", state, "--upstream", upstream.url, upstream.key_file, "--model", RANDOM)
    addresses = ("--listen", site.listen, "--probes", site.probes)
    command = [sys.executable, "-m", "visionserve_tools", "proxy", "run", *words, *addresses]
    every = ("--canary", f"{RANDOM}=2.0:100%")
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([*map(str, command), *every], cwd=paths.ROOT, stderr=log)
    try:
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline and not Proxy(state).pid:
            time.sleep(0.1)
        assert ask_as("10.0.0.1", site, cat).json()["version"] == "2.0"
        monkeypatch.setattr(sys, "argv", sys.argv)
        assert "answers at" in sent("--canary", f"{RANDOM}=2.0:0%", state=state, capsys=capsys)
        assert ask_as("10.0.0.1", site, cat).json()["version"] == "1.0"
    finally:
        process.send_signal(signal.SIGQUIT)
        assert process.wait(TIMEOUT) == 0


def test_a_canary_that_cannot_be_is_refused_in_a_line(
    canary: Site,
    second: TorchServe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And the earlier configuration goes on."""
    monkeypatch.setattr(sys, "argv", sys.argv)
    state = tmp_path / "nginx"
    written = (state / "nginx.conf").read_bytes()
    key = second.state / "key_file.json"
    upstream = ("--upstream", second.client.inference, str(key))
    for words, said in (
        (("--canary", f"{RANDOM}=3.0:5%"), f"has no {RANDOM} 3.0: visionserve manage register"),
        (("--canary", "absent=2.0:5%"), "has no absent 2.0"),
        ((*upstream, "--canary", f"{RANDOM}=2.0:5%"), f"{second.client.inference} has no {RANDOM}"),
        (("--canary", "a=2:1%", "a=3:1%"), "canary: a has several"),
    ):
        told = sent(*words, state=state, capsys=capsys)
        assert said in told, told
    other = tmp_path / "other"
    told = sent("--canary", "a=2:1%", state=other, capsys=capsys)
    assert told == "Give --upstream: no nginx was started here before.\n"
    other.mkdir()
    (other / "site.json").write_bytes(b"{")
    told = sent("--canary", "a=2:1%", state=other, capsys=capsys)
    assert told == f"{other}/site.json: is damaged; give --upstream.\n"
    for text in ("101%", "-1%", "5", "0.001%", "nan%", "", "٥%"):
        with pytest.raises(SystemExit):
            sent("--canary", f"{RANDOM}=2.0:{text}", state=state, capsys=capsys)
        assert "argument --canary: " in capsys.readouterr().err.splitlines()[-1]
    for named in ("a/b=2:5%", "a=2;x:5%", "=2:5%", 'a"=2:5%'):
        with pytest.raises(SystemExit):
            sent("--canary", named, state=state, capsys=capsys)
    assert (state / "nginx.conf").read_bytes() == written


def test_no_request_is_lost_when_a_server_dies_and_comes_back(
    site: Site, proxy: Proxy, client: Client, second: TorchServe, tmp_path: Path
) -> None:
    """nginx sends it no token of yesterday, after the start or amid a rotation."""
    proxy.start(site)
    images = [path.read_bytes() for path in photos.packaged()[:3]]
    answers = [client.predict(REAL, image, tta="none").json() for image in images]
    headers = PNG | {"X-Classify-TTA": "none"}
    url, total = f"http://{site.listen}{PREDICTIONS}", 80

    def ask(number: int) -> bool:
        response = requests.post(url, data=images[number % 3], headers=headers, timeout=TIMEOUT)
        assert response.status_code == 200, response.text
        return bool(response.json() == answers[number % 3])

    def served() -> list[dict[str, object]]:
        """The requests that the second server has answered."""
        return [entry for entry in access_log(tmp_path) if entry["upstream"] == mortal]

    mortal = "unix:torchserve-2.sock"
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

    old = second.client.token("inference")
    running(second)
    assert second.client.token("inference") != old
    deadline, before = time.monotonic() + TIMEOUT, len(served())
    while len(served()) == before:
        assert ask(0) and time.monotonic() < deadline
    with ThreadPoolExecutor(4) as pool:
        asked_amid = pool.map(ask, range(40))
        for _ in range(10):
            second.client.rotate()
        assert all(asked_amid)
    metrics = requests.get(f"http://{site.probes}/metrics", timeout=TIMEOUT).text
    assert 'refused_tokens_total{server="torchserve-2"} 0\n' in metrics

    proxy.stop()
    asked = access_log(tmp_path)
    assert before and len(served()) > before + 10
    assert any(f"{mortal}, " in str(entry["upstream"]) for entry in asked), (
        "nothing was asked again"
    )
