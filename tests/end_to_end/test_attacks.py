"""Requests that mean harm, against nginx and a real TorchServe, as an attacker would send them."""

import base64
import json
import os
import random
import resource
import shutil
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
import requests
from PIL import Image

from tests.helpers import REAL, encode, site_of
from visionserve_tools import paths, photos
from visionserve_tools.server.nginx import Proxy, Site, Upstream
from visionserve_tools.server.torchserve import TorchServe

TIMEOUT = 60
LATE = 10  # Seconds in which each client's request finds its turn.
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


def logged(state: Path, client: str) -> list[str]:
    """The paths that an address asked a server for; nginx may write one after it is answered."""
    lines = (state / "logs" / "access.log").read_text().splitlines()
    return [entry["path"] for entry in map(json.loads, lines) if entry["client"] == client]


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
/v1  /v1/models  /v1/models/  /v1/models/M/ready  /v1/models/M:  /v1/models/:predict
/v1/models/M:Predict
/v1/models/M:predict:explain  /v1/models/M:explain:predict  /v1/models/M/1.0:predict
/v1/models/..:predict  /v1/models/.:predict  /v1/models/..:explain  /v1/models/../M:predict
/v1/models/M%3apredict  /v1/models/%2e%2e:predict  /v1/models/M:predict%3a  /v1/M:predict
/v2/  /v2/models  /v2/models/M/config  /v2/models/M/versions  /v2/models//infer
/v2/models/../infer  /v2/models/./infer  /v2/models/M/x/infer
/v2/models/%2e%2e/infer  /v2/models/M/versions//infer
/v2/models/M/versions/../infer  /v2/models/M/versions/./infer  /v2/models/M/versions/1.0/1.0/infer
/v2/models/M/versions/%2e%2e/infer  /v2/models/M/1.0/infer  /v2/models/M/infer/explain
/v2/repository/index  /v2/health  /v2/health/  /v2/health/live/
/v2/health/ready/  /v2/health/ready?x  /v2/health/%72eady  /v2/./health/ready  /v2/x/../health/ready
/v2//health/ready  /invocations?model_name=M  /invocations/M  /models/M/invoke
"""
DOORS = """
/predictions/M  /predictions/M/1.0  /explanations/M  /explanations/M/1.0  /invocations
/v1/models/M:predict  /v1/models/M:explain  /v2/models/M/infer  /v2/models/M/explain
/v2/models/M/versions/1.0/infer  /v2/models/M/versions/1.0/explain
""".replace("M", REAL).split()
ASKED = """
/v1/models/M  /v2/models/M  /v2/models/M/ready  /v2/models/M/versions/1.0/ready  /v2
/v2/health/live  /openapi.json
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
    paths = [*OTHER_PATHS.replace("M", REAL).split(), *chain(*map(disguises, DOORS + ASKED))]
    assert len(paths) > 500
    attacker = "127.0.0.5"
    for path in paths:
        for method in ("GET", "POST"):
            status, _ = send(site, f"{method} {path}", CAT, source=attacker)
            assert status in (400, 404, 405), path
    assert {send(site, f"POST {asked}", CAT, source=attacker)[0] for asked in ASKED} == {405}
    for door in DOORS:
        assert send(site, f"GET {door}", source=attacker)[0] == 400
    assert logged(state, attacker) == DOORS


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


def parts(*heads: bytes, end: bytes = b"\r\n") -> bytes:
    """A form with a part of one byte for each head."""
    return b"".join(b"--b\r\n" + head + b"\r\n\r\nx" + end for head in heads) + b"--b--\r\n"


TYPE = f"Content-Type: {FORM}\r\n"
PARAMETERS = part(DATA + b";a=b" * 1_800_000)
TINY = b"--b\r\n" + DATA + b"\r\n\r\n\r\n"
HOSTILE = {
    "1.8 million parameters": (TYPE, PARAMETERS),
    "too many tiny parts": (TYPE, TINY * (7_000_000 // len(TINY)) + b"--b--\r\n"),
    "a part too many": (TYPE, parts(*[DATA] * 101)),
    "a byte of a head too many": (TYPE, part(DATA + b"\r\nX: " + b"x" * (996 - len(DATA)))),
    "a parameter too many": (TYPE, part(DATA + b"; a=b" * 8, CAT)),
    "a head twice": (TYPE, part(DATA + b"\r\n" + DATA, CAT)),
    "a parameter twice": (TYPE, part(DATA + b"; name=x", CAT)),
    "a folded head": (TYPE, part(DATA + b";\r\n filename=x", CAT)),
    "a head after a bare LF": (TYPE, part(DATA + b"\nX: y", CAT)),
    "a bare CR in a head": (TYPE, part(DATA + b"\rX: y", CAT)),
    "a NUL in a head": (TYPE, part(DATA + b"; filename=\0", CAT)),
    "a space before a colon": (TYPE, part(DATA.replace(b":", b" :"), CAT)),
    "an open quote": (TYPE, part(DATA + b'; filename="x', CAT)),
    "parts that end with a bare LF": (TYPE, parts(DATA, DATA, end=b"\n")),
    "delimiters that end with a bare LF": (TYPE, parts(DATA).replace(b"--b\r\n", b"--b\n")),
    "a line like the boundary": (TYPE, part(DATA, b"x\r\n--bb\r\n\r\ny")),
    "a boundary with spaces after it": (TYPE, parts(DATA).replace(b"--b\r\n", b"--b \r\n")),
    "a form after the form": (TYPE, part(DATA, CAT) + part(DATA, CAT)),
    "a form in a part": (TYPE, part(DATA + b"\r\nContent-Type: Multipart/Mixed; boundary=c", CAT)),
    "base64": (TYPE, part(DATA + b"\r\nContent-Transfer-Encoding: base64", CAT)),
    "a part that claims to be large": (TYPE, part(DATA + b"\r\nContent-Length: 6600000", CAT)),
    "a part that is large": (TYPE, part(DATA, bytes(6_600_000))),
    "another disposition": (TYPE, part(DATA.replace(b"form-data", b"file"), CAT)),
    "two boundaries": (TYPE.replace("\r", "; Boundary=c\r"), part(DATA, CAT)),
    "an open quote of the boundary": (TYPE.replace("=b", '="b'), part(DATA, CAT)),
    "a charset": (TYPE.replace("\r", "; charset=utf-16\r"), part(DATA, CAT)),
    "nearly a form": (TYPE.replace("form-data", "form-data-x"), part(DATA, CAT)),
    "another type before it": (TYPE.replace("multi", "image/png, multi"), part(DATA, CAT)),
    "71 characters": (TYPE.replace("=b", "=" + "b" * 71), part(DATA, CAT)),
}


def test_no_hostile_form_reaches_a_server(site: Site, state: Path) -> None:
    """Each is refused for its form; nginx logs what a server got."""
    attacker = "127.0.0.6"
    for name, (headers, body) in HOSTILE.items():
        status, answer = send(site, f"POST {PREDICTIONS}", body, headers, attacker)
        assert status in (400, 413), name
        assert b'"code":"invalid_form"' in answer, name
    assert send(site, f"POST {PREDICTIONS}", part(DATA, CAT), TYPE * 2, attacker)[0] == 400
    assert b"70 characters" in answer
    assert send(site, f"GET {DOORS[-1]}", source=attacker)[0] == 400
    assert logged(state, attacker) == DOORS[-1:]


def test_hostile_forms_are_no_others_loss(site: Site) -> None:
    """Eight of each large one at a time; another client asks beside them."""
    forms = [HOSTILE["1.8 million parameters"], HOSTILE["too many tiny parts"]]
    with ThreadPoolExecutor(16) as pool:
        attacks = [
            pool.submit(send, site, f"POST {PREDICTIONS}", body, headers, "127.0.0.2")
            for headers, body in forms * 8
        ]
        while not all(attack.done() for attack in attacks):
            began = time.monotonic()
            assert send(site, f"POST {PREDICTIONS}", CAT, source="127.0.0.3")[0] == 200
            assert time.monotonic() - began < LATE
    assert {attack.result()[0] for attack in attacks} <= {0, 400}


LARGEST = b"\r\nX: " + b"x" * (995 - len(DATA))
PLAIN = "Content-Type: multipart/form-data; boundary="
# A content type and a form, as other programs than those below write them.
SOUND = {
    "100 parts": (TYPE, parts(*[DATA] * 100), 413),
    "1,000 bytes of headers": (TYPE, part(DATA + LARGEST, CAT), 200),
    "8 parameters": (TYPE, part(DATA + b"; a1=b; a2=b; a3=b; a4=b; a5=b; a6=b; a7=b", CAT), 200),
    "a preamble and an epilogue": (TYPE, b"This is a form.\r\n" + part(DATA, CAT) + b"Bye.", 200),
    "an empty line before": (TYPE, b"\r\n" + part(DATA, CAT), 200),
    "no line end after": (TYPE, part(DATA, CAT)[:-2], 200),
    "other letters": (
        TYPE.replace("multipart", "\tMultiPart"),
        part(DATA.replace(b"C", b"c"), CAT),
        200,
    ),
    "okhttp": (
        PLAIN + "6f0fd2a5-7a3e-4a9c-8c9f-5b1a3d2e4f60\r\n",
        part(DATA + b"\r\nContent-Length: %d" % len(CAT), CAT).replace(
            b"--b", b"--6f0fd2a5-7a3e-4a9c-8c9f-5b1a3d2e4f60"
        ),
        200,
    ),
    "Apache HttpClient": (
        TYPE.replace("boundary", "charset=UTF-8; boundary"),
        part(DATA + b"\r\nContent-Transfer-Encoding: binary", CAT),
        200,
    ),
    ".NET": (
        TYPE.replace("=b", '="b"'),
        part(DATA.replace(b'"', b"") + b"; filename=cat.png; filename*=utf-8''cat.png", CAT),
        200,
    ),
    "Python's email": (
        PLAIN + '"===============1=="\r\n',
        part(DATA, CAT).replace(b"--b", b"--===============1=="),
        200,
    ),
    "Chromium": (
        PLAIN + "----WebKitFormBoundaryBA9Yc0wFsJ4kvAJP\r\n",
        part(DATA + '; filename="%22 猫;.png"\r\nContent-Type: image/png'.encode(), CAT).replace(
            b"--b", b"------WebKitFormBoundaryBA9Yc0wFsJ4kvAJP"
        ),
        200,
    ),
}


def test_sound_forms_are_read(site: Site) -> None:
    for name, (headers, body, expected) in SOUND.items():
        status, answer = send(site, f"POST {PREDICTIONS}", body, headers)
        assert status == expected, (name, answer)
        if status == 200:
            assert json.loads(answer)["predictions"][0]["label"] == "Egyptian cat", name
    for name in ("\tApplication/x-www-form-urlencoded", "application/X-WWW-form-urlencoded ; a=b"):
        assert send(site, f"POST {PREDICTIONS}", CAT, f"Content-Type: {name}\r\n")[0] == 200


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


@pytest.mark.parametrize("path", ["/", "/ping", PREDICTIONS, "/predictions/unknown", "/nothing"])
def test_head_is_get_without_a_body(path: str, site: Site) -> None:
    def ask(method: str, accept: str) -> tuple[int, dict[str, str], bytes]:
        headers = {"Accept": accept}
        url = f"http://{site.listen}{path}"
        response = requests.request(method, url, headers=headers, timeout=TIMEOUT)
        named = dict(response.headers)
        return response.status_code, named | {"x-request-id": "", "Date": ""}, response.content

    for accept in ("text/html", "application/json"):
        *got, body = ask("GET", accept)
        assert ask("HEAD", accept) == (*got, b"")
        assert got[0] in (200, 400, 404) and body


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


@pytest.fixture
def hasty(server: TorchServe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """nginx where a request waits for its turn for 3 s, with one server as two upstreams."""
    config = tmp_path / "config"
    shutil.copytree(paths.CONFIG / "nginx", config / "nginx")
    shutil.copy(paths.CONFIG / "openapi.json", config)
    turns = config / "nginx" / "turns.lua"
    patient, hasty = "local PATIENCE = 10 ", "local PATIENCE = 3 "
    assert patient in turns.read_text()
    turns.write_text(turns.read_text().replace(patient, hasty))
    monkeypatch.setattr(paths, "CONFIG", config)
    site = site_of(server, server)
    nginx = Proxy(tmp_path / "nginx")
    nginx.start(site)
    yield site
    nginx.stop()


def test_one_clients_lists_keep_nobody_waiting(hasty: Site) -> None:
    """Twelve lists at a time, each of 32 images of 24 megapixels, all from one address.

    Another client's photographs find their turn, and nginx is ready again and again. A list takes a
    worker 8 s, and longer where other tests take the cores; `chaos` bounds the time where it is
    alone, and there nginx is ready throughout.
    """
    site = hasty
    large = encode(Image.new("RGBA", (6000, 4000), (90, 120, 60, 200)))

    def attack(_: int) -> int:
        images = [base64.b64encode(large + os.urandom(8)).decode() for _ in range(32)]
        body, kind = json.dumps({"data": images}).encode(), "Content-Type: application/json\r\n"
        return send(site, f"POST {PREDICTIONS}", body, kind, "127.0.0.2")[0]

    seconds = []
    probes = []
    with ThreadPoolExecutor(12) as pool:
        attacks = [pool.submit(attack, number) for number in range(12)]
        while not all(attack.done() for attack in attacks):
            began = time.monotonic()
            assert send(site, f"POST {PREDICTIONS}", CAT, source="127.0.0.3")[0] == 200
            seconds.append(time.monotonic() - began)
            probes.append(requests.get(f"http://{site.listen}/ping", timeout=TIMEOUT).status_code)
            time.sleep(1)
    assert max(seconds) < 2 * LATE
    assert 200 in probes and set(probes) <= {200, 503}
    statuses = {attack.result() for attack in attacks}
    assert 429 in statuses and statuses <= {200, 207, 429, 503}


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
    monkeypatch.setattr("visionserve_tools.server.nginx.LOG_BYTES", 2000)
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
