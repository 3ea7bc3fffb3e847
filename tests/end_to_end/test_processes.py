"""Processes are told by what they run."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest
import requests

from visionserve_tools import paths
from visionserve_tools.server.client import Client
from visionserve_tools.server.processes import describe, find, listeners, wait
from visionserve_tools.server.torchserve import TorchServe


@contextmanager
def sleeper(*arguments: str, within: Sequence[str] = ()) -> Iterator[subprocess.Popen[bytes]]:
    code = "print(flush=True); import time; time.sleep(600)"
    command = [*within, sys.executable, "-c", code, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as it:
        assert it.stdout is not None and it.stdout.readline()
        try:
            yield it
        finally:
            it.kill()


def test_a_process_is_found_by_its_name_and_whole_words(tmp_path: Path) -> None:
    folder = f"{tmp_path}/a folder"
    with sleeper("-f", f"{folder}/conf", "end") as one, sleeper("-f", f"{folder}/conf2"):
        name = psutil_name(one.pid)
        found = find(name, f"-f {folder}/conf")
        assert found is not None and found.pid == one.pid
        assert find(name, f"-f {folder}/conf", "end") == found
        assert find(name, f"-f {folder}/conf", "other") is None
        assert find("java", f"-f {folder}/conf") is None
        assert find(name, f"-f {folder}/con") is None
        assert f"process {one.pid} (" in describe(one.pid)
    assert find(name, f"-f {folder}/conf") is None


def psutil_name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


@pytest.mark.parametrize(
    "container",
    [["--pid", "--fork", "--kill-child"], ["--mount", "--propagation", "private"]],
    ids=["pid", "mount"],
)
def test_another_containers_process_is_not_ours(tmp_path: Path, container: list[str]) -> None:
    """It has the same command line, and its folder the same path."""
    if subprocess.run(["unshare", *container, "true"], capture_output=True).returncode:
        pytest.skip("namespaces are not permitted")
    word = f"-f {tmp_path}/conf"
    script = 'mount -t tmpfs tmpfs "$0" && exec "$@"' if "--mount" in container else 'exec "$@"'
    within = ["unshare", *container, "sh", "-c", script, str(tmp_path)]
    with sleeper("-f", f"{tmp_path}/conf", within=within):
        with sleeper("-f", f"{tmp_path}/conf") as own:
            name = psutil_name(own.pid)
            found = find(name, word)
            assert found is not None and found.pid == own.pid
        assert find(name, word) is None


def test_a_process_that_nobody_reaps_has_ended() -> None:
    """As in a container whose first process waits for no child."""
    script = "sleep 600 & echo $!; exec sleep 600"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        try:
            with pytest.raises(psutil.TimeoutExpired):
                wait(child, 0.2)
            child.kill()
            wait(child, 10)
            assert child.status() == psutil.STATUS_ZOMBIE
        finally:
            parent.kill()
    wait(child, 10)


def test_the_owner_of_a_port_is_known() -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as web:
        port = web.server_port
        owner = listeners(port)
        assert set(owner) == {port} and describe(owner[port]).startswith("process ")
    assert listeners(port) == {}


def test_nothing_is_signalled_by_an_id_from_a_file(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with sleeper("org.pytorch.serve.ModelServer", "-f", f"{state}/config.properties") as bystander:
        (state / "tmp").mkdir(parents=True)
        (state / "tmp" / ".model_server.pid").write_text(str(bystander.pid))
        server = TorchServe("local", state, paths.MODEL_STORE)
        assert server.pid is None
        server.stop()
        assert bystander.poll() is None


def test_a_scaling_that_torchserve_answers_with_its_own_fault_is_asked_for_again() -> None:
    """The answer is one of TorchServe 0.12.0, which gives it once in many scalings down."""
    message = 'Cannot invoke "org.pytorch.serve.job.Job.isControlCmd()" because "job" is null'
    fault = {"code": 500, "type": "NullPointerException", "message": message}
    answers = [(500, fault), (200, {}), (500, fault | {"message": "another"})]

    class Management(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            status, body = answers.pop(0)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body, indent=2).encode())

    with HTTPServer(("127.0.0.1", 0), Management) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = Client("", f"http://127.0.0.1:{server.server_port}")
        client.scale("resnet18", 1)
        assert len(answers) == 1
        with pytest.raises(requests.HTTPError, match="another"):
            client.scale("resnet18", 1)
        server.shutdown()
