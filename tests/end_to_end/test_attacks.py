"""Requests that mean harm, against nginx and a real TorchServe, as an attacker would send them."""

import json
import random
import resource
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
import requests

from scripts import photos
from scripts.server.nginx import Proxy, Site, Upstream
from scripts.server.torchserve import TorchServe
from tests.helpers import REAL, site_of

TIMEOUT = 60
PREDICTIONS = f"/predictions/{REAL}"
CAT = photos.greeting().read_bytes()
FORM = "multipart/form-data; boundary=b"


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("a folder") / "nginx"


@pytest.fixture(scope="module")
def site(server: TorchServe, state: Path) -> Iterator[Site]:
    """nginx in a folder with a space in its name, with one server as two upstreams."""
    site = site_of(server, server)
    nginx = Proxy(state)
    nginx.start(site)
    yield site
    nginx.stop()


def send(
    site: Site, line: str, body: bytes = b"", headers: str = "", source: str = "127.0.0.1"
) -> tuple[int, bytes]:
    """Send a request line as it is; return the status, 0 for none, and the answer's body."""
    host, port = site.listen.split(":")
    head = f"{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}"
    answer = b""
    address = (host, int(port))
    with socket.create_connection(address, timeout=TIMEOUT, source_address=(source, 0)) as client:
        with suppress(ConnectionError):
            client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode("latin-1") + body)
        with suppress(ConnectionError):
            while data := client.recv(65536):
                answer += data
    return int(answer[9:12] or 0), answer.partition(b"\r\n\r\n")[2]


def metrics(site: Site) -> dict[str, float]:
    text = requests.get(f"http://{site.probes}/metrics", timeout=TIMEOUT).text
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def logged(state: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (state / "logs" / "access.log").read_text().splitlines()]


OTHER_PATHS = r"""
/explanations/M/1.0/../../../predictions/M  /predictions/M/../M  /predictions/M/.
/predictions/M/..  /predictions/./M  /predictions/../predictions/M  /predictions//M
//predictions/M  /predictions/M/  /predictions/M//  /predictions/M/1.0/  /predictions/M/1.0/x
/predictions/M;x  /predictions;/M  /predictions/M;/1.0  /;/predictions/M  /predictions%2fM
/predictions/M%2f1.0  /predictions/%2e%2e/models  /predictions/%2e/M  /predictions/M/%2e%2e
/predictions/M%2e  /predictions/%4d  /%70redictions/M  /predictions/M%00  /predictions/M%20
/predictions/M%0a  /predictions/M%0d%0aX:y  /predictions/M%3b  /predictions/M%3f
/predictions/M%23  /predictions/M%25  /predictions/M\x  /predictions\M  /\predictions/M
/predictions/M#x  /PREDICTIONS/M  /predictions  /predictions/  /predictions/.  /predictions/..
/predictions/é  /predictions/M?top_k=2  /predictions/M?  /predictions/M/1.0?data=x
/predictions/M?/../../models  /ping?x  /ping/  /ping/..  /ping;x  /./ping  /x/../ping  /%70ing
//ping  /ping%20  /x/..  /..  /.  //  /;  /%2e  /%2f  /models  /models/M
/models/M/1.0/../../../predictions/M  /predictions/M/../../models
/predictions/M/../../token?type=inference  /api-description  /metrics  /token
/keys/torchserve-1.key  /probe
/torchserve/predictions/M  /error  http://x/models  http://x/predictions/../models
http://x//predictions/M  *  predictions/M  ../models
/v1  /v1/models  /v1/models/  /v1/models/M  /v1/models/M:  /v1/models/:predict  /v1/models/M:Predict
/v1/models/M:predict:explain  /v1/models/M:explain:predict  /v1/models/M/1.0:predict
/v1/models/..:predict  /v1/models/.:predict  /v1/models/..:explain  /v1/models/../M:predict
/v1/models/M%3apredict  /v1/models/%2e%2e:predict  /v1/models/M:predict%3a  /v1/M:predict
/v2  /v2/  /v2/models  /v2/models/M  /v2/models/M/  /v2/models/M/ready  /v2/models/M/config
/v2/models/infer  /v2/models//infer  /v2/models/../infer  /v2/models/./infer  /v2/models/M/x/infer
/v2/models/%2e%2e/infer  /v2/models/M/versions/infer  /v2/models/M/versions//infer
/v2/models/M/versions/../infer  /v2/models/M/versions/./infer  /v2/models/M/versions/1.0/1.0/infer
/v2/models/M/versions/%2e%2e/infer  /v2/models/M/1.0/infer  /v2/models/M/infer/explain
/v2/models/M/versions/1.0/ready  /v2/repository/index  /v2/health/live  /v2/health  /v2/health/
/v2/health/ready/  /v2/health/ready?x  /v2/health/%72eady  /v2/./health/ready  /v2/x/../health/ready
/v2//health/ready  /invocations?model_name=M  /invocations/M  /models/M/invoke
"""
DOORS = """
/predictions/M  /predictions/M/1.0  /explanations/M  /explanations/M/1.0  /invocations
/v1/models/M:predict  /v1/models/M:explain  /v2/models/M/infer  /v2/models/M/explain
/v2/models/M/versions/1.0/infer  /v2/models/M/versions/1.0/explain
""".replace("M", REAL).split()
TAILS = (
    *(
        "//",
        "/.",
        "/..",
        "/../",
        "/../../models",
        "/x/y",
        ";",
        ";x",
        "/;",
        "%2f",
        "%2fx",
        "%2e",
        "%00",
    ),
    *("%20", "%0a", "%0d%0aX:y", "%3b", "%3f", "%23", "%25", "%", "\\", "\\x", "#x", "?", "?x=1"),
    *("?/../../models", "é", ":", "::predict", "/ "),
)


def disguises(path: str) -> Iterator[str]:
    """Write an address in ways that a careless server takes for it, or for another one."""
    yield from (path + tail for tail in TAILS)
    yield from (
        head + path for head in ("/", "/.", "/x/..", "/%2e", "\\", "/;", "/..", "/models/..")
    )
    yield from (path.upper(), path[1:], f"/%{ord(path[1]):x}{path[2:]}", f"http://x/.{path}")
    last = path.rindex("/")
    for slash in ("//", "/./", "/x/../", "%2f", "%5c", "\\", ";/", "/;/", "/%2e/", "/../"):
        yield path[:last] + slash + path[last + 1 :]


def test_no_other_path_reaches_a_server(site: Site, state: Path) -> None:
    """A path is matched as it is written, and the log has each request that went upstream."""
    paths = [*OTHER_PATHS.replace("M", REAL).split(), *chain(*map(disguises, DOORS))]
    assert len(paths) > 500
    before = len(logged(state))
    for path in paths:
        for method in ("GET", "POST"):
            status, _ = send(site, f"{method} {path}", CAT)
            assert status in (400, 404, 405), path
    assert [send(site, f"GET {door}")[0] for door in DOORS] == [400] * len(DOORS)
    assert [entry["path"] for entry in logged(state)[before:]] == DOORS


def part(head: bytes, content: bytes = b"x") -> bytes:
    return b"--b\r\n" + head + b"\r\n\r\n" + content + b"\r\n--b--\r\n"


DATA = b'Content-Disposition: form-data; name="data"'
MALFORMED = {
    "no boundary": ("multipart/form-data", part(DATA, CAT)),
    "an empty boundary": ("multipart/form-data; boundary=", part(DATA, CAT)),
    "another boundary": ("multipart/form-data; boundary=z", part(DATA, CAT)),
    "no end": (FORM, part(DATA, CAT)[:-30]),
    "half a head": (FORM, b"--b\r\nContent-Disposition: form-data; na"),
    "no name": (FORM, part(b"Content-Disposition: form-data")),
    "an empty name": (FORM, part(b'Content-Disposition: form-data; name=""')),
    "no head": (FORM, b"--b\r\n\r\nx\r\n--b--\r\n"),
    "no body": (FORM, b""),
    "no such charset": (f"{FORM}; charset=zzz", part(DATA, CAT)),
    "no such charset of a part": (FORM, part(DATA + b"\r\nContent-Type: text/plain; charset=z")),
    "a nested form without boundary": (FORM, part(DATA + b"\r\nContent-Type: multipart/mixed")),
    "a bad file name": (FORM, part(DATA + b"; filename*=zzz''%zz")),
    "a bad length": (FORM, part(DATA + b'; filename="q"\r\nContent-Length: 99999999999999999999')),
    "a bad query": ("application/x-www-form-urlencoded", b"data=%zz&%"),
    "half JSON": ("application/json", b'{"data":'),
    "deep JSON": ("application/json", b"[" * 100_000),
    "no type": ("///", b"x"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_no_malformed_body_is_a_servers_fault(name: str, site: Site) -> None:
    content_type, body = MALFORMED[name]
    status, answer = send(site, f"POST {PREDICTIONS}", body, f"Content-Type: {content_type}\r\n")
    assert 400 <= status < 500
    assert b'"code"' in answer


def test_no_mutated_form_is_a_servers_fault(site: Site) -> None:
    form = part(DATA + b'; filename="x"', CAT[:2000])
    dice = random.Random(0)
    for _ in range(60):
        mutated = bytearray(form)
        for _ in range(dice.randint(1, 6)):
            place = dice.choice([dice.randrange(90), len(mutated) - 1 - dice.randrange(20)])
            if dice.random() < 0.5:
                del mutated[place : place + dice.randint(1, 9)]
            else:
                mutated[place:place] = bytes(dice.choices(b'\r\n-"; =:b\0\xff', k=3))
        headers = f"Content-Type: {FORM}\r\n"
        status, _ = send(site, f"POST {PREDICTIONS}", bytes(mutated), headers)
        assert 200 <= status < 500, bytes(mutated)


@pytest.mark.parametrize(
    ("line", "headers", "expected"),
    [
        (f"POST {PREDICTIONS}?{'a' * 5000}", "", 414),
        (f"POST {PREDICTIONS}?{'a' * 3000}", "", 400),
        (f"POST /predictions/{'a' * 3000}", "", 404),
        (f"POST {PREDICTIONS}", f"X-Classify-TTA: {'a' * 5000}\r\n", 431),
        (f"POST {PREDICTIONS}", f"X-Classify-TTA: {'a' * 3000}\r\n" * 3, 431),
        (f"POST {PREDICTIONS}", f"Cookie: {'a' * 3000}\r\n" * 3, 415),
        (f"POST {PREDICTIONS}", "X-Classify-TTA: \x01\r\n", 400),
        (f"POST {PREDICTIONS}", "X-Classify-TTA: \xff\r\n", 400),
        (f"POST {PREDICTIONS}", "explain: True\r\n", 415),
        (f"POST {PREDICTIONS}", "Expect: 200-maybe\r\n", 415),
        (f"DELETE {PREDICTIONS}", "", 405),
        (f"A{'B' * 3000} {PREDICTIONS}", "", 405),
    ],
)
def test_a_clients_bad_requests_are_no_others_loss(
    line: str, headers: str, expected: int, site: Site
) -> None:
    """Neither upstream counts as failed, so that another client's request gets its answer."""
    for _ in range(8):
        assert send(site, line, b"x" * 100_000, headers)[0] in (expected, 0)
        assert send(site, f"POST {PREDICTIONS}", b"no image")[0] == 415
    assert send(site, line, b"x", headers)[0] == expected


def test_a_request_that_gets_no_answer_is_not_its_servers_failure(
    server: TorchServe, tmp_path: Path
) -> None:
    """Every other request meets a server that hangs up; it is asked on, and all are answered."""
    asked = []

    class HangsUp(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            if self.request.recv(65536):
                asked.append(self.request)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), HangsUp) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        site = site_of(server)
        url = f"http://127.0.0.1:{other.server_address[1]}"
        hangs_up = Upstream(url, site.upstreams[0].key_file)
        nginx = Proxy(tmp_path / "nginx")
        nginx.start(replace(site, upstreams=(*site.upstreams, hangs_up)))
        try:
            assert {send(site, f"POST {PREDICTIONS}", b"x")[0] for _ in range(20)} == {415}
        finally:
            nginx.stop()
            other.shutdown()
    assert len(asked) > 5


def test_idle_connections_shut_nobody_out(site: Site) -> None:
    host, port = site.listen.split(":")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip("this machine gives a process too few open files")
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
        for _ in range(2300):
            client = socket.create_connection(
                (host, int(port)), timeout=5, source_address=("127.0.0.2", 0)
            )
            stack.enter_context(client)
            with suppress(ConnectionError):
                client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nX-Half")
        with suppress(ConnectionError):
            assert client.recv(1) == b"", "the last connection is one too many"
        assert requests.get(f"http://{site.probes}/ping", timeout=9).status_code == 200
        assert requests.get(f"http://{site.listen}/ping", timeout=9).status_code == 200
        headers = {"Content-Type": "image/png", "X-Classify-TTA": "none"}
        url = f"http://{site.listen}{PREDICTIONS}"
        assert requests.post(url, data=CAT, headers=headers, timeout=TIMEOUT).ok


def test_refusals_are_counted_and_not_logged(site: Site, state: Path) -> None:
    def size() -> int:
        return sum(path.stat().st_size for path in (state / "logs").iterdir())

    wanted = {404: "GET /nothing", 405: f"DELETE {PREDICTIONS}", 400: f"GET {PREDICTIONS}?x"}
    before, counts = size(), metrics(site)
    for status, line in wanted.items():
        for _ in range(200):
            assert send(site, line)[0] == status
    assert send(site, f"POST {PREDICTIONS}", bytes(8_000_000))[0] in (413, 0)
    after = metrics(site)
    for status in wanted:
        name = f'visionserve_gate_answers_total{{status="{status}"}}'
        assert after[name] - counts.get(name, 0) == 200
    assert size() == before


def test_a_full_log_makes_room(
    server: TorchServe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scripts.server.nginx.LOG_BYTES", 2000)
    site = site_of(server)
    nginx = Proxy(tmp_path / "nginx")
    nginx.start(site)
    logs = tmp_path / "nginx" / "logs"
    try:
        deadline = time.monotonic() + TIMEOUT
        while not (logs / "access.log.2").exists() and time.monotonic() < deadline:
            send(site, f"GET {PREDICTIONS}")
            time.sleep(0.02)
        lines = (logs / "access.log.2").read_text().splitlines()
    finally:
        nginx.stop()
    assert {json.loads(line)["path"] for line in lines} == {PREDICTIONS}
    assert (logs / "access.log.1").exists() and (logs / "access.log").exists()


def test_no_log_has_a_query_a_header_or_a_body(site: Site, state: Path, server: TorchServe) -> None:
    """Both doors: nginx's, and TorchServe's own, where a form that is none names its bytes."""
    secret = "s3cr3t%zz"
    direct = f"{server.client.inference}{PREDICTIONS}?data={secret}&token={secret}"
    token = server.client.token("inference")
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for url, headers in (
        (f"http://{site.listen}{PREDICTIONS}?token={secret}", {}),
        (direct, token),
        (direct, token | form),
        (direct, token | {"X-Secret": secret, "Content-Type": f"{FORM}; charset={secret}"}),
    ):
        requests.post(url, data=f"data={secret}", headers=headers, timeout=TIMEOUT)
    logs = [*state.rglob("*.log"), *server.state.rglob("*.log")]
    text = b"".join(path.read_bytes() for path in logs)
    assert f"POST {PREDICTIONS}".encode() in text
    assert b"s3cr3t" not in text
