"""Processes are told by what they run."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from scripts import paths
from scripts.server.processes import describe, find, listeners
from scripts.server.torchserve import TorchServe


@contextmanager
def sleeper(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    code = "print(flush=True); import time; time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE) as it:
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
