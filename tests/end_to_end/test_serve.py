"""The life of a server: who answers, what stands in its way, and what is left of it."""

import csv
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from importlib import import_module
from pathlib import Path

import psutil
import pytest
import requests
import torch
import yaml

from tests.helpers import SMALL, called, write_config
from visionserve.models import MODELS
from visionserve_tools import paths, photos
from visionserve_tools.archive import converted, hashes
from visionserve_tools.archive.hashes import HashError, read_record
from visionserve_tools.archive.manifest import Archive
from visionserve_tools.archive.recipe import Recipe, build
from visionserve_tools.server import processes, snapshots
from visionserve_tools.server.ports import free_ports
from visionserve_tools.server.private import ForeignFileError, make_private
from visionserve_tools.server.torchserve import NotRunningError, StartError, TorchServe, connect

CAT = photos.greeting().read_bytes()
# The status of each call of TorchServe's management.proto, with the model's name as field 1, for
# another user where this one may become it.
MANAGE_BY_GRPC = """
import json, os, sys
import grpc

def connect(address):
    return grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)])

connect("").close()  # It imports what another user may not read.
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
model, *addresses = sys.argv[1:]
service = "/org.pytorch.serve.grpc.management.ManagementAPIsService/"
named = b"\\n" + bytes([len(model)]) + model.encode()
calls = {"ListModels": b"", "RegisterModel": b""}
calls |= dict.fromkeys(("DescribeModel", "ScaleWorker", "SetDefault", "UnregisterModel"), named)
codes = {}
for address in addresses:
    with connect(address) as channel:
        for name, message in calls.items():
            try:
                channel.unary_unary(service + name)(message, timeout=10)
                codes[f"{address} {name}"] = "OK"
            except grpc.RpcError as error:
                codes[f"{address} {name}"] = error.code().name
print(json.dumps(codes))
"""

# As the first process of a container that waits for no child: orphans become its children.
FIRST_PROCESS = """
import ctypes, subprocess, sys, time

PR_SET_CHILD_SUBREAPER = 36
ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
print(subprocess.Popen(sys.argv[1:]).pid, flush=True)
time.sleep(600)
"""


def local_ports() -> dict[str, str]:
    """Free ports, and the local profile's Unix socket."""
    return free_ports() | {"management_address": "unix:management.sock"}


@pytest.fixture(scope="module")
def mountains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a fine-tuned model of two classes and one worker."""
    store = tmp_path_factory.mktemp("own")
    config = write_config(store, workers=1, cache={"size_mb": 8})
    torch.manual_seed(3)
    state = {f"module.{name}": of for name, of in MODELS[SMALL].build(2).state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, store / "tuned.pt")
    (store / "labels.txt").write_bytes("\ufeffalp\r\nvalley\r\n".encode())
    recipe = Recipe(*(SMALL, "mountains", "1.0", config, store / "tuned.pt"), store / "labels.txt")
    build(recipe, store)
    return store


@pytest.fixture(scope="module")
def local(mountains: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    """A server of the local profile with that model, started where PYTHONPATH is a trap."""
    trap = tmp_path_factory.mktemp("trap")
    (trap / "visionserve_handler.py").write_text("raise SystemExit('trapped')")
    state = tmp_path_factory.mktemp("local") / "a state"
    state.mkdir(mode=0o755)
    (state / "old.log").touch(mode=0o644)
    server = TorchServe("local", state, mountains, local_ports())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(trap))
        server.start(["mountains=mountains.mar"])
    try:
        yield server
    finally:
        server.stop()


def test_a_model_of_two_classes_answers_by_its_name(local: TorchServe) -> None:
    response = local.client.predict("mountains", CAT)
    answer = response.json()
    assert response.status_code == 200, answer
    assert (answer["model"], answer["architecture"]) == ("mountains", SMALL)
    assert {p["label"] for p in answer["predictions"]} == {"alp", "valley"}
    assert sum(p["probability"] for p in answer["predictions"]) == pytest.approx(1, abs=1e-5)
    refused = local.client.predict("mountains", CAT, top_k=3)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_option")
    page = requests.get(
        f"{local.client.inference}/predictions/mountains", headers={"Accept": "text/html"}
    )
    assert "&quot;top_k&quot;: 2" in page.text or '"top_k": 2' in page.text


def test_two_classes_are_classified_into_rows_of_three(local: TorchServe, tmp_path: Path) -> None:
    """`classify` asks for no more predictions than the model has by default."""
    image = tmp_path / "cat.png"
    image.write_bytes(CAT)
    (answered,) = local.client.predict("mountains", CAT).json()["predictions"][:1]
    arguments = ["--server", local.client.inference, "--model", "mountains"]
    done = called("classify", image, *arguments)
    assert done.returncode == 0, done.stderr
    (row,) = csv.DictReader(io.StringIO(done.stdout))
    assert (row["label_1"], row["probability_1"]) == (
        answered["label"],
        str(answered["probability"]),
    )
    assert row["label_2"] and row["label_3"] == row["error"] == ""


def test_one_archive_under_two_names_answers_with_each(local: TorchServe) -> None:
    """The workers of a machine share a cache of answers."""
    local.client.register("mountains.mar", model_name="hills")
    answers = [local.client.predict(name, CAT).json() for name in ("mountains", "hills")]
    local.client.unregister("hills")
    assert [answer["model"] for answer in answers] == ["mountains", "hills"]


def test_no_web_page_reaches_the_management_api(local: TorchServe) -> None:
    """What a page of another origin can send: a form's POST, with any Host after a rebinding."""
    tcp = [local.properties[f"{api}_address"] for api in ("inference", "metrics")]
    for address in tcp:
        for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}):
            for method, path in (
                ("POST", "/models?url=mountains.mar&model_name=evil"),
                ("DELETE", "/models/mountains"),
                ("PUT", "/models/mountains?min_worker=0"),
                ("GET", "/models"),
            ):
                sent = headers | {"Content-Type": "text/plain"}
                response = requests.request(method, address + path, headers=sent, timeout=60)
                assert response.status_code in (403, 404, 405), (method, address + path)
    assert local.client.models() == ["mountains"]
    listening = processes.listeners(*range(1, 65536))
    assert sum(pid == local.pid for pid in listening.values()) == 4
    (management,) = local.temp.glob("management.sock")
    assert management.is_socket()


def test_no_other_user_reaches_the_management_api_through_grpc(local: TorchServe) -> None:
    """Each call of gRPC's half of the API, at each address that the server listens on."""
    assert local.process is not None
    listening = [
        connection.laddr
        for connection in local.process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    addresses = {
        f"{host}:{address.port}"
        for address in listening
        for host in ("127.0.0.1", "255.255.255.255", address.ip.removeprefix("::ffff:"))
    }
    done = subprocess.run(
        [sys.executable, "-c", MANAGE_BY_GRPC, "mountains", *sorted(addresses)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    codes = json.loads(done.stdout)
    assert len(codes) >= 6 * len(listening)
    assert set(codes.values()) <= {"UNAVAILABLE", "UNIMPLEMENTED"}, codes
    assert local.client.models() == ["mountains"]
    key = "grpc_management_address"
    for profile in paths.profiles():
        properties = TorchServe(profile, local.state, local.store).properties
        assert properties[key] == local.properties[key], profile


def test_nobody_else_can_look_into_the_state(local: TorchServe) -> None:
    found = [local.state, *local.state.rglob("*")]
    assert len(found) > 10
    assert [path for path in found if path.lstat().st_mode & 0o077] == []
    assert any(path.is_socket() for path in local.temp.iterdir())
    assert (local.temp / "models").is_dir()


def test_links_in_the_state_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "key_file.json").symlink_to(tmp_path.parent / "elsewhere.json")
    with pytest.raises(ForeignFileError, match=r"key_file\.json is a symbolic link"):
        make_private(tmp_path)


def test_a_path_too_long_for_a_socket_has_its_sockets_elsewhere(tmp_path: Path) -> None:
    server = TorchServe("local", tmp_path / ("long" * 20), tmp_path)
    assert not server.temp.is_relative_to(server.state)
    assert len(str(server.temp)) < 60


@pytest.mark.parametrize(
    "key",
    ["inference_address", "metrics_address", "grpc_inference_port", "grpc_management_port"],
)
def test_a_taken_port_is_named_with_its_owner_and_nothing_is_started(
    tmp_path: Path, mountains: Path, key: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        address = f"http://127.0.0.1:{port}" if key.endswith("address") else str(port)
        server = TorchServe("local", tmp_path / "state", mountains, local_ports() | {key: address})
        with pytest.raises(StartError) as refusal:
            server.start(["mountains.mar"])
    message = str(refusal.value)
    assert message.startswith(f"Port {port}: taken by process {os.getpid()} (")
    assert len(message.splitlines()) == 1
    assert not (tmp_path / "state" / "console.log").exists()


@pytest.mark.parametrize(
    "taken", [["inference_address", "metrics_address"], ["grpc_inference_port"]]
)
def test_a_server_that_dies_does_not_answer_by_its_neighbour(
    local: TorchServe, tmp_path: Path, mountains: Path, taken: list[str]
) -> None:
    """The ports are taken behind the check: what answers then is not what was started."""
    same = local_ports() | {key: local.properties[key] for key in taken}
    second = TorchServe("local", tmp_path / "state", mountains, same)
    second.check_ports = lambda: None  # type: ignore[method-assign]
    with pytest.raises(StartError, match=r"(?i)address already in use|failed to bind") as refusal:
        second.start(["mountains=mountains.mar"])
    assert len(str(refusal.value).splitlines()) < 12
    assert second.pid is None and local.client.predict("mountains", CAT).ok
    with pytest.raises(NotRunningError, match="no server runs"):
        connect(second.state)
    refused = called("manage", "--state", second.state, "scale", "mountains", "2")
    assert (refused.returncode, refused.stderr) == (1, f"{second.state}: no server runs.\n")


@pytest.mark.parametrize("cause", ["refused", "other", "full"])
def test_what_stops_a_start_is_told_at_once(tmp_path: Path, mountains: Path, cause: str) -> None:
    """TorchServe goes on without an archive that it cannot read, or has no room to unpack.

    Workers end whose model is another than was built, which is said once.
    """
    server = TorchServe("local", tmp_path / "state", tmp_path, local_ports())
    for name in ("mountains", "other"):
        shutil.copy(mountains / "mountains.mar", tmp_path / f"{name}.mar")
    told = "No space left on device"
    if cause == "refused":
        (tmp_path / "other.mar").write_bytes((mountains / "mountains.mar").read_bytes()[:100_000])
        told = "Failed to load model: other.mar\n.*EOFException"
    elif cause == "other":
        told = r"built\. 6 pictures .*rebuild.*\nMore is in "
        with zipfile.ZipFile(mountains / "mountains.mar") as old:
            files = {entry.filename: old.read(entry) for entry in old.infolist()}
        metadata = json.loads(files["metadata.json"])
        metadata["self_check"]["sha256"] = "0" * 64
        two = yaml.safe_load(files["model-config.yaml"]) | {"minWorkers": 2}
        changed = {"metadata.json": json.dumps(metadata), "model-config.yaml": yaml.safe_dump(two)}
        with zipfile.ZipFile(tmp_path / "other.mar", "w") as new:
            for name, data in (files | changed).items():
                new.writestr(name, data)
    else:
        server.state.mkdir()
        size = 2 * (tmp_path / "other.mar").stat().st_size + 1_000_000
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(server.state)]
        if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("mounting a small disk is not permitted")
    try:
        with pytest.raises(StartError, match=told) as refusal:
            server.start(["mountains=mountains.mar", "other=other.mar"])
        assert len(str(refusal.value).splitlines()) < 8 and server.pid is None
        assert snapshots.last(server.state) is None, "so that it is not what was served last"
    finally:
        server.stop()
        if server.state.is_mount():
            subprocess.run(["umount", str(server.state)], check=True)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("job_queue_sizes=3", "TorchServe has no property job_queue_sizes (is it job_queue_size?)"),
        ("inference_address=127.0.0.1:9080", "give http://HOST:PORT, or unix:PATH"),
        ("management_address=http://127.0.0.1", "give http://HOST:PORT, or unix:PATH"),
        ("inference_address=http://0.0.0.0:8080", "asks for no token, so it listens on 127.0.0.1"),
        ("management_address=http://[::]:8081", "asks for no token, so it listens on 127.0.0.1"),
        ("grpc_inference_address=0.0.0.0", "asks for no token, so it listens on 127.0.0.1"),
        ("grpc_management_address=::", "asks for no token, so it listens on 127.0.0.1"),
        ("grpc_management_address=127.0.0.1:7071", "give an address without a port"),
        *((f"metrics_address=http://127.0.0.1:{port}", "1 to 65535") for port in (0, 65536)),
        ("inference_address=unix:", "give http://HOST:PORT, or unix:PATH"),
        ("grpc_inference_port=x", "grpc_inference_port=x: give a whole number from 0 to 65535"),
        ("grpc_inference_port=65536", "give a whole number from 0 to 65535"),
        ("max_request_size=9e6", "max_request_size=9e6: give a whole number"),
        ("job_queue_size=-1", "give a whole number"),
    ],
)
def test_a_property_that_cannot_be_leaves_the_server_alone(given: str, told: str) -> None:
    done = called("serve", "start", "--set", given, "--models", "none")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1 and told in done.stderr


def test_make_refuses_a_word_that_it_does_not_read() -> None:
    for word, said in (
        ("MODEL=resnet18", "reads no MODEL, but MODELS;"),
        ("PROFILES=edge", "reads no PROFILES, but PROFILE;"),
        ("profile=edge", "reads no profile;"),
        ("MODELS=resnet18", ""),
        ("PIP_NO_INDEX=1", ""),
    ):
        made = subprocess.run(
            ["make", "help", word], cwd=paths.ROOT, capture_output=True, text=True
        )
        assert made.returncode == (2 if said else 0) and said in made.stderr
    told = called("serve", "start", "--models", "resnet_18")
    assert told.returncode == 1 and "is it resnet18?" in told.stderr


def test_only_local_takes_an_archive_without_a_record(tmp_path: Path, mountains: Path) -> None:
    shutil.copy(mountains / "mountains.mar", tmp_path / "strange.mar")
    for profile, more, taken in (
        ("server", None, False),
        ("edge", None, False),
        ("server", True, True),
        ("local", None, True),
    ):
        server = TorchServe(profile, tmp_path / "state", tmp_path, unrecorded=more)
        server.state.mkdir(exist_ok=True)
        if taken:
            assert len(server.admit("strange.mar")) == 64
        else:
            with pytest.raises(HashError, match="--allow-unrecorded"):
                server.admit("strange.mar")


def test_what_is_loaded_is_what_was_checked(tmp_path: Path, mountains: Path) -> None:
    for name in ("mountains.mar", "mountains.json"):
        shutil.copy(mountains / name, tmp_path)
    server = TorchServe("server", tmp_path / "state", tmp_path)
    server.state.mkdir()
    digest = server.admit("mountains.mar")
    (tmp_path / "mountains.mar").write_bytes(b"swapped after the check")
    loaded = server.admitted / "mountains.mar"
    assert server.properties["model_store"] == str(loaded.parent)
    kept = read_record(tmp_path / "mountains.mar")
    assert kept is not None and Archive.read(loaded).sha256 == digest == kept["sha256"]
    with pytest.raises(HashError, match="changed since it was built"):
        server.admit("mountains.mar")
    with pytest.raises(OSError, match="give the file name"):
        server.admit("../mountains.mar")


@contextmanager
def workshop(tmp_path: Path) -> Iterator[Path]:
    """A folder with the files that the environment is made by."""
    root = tmp_path / "a user's folder"
    (root / "config").mkdir(parents=True)
    locks = (f"config/{name}.txt" for name in ("constraints", "requirements", "requirements-lock"))
    for name in ("Makefile", "pyproject.toml", *locks):
        shutil.copy(paths.ROOT / name, root / name)
    yield root


def checkout(root: Path) -> Path:
    """A copy of what serves, with an environment whose TorchServe lies in it, and its Python."""
    for name in ("config", "handler", "scripts"):
        shutil.copytree(
            paths.ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(paths.ROOT / "pyproject.toml", root)
    venv.create(root / ".venv", symlinks=True)
    (packages,) = (root / ".venv").glob("lib/python*/site-packages")
    installed = Path(sysconfig.get_path("purelib"))
    shutil.copytree(installed / "ts", packages / "ts")
    paths_file = f"{installed}\n{root / 'handler'}\n{root / 'scripts'}\n"
    (packages / "installed.pth").write_text(paths_file, encoding="utf-8")
    command = root / ".venv" / "bin" / "torchserve"
    command.write_text('#!/bin/sh\nexec "${0%/*}/python" -m ts.model_server "$@"\n')
    command.chmod(0o755)
    return root / ".venv" / "bin" / "python"


def test_a_folder_may_have_any_letters(mountains: Path) -> None:
    """Which Java takes for something else in a class path, a URL or a file of properties."""
    ports = local_ports()
    settings = [part for pair in ports.items() for part in ("--set", "=".join(pair))]
    archive = ["--archive", str(mountains / "mountains.mar")]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "PYTHON"))}
    with tempfile.TemporaryDirectory(prefix="v") as short:
        root = Path(short) / "図像 's #1 50%41 é\\u0041;?"
        python = checkout(root)

        def ask(*arguments: str) -> str:
            command = [str(python), "-m", *arguments]
            done = subprocess.run(
                command,
                cwd=root,
                env=environment | {"LANG": "C"},
                capture_output=True,
                encoding="utf-8",
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        try:
            assert ports["inference_address"] in ask(
                "visionserve_tools", "serve", "start", *archive, *settings
            )
            address = f"{ports['inference_address']}/predictions/mountains"
            assert requests.post(address, data=CAT, timeout=60).json()["model"] == "mountains"
            assert ask("visionserve_tools", "manage", "list").startswith("mountains 1.0 (default)")
            assert (root / ".torchserve" / "local" / "tmp" / "management.sock").is_socket()
            assert list((root / ".torchserve" / "local" / "logs" / "config").glob("*.cfg"))
        finally:
            stopped = ask("visionserve_tools", "serve", "stop")
        assert stopped.startswith("Stopped the server of profile local")


@pytest.mark.parametrize("name", ["😀", os.fsdecode(b"\xff")])
def test_a_folder_that_java_cannot_name_is_told_before_a_start(tmp_path: Path, name: str) -> None:
    server = TorchServe("local", tmp_path / name, tmp_path, local_ports())
    with pytest.raises(StartError, match=r"finds no classes by [😀�] in") as refusal:
        server.start(["mountains.mar"])
    assert len(str(refusal.value).splitlines()) == 1 and not server.state.exists()


def test_an_interrupted_environment_is_made_anew(tmp_path: Path) -> None:
    """The state that Ctrl-C leaves: Python is there and pip is not; and that of a moved folder."""
    with workshop(tmp_path) as root:
        make = ["make", "--silent", "INSTALL=true", ".venv/.serves"]
        python = root / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.symlink_to(Path(sys.executable).resolve())
        subprocess.run(make, cwd=root, check=True)
        version = subprocess.run([python, "-m", "pip", "--version"], capture_output=True, text=True)
        assert str(root) in version.stdout
        moved = root.rename(tmp_path / "moved")
        (stub := tmp_path / "bin" / "python3.11").parent.mkdir()
        stub.write_text(f'#!/bin/sh\nexec {Path(sys.executable).resolve()} "$@" --without-pip\n')
        stub.chmod(0o755)
        path = {"PATH": f"{stub.parent}:{os.environ['PATH']}"}
        done = subprocess.run(
            make, cwd=moved, env=os.environ | path, check=True, capture_output=True, text=True
        )
        assert "moved" in done.stdout
        assert f"{moved}/.venv" in (moved / ".venv" / "pyvenv.cfg").read_text()
        assert not (moved / ".venv" / "bin" / "pip").exists(), "that of the old place"


def test_an_interrupted_build_is_built_anew(mountains: Path, tmp_path: Path) -> None:
    """Ctrl-C among the imports, and amid the build, where no conversion is kept."""
    own = ["--weights", str(mountains / "tuned.pt"), "--labels", str(mountains / "labels.txt")]
    where = ["--profile", "server", "--name", "hills", "--store", str(tmp_path / "store")]
    exact = ["--precision", "fp32"]
    build_it = [sys.executable, "-m", "visionserve_tools", "build", SMALL, *own, *where, *exact]
    nothing = os.environ | {converted.PLACE: str(tmp_path / "converted")}

    def imports(process: subprocess.Popen[str]) -> bool:
        return "libtorch" in Path(f"/proc/{process.pid}/maps").read_text()

    def builds(process: subprocess.Popen[str]) -> bool:
        assert process.stderr is not None
        return "Every picture" in process.stderr.readline()

    for is_reached in (imports, builds):
        process = subprocess.Popen(
            build_it,
            cwd=paths.ROOT,
            env=nothing,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        while not is_reached(process):
            assert process.poll() is None, "it ended before"
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode != 0 and not any((tmp_path / "store").glob("*.mar"))
    done = called(*build_it[3:])
    assert done.returncode == 0 and "packed around" in done.stderr, done.stderr
    archive = tmp_path / "store" / "hills.mar"
    record = read_record(archive)
    assert record is not None and record["sha256"] == hashes.sha256_of(archive)
    assert Archive.read(archive).model == "hills"


def test_an_interrupted_start_is_started_anew(mountains: Path, tmp_path: Path) -> None:
    """Also where nothing waits for the frontend, which stays as a zombie."""
    ports = local_ports()
    code = (
        "import json, sys; from pathlib import Path; "
        "from visionserve_tools.server.torchserve import TorchServe; "
        "state, store, ports = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]); "
        "TorchServe('local', state, store, ports).start(['mountains=mountains.mar'])"
    )
    state = tmp_path / "state"
    command = [sys.executable, "-c", code, str(state), str(mountains), json.dumps(ports)]
    server = TorchServe("local", state, mountains, ports)
    first = subprocess.Popen(
        [sys.executable, "-c", FIRST_PROCESS, *command],
        cwd=paths.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert first.stdout is not None
    process = psutil.Process(int(first.stdout.readline()))
    deadline = time.monotonic() + 60
    while (java := server.process) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    processes.wait(process, 60)
    try:
        assert server.stop()
        assert java.status() == psutil.STATUS_ZOMBIE and java.ppid() == first.pid
        server.start(["mountains=mountains.mar"])
        assert server.client.predict("mountains", CAT).status_code == 200
    finally:
        server.stop()
        first.kill()
        first.wait()


def another(source: Path, target: Path, version: str, built: datetime, **others: bytes) -> None:
    """Write an archive of another version of a model, of one worker, and of another age."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = others.get(name, old.read(name))
            if name == "MAR-INF/MANIFEST.json":
                manifest = json.loads(data) | {"createdOn": f"{built:%d/%m/%Y %H:%M:%S}"}
                manifest["model"]["modelVersion"] = version
                data = json.dumps(manifest).encode()
            if name == "model-config.yaml":
                data = yaml.safe_dump(
                    yaml.safe_load(data) | {"minWorkers": 1, "maxWorkers": 1}
                ).encode()
            new.writestr(name, data)
    hashes.record(target, "", own=True)


def test_what_was_served_last_is_served_again_after_a_kill(
    mountains: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Versions, defaults and workers, whether changed by `manage` or by TorchServe's plain API."""
    monkeypatch.setattr(paths, "STATE", tmp_path / "state")
    monkeypatch.setattr(paths, "MODEL_STORE", tmp_path / "store")
    store = tmp_path / "store" / "local"
    store.mkdir(parents=True)
    now = datetime.now()
    another(mountains / "mountains.mar", store / "mountains.mar", "1.0", now - timedelta(days=12))
    another(
        mountains / "mountains.mar", store / "mountains-2.0.mar", "2.0", now - timedelta(hours=3)
    )
    ports = local_ports()
    settings = [part for pair in ports.items() for part in ("--set", "=".join(pair))]
    server = TorchServe("local", paths.STATE / "local", store, ports)

    def command(name: str, *arguments: str) -> tuple[list[str], list[str]]:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        code = import_module(f"visionserve_tools.commands.{name}").main()
        out, error = capsys.readouterr()
        assert code == 0, error
        return out.splitlines(), error.splitlines()

    def refused(name: str, *arguments: str) -> str:
        """Run a command that has to fail, and return the one line that it tells."""
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        assert import_module(f"visionserve_tools.commands.{name}").main() == 1
        (line,) = capsys.readouterr().err.splitlines()
        return line

    def serve(*names: str) -> tuple[list[str], list[str]]:
        """Start it, and return the lines of what is served, and what else is told."""
        out, error = command("serve", "start", *settings, *names)
        answered = out.index(next(line for line in out if line.startswith("  ask:")))
        return out[1:answered], error

    def kill() -> None:
        process = server.process
        assert process is not None
        process.kill()
        processes.wait(process, 60)

    def served() -> dict[str, tuple[str, dict[str, int]]]:
        """Ask TorchServe for each model's default version, and the workers of each version."""
        client = server.client
        return {
            model: (
                client.default_version(model),
                {one["modelVersion"]: len(one["workers"]) for one in client.describe(model)},
            )
            for model in client.models()
        }

    try:
        first, _ = serve("--models", "mountains")
        assert first == ["  mountains 1.0 (default), openvino fp32, built 12 days ago"]
        most = "mountains.mar allows 1 worker (maxWorkers of its profile), not 99: "
        for typo in (["scale", "mountains", "99"], ["scale", "mountains", "1", "99"]):
            assert refused("manage", *typo) == f"{most}--force starts them all the same."
        assert refused("manage", "describe", "mountain").endswith("(is it mountains?)")
        asked = called("classify", "--model", "mountain", photos.greeting())
        assert (asked.returncode, asked.stderr) == (
            2,
            "mountain is not served (is it mountains?).\n",
        )
        assert refused("manage", "register", "mountains.mar", "--workers=99").startswith(most)
        assert "older" not in str(command("manage", "register", "mountains-2.0.mar"))
        command("manage", "set-default", "mountains", "2.0")
        command("manage", "scale", "mountains", "2", "--force")
        command("manage", "unregister", "mountains", "--version", "1.0")
        server.client.register("mountains-2.0.mar", model_name="hills")
        before = served()
        assert before == {"mountains": ("2.0", {"2.0": 2}), "hills": ("2.0", {"2.0": 1})}
        kill()
        again, told = serve()
        lines = [f"  {model} 2.0 (default), openvino fp32, built 3 hours ago" for model in before]
        assert (sorted(again), told) == (sorted(lines), [])
        assert served() == before
        pid = server.pid
        assert serve()[0] == again and server.pid == pid
        answer = server.client.predict("mountains", CAT).json()
        assert (answer["model"], answer["version"]) == ("mountains", "2.0")

        server.client.scale("hills", 0)
        server.client.unregister("hills")
        other = refused("manage", "--profile", "server", "list")
        assert other == "No server of profile server runs, but one of local does: --profile local"
        page = {"visionserve/page.py": (paths.HANDLER / "visionserve/page.py").read_bytes() + b"#"}
        another(
            mountains / "mountains.mar", store / "old.mar", "3.0", now - timedelta(days=1), **page
        )
        (told_of_it,), _ = command("manage", "register", "old.mar")
        assert told_of_it.endswith(
            "; by an older handler, so metrics may miss it: visionserve repack old"
        )
        kill()
        gone = (store / "mountains-2.0.mar").rename(tmp_path / "mountains-2.0.mar")
        once_more, told = serve()
        assert told == [f"{store}/{gone.name} is gone: mountains 2.0 is not served."]
        assert once_more == [
            "  mountains 3.0 (default), openvino fp32, built 1 day ago, by an older handler: "
            ".venv/bin/visionserve repack old"
        ]
        assert served() == {"mountains": ("3.0", {"3.0": 1})}
        server.client.unregister("mountains")
        shown, _ = command("serve", "status")
        assert "  No model is registered." in shown and "nginx: stopped" in shown
        assert not any("does not answer" in line for line in shown)

        assert serve("--models", "mountains")[0] == first
        assert served() == {"mountains": ("1.0", {"1.0": 1})}
        command("serve", "stop")
        (store / "mountains.mar").unlink()
        monkeypatch.setattr(sys, "argv", ["serve", "start", *settings])
        assert import_module("visionserve_tools.commands.serve").main() == 1
        told = capsys.readouterr().err.splitlines()
        assert told == [
            f"{store}/mountains.mar is gone: mountains 1.0 is not served.",
            "Nothing is left of what was served last: name what to serve, as in "
            'make serve MODELS="resnet18".',
        ]
    finally:
        server.stop()


def test_make_helps() -> None:
    done = subprocess.run(["make", "help"], cwd=paths.ROOT, capture_output=True, text=True)
    for target in ("serve", "stop", "status", "test", "test-fast", "clean", "bench"):
        assert f"make {target}" in done.stdout
