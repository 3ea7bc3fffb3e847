"""The libraries in TorchServe's frontend, and the table of what stops their faults.

A new TorchServe brings other libraries: these tests fail then, until the table is reviewed.
"""

import json
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from visionserve_tools import paths
from visionserve_tools.server import libraries
from visionserve_tools.server.ports import free_ports

# Annotations, generated messages, and what tests and builds Java, which TorchServe does not load.
NOT_ASKED_ABOUT = (
    "android/ com/beust/ com/github/javaparser/ com/google/api/ com/google/cloud/ com/google/geo/"
    " com/google/errorprone/ com/google/j2objc/ com/google/logging/ com/google/longrunning/"
    " com/google/rpc/ com/google/thirdparty/ com/google/type/ com/thoughtworks/ groovy groovyjarjar"
    " javax/annotation/ jline/ junit/ META-INF/ module-info org/apache/groovy/"
    " org/checkerframework/ org/codehaus/mojo/ org/fusesource/ org/hamcrest/"
    " org/opentest4j/ picocli/"
)


NETTY = "META-INF/io.netty.versions.properties"
NATIVE = "META-INF/native"


@pytest.fixture(scope="module")
def frontend() -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(libraries.jar()) as archive:
        yield archive


def text(frontend: zipfile.ZipFile, name: str) -> str:
    return frontend.read(name).decode("latin-1")


def test_every_class_belongs_to_a_library_that_is_known(frontend: zipfile.ZipFile) -> None:
    known = ("org/pytorch/", *NOT_ASKED_ABOUT.split())
    classes = [name for name in frontend.namelist() if name.endswith(".class")]
    strange = {name for name in classes if not libraries.owner(name) and not name.startswith(known)}
    assert len(classes) > 20_000 and strange == set()


def test_the_releases_are_those_that_the_jar_still_names(frontend: zipfile.ZipFile) -> None:
    releases = {library.name: library.release for library in libraries.read(libraries.jar())}
    netty = set(re.findall(r"^netty-co\w+\S*\.version=(.*)$", text(frontend, NETTY), re.MULTILINE))
    assert netty == {release for name, release in releases.items() if name.startswith("io.netty:")}
    dependencies = text(frontend, "META-INF/DEPENDENCIES")
    assert f"log4j-core:jar:{releases['org.apache.logging.log4j:log4j-core']}" in dependencies
    groovy = text(frontend, "META-INF/groovy-release-info.properties")
    assert f"ImplementationVersion={releases['org.codehaus.groovy:groovy']}\n" in groovy
    ant = text(frontend, "org/apache/tools/ant/version.txt")
    assert f"VERSION={releases['org.apache.ant:ant']}\n" in ant
    grpc = text(frontend, "io/grpc/internal/GrpcUtil.class")
    for name in ("io.grpc:grpc-netty-shaded", "io.grpc:grpc-protobuf"):
        assert f"\x00\x06{releases[name]}" in grpc
    shaded = text(
        frontend, f"{NATIVE}/libio_grpc_netty_shaded_netty_transport_native_epoll_x86_64.so"
    )
    assert "4.1.79.Final" in shaded


def test_the_table_has_each_library_with_its_release() -> None:
    rows = [row for row in libraries.TABLE.read_text().splitlines() if row.startswith("| `")]
    for library in libraries.read(libraries.jar()):
        listed = f"`{library.name.partition(':')[2]}` {library.release}"
        assert any(listed in row for row in rows), f"{library} is not in the table"


def test_torchserve_names_none_of_what_the_table_calls_unused(frontend: zipfile.ZipFile) -> None:
    unused = (
        "io/netty/handler/codec/(?:http2|haproxy|smtp|compression)/|HttpContentDecompressor|Sni"
        "|HttpClientCodec|HttpRequestEncoder|archivers/dump|pack200|FileBackedOutputStream|org/testng"
        "|groovy/|org/junit|org/apache/tools"
    )
    own = [name for name in frontend.namelist() if name.startswith("org/pytorch/serve/")]
    used = [name for name in own if re.search(unused, text(frontend, name))]
    assert len(own) > 300 and used == []


class Osv(BaseHTTPRequestHandler):
    """What OSV answers of netty-codec-http: an advisory of the table, and one that is new."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert asked["package"]["ecosystem"] == "Maven"
        netty = asked["package"]["name"] == "io.netty:netty-codec-http"
        known = {"id": "GHSA-5jpm-x58v-624v", "aliases": ["CVE-2024-29025"]}
        new = {"id": "GHSA-xxxx-yyyy-zzzz", "aliases": ["CVE-2031-0001"], "summary": "Another one."}
        body = json.dumps({"vulns": [known, new]} if netty else {}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


def run(osv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "visionserve_tools", "audit", "--osv", osv]
    return subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True)


def test_what_osv_knows_and_the_table_does_not_is_told() -> None:
    server = HTTPServer(("127.0.0.1", 0), Osv)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        done = run(f"http://127.0.0.1:{server.server_port}/v1/query")
    finally:
        server.shutdown()
    assert done.returncode == 1
    assert "io.netty:netty-codec-http 4.1.53.Final\n" in done.stdout
    new = "netty-codec-http 4.1.53.Final: GHSA-xxxx-yyyy-zzzz CVE-2031-0001 Another one."
    assert new in done.stdout and "GHSA-5jpm-x58v-624v" not in done.stdout


def test_without_osv_the_libraries_are_listed_all_the_same() -> None:
    address = free_ports()["inference_address"]
    done = run(address)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert f"{address} does not answer (ConnectionError)" in done.stderr
    assert "com.google.protobuf:protobuf-java 3.21.7\n" in done.stdout
