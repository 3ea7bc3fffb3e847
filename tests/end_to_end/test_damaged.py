"""Files that are read back, damaged: a command works all the same, or says in one line what is."""

import json
import os
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import pytest
import torch

from tests.helpers import RANDOM, REAL
from visionserve_tools import paths, photos
from visionserve_tools.archive.manifest import Archive
from visionserve_tools.archive.weights import remembered
from visionserve_tools.server.plan import DEFAULT, of_record
from visionserve_tools.server.ports import free_port, free_ports
from visionserve_tools.server.torchserve import TorchServe

Run = Callable[..., tuple[int, str, str]]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def nuls(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def other_version(path: Path) -> None:
    path.write_bytes(b'{"version": 99}\n')


def other_kind(path: Path) -> None:
    path.write_bytes(b"[1]\n")


def not_utf_8(path: Path) -> None:
    path.write_bytes(b"\xff\xfe" + path.read_bytes())


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def unreadable(path: Path) -> None:
    """Such that root cannot read it, either: a link to itself."""
    path.unlink()
    path.symlink_to(path)


def pipe(path: Path) -> None:
    """That no process writes to."""
    path.unlink()
    os.mkfifo(path)


def levels(path: Path) -> None:
    """More than Python's parser of JSON goes down."""
    path.write_bytes(b"[" * 100_000)


DAMAGES = (cut, empty, nuls, other_version, other_kind, not_utf_8, folder, unreadable)
OF_STATE = (*DAMAGES, pipe, levels)


@contextmanager
def damaged(path: Path, damage: Callable[[Path], None]) -> Iterator[None]:
    """Damage a file for the block, and put it back."""
    content, mode = path.read_bytes(), path.stat().st_mode
    damage(path)
    try:
        yield
    finally:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        path.chmod(mode)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process: what it does not catch fails the test."""

    def run(command: str, *arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", [command, *map(str, arguments)])
        code = import_module(f"visionserve_tools.commands.{command}").main()
        out, error = capsys.readouterr()
        assert "Traceback" not in error
        return code, out, error

    return run


@pytest.mark.parametrize("name", ["server.json", "config.properties", "key_file.json"])
def test_the_state_of_a_server_that_runs(
    name: str, server: TorchServe, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """How long a key is waited for is told by `test_service`; here it is a tenth of a second."""
    (tmp_path / "server").symlink_to(server.state)
    monkeypatch.setattr(paths, "STATE", tmp_path)
    monkeypatch.setattr("visionserve_tools.server.client.KEY_PAUSE", 0.005)
    file = server.state / name
    image = photos.greeting()
    files = {model: f"{model}.mar" for model in (REAL, RANDOM)}
    models = {
        model: {"1.0": {"marName": file, "defaultVersion": True}} for model, file in files.items()
    }
    hashes = {file: Archive.read(server.store / file).sha256 for file in files.values()}
    assert server.runs(models, hashes)
    for damage in OF_STATE:
        with damaged(file, damage):
            code, out, error = run("manage", "--state", server.state, "list")
            if damage is cut and name == "config.properties":
                continue  # It is one, of fewer keys.
            assert code == 1 and len(error.splitlines()) == 1, (damage, error)
            assert name in error, (damage, error)
            if damage not in (nuls, folder):
                continue
            assert not server.runs(models, hashes), "so that a start starts it anew"
            code, out, error = run("serve", "status")
            (line,) = (line for line in out.splitlines() if "server:" in line)
            assert code == 0 and "stopped" not in line, (damage, out)
            assert name in out, (damage, out)
            code, out, error = run("classify", image, "--profile", "server", "--model", REAL)
            if name != "server.json":
                assert code == 2 and len(error.splitlines()) == 1, (damage, error)
                assert name in error, (damage, error)


@pytest.mark.parametrize("damage", OF_STATE)
def test_what_is_only_remembered_is_forgotten(
    damage: Callable[[Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What was served last, of which an older snapshot tells, and that a download failed."""
    server = TorchServe("local", tmp_path, tmp_path)
    for name in (REAL, DEFAULT):
        manifest = {"model": {"modelName": name, "modelVersion": "1.0"}}
        with zipfile.ZipFile(tmp_path / f"{name}.mar", "w") as archive:
            archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
    snapshots = tmp_path / "logs" / "config"
    snapshots.mkdir(parents=True)
    entry = {"marName": f"{REAL}.mar", "defaultVersion": True, "minWorkers": 2}
    models = {REAL: {"1.0": entry}}
    for number in (1, 2):
        file = snapshots / f"{number}-snapshot.cfg"
        file.write_text(f"#\nmodel_snapshot={json.dumps({'models': models})}\n")
    damage(file)
    plan = of_record(server, None)
    assert (plan.models, plan.recorded, capsys.readouterr().err) == (models, True, "")
    (snapshots / "1-snapshot.cfg").unlink()
    plan = of_record(server, None)
    assert (list(plan.models), plan.recorded) == ([DEFAULT], False)
    told = f"{snapshots}: no snapshot can be read; serving {DEFAULT}.\n"
    assert capsys.readouterr().err == told
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    memory = tmp_path / "hub" / "checkpoints" / f"{DEFAULT}.unavailable.json"
    memory.parent.mkdir(parents=True)
    known = {"mirror": None, "path": "absent", "message": "not to be had"}
    memory.write_text(json.dumps(known))
    assert remembered(DEFAULT) == "not to be had"
    damage(memory)
    assert remembered(DEFAULT) is None


@pytest.mark.parametrize("suffix", [".json", ".mar"])
def test_an_archive_and_its_record(
    suffix: str, fixed: Path, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = tmp_path / "store" / "local"
    store.mkdir(parents=True)
    for path in (fixed, fixed.with_suffix(".json")):
        shutil.copy(path, store)
    monkeypatch.setattr(paths, "MODEL_STORE", tmp_path / "store")
    monkeypatch.setattr(paths, "STATE", tmp_path / "state")
    file = store / f"fixed{suffix}"
    ports = [part for pair in free_ports().items() for part in ("--set", "=".join(pair))]
    for damage in OF_STATE:
        with damaged(file, damage):
            for named in (("--models", "fixed"), ("--archive", store / "fixed.mar")):
                code, _, error = run("serve", "start", *named, *ports)
                assert code == 1 and len(error.splitlines()) == 1, (damage, error)
                assert file.name in error, (damage, error)
    (logs := tmp_path / "state" / "local" / "logs").mkdir()
    for log in (logs.with_name("console.log"), logs / "ts_log.log"):
        os.mkfifo(log)
        code, _, error = run("serve", "start", "--models", "fixed", *ports)
        assert code == 1 and len(error.splitlines()) == 1 and str(log) in error, error
        log.unlink()


@pytest.mark.parametrize("name", ["config.properties", "model-config.yaml"])
def test_a_configuration(
    name: str, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(paths.CONFIG, tmp_path / "config")
    monkeypatch.setattr(paths, "CONFIG", tmp_path / "config")
    monkeypatch.setattr(paths, "STATE", tmp_path / "state")
    monkeypatch.setattr(paths, "MODEL_STORE", tmp_path / "store")
    file = tmp_path / "config" / "server" / name
    for damage in DAMAGES:
        with damaged(file, damage):
            if damage is cut:
                continue  # It is one, of fewer keys.
            if name == "config.properties":
                code, _, error = run("serve", "start", "--profile", "server")
            elif damage in (empty, unreadable):
                continue  # The profile has none.
            else:
                code, _, error = run("build", REAL, "--profile", "server")
            assert code == 1 and len(error.splitlines()) == 1, (damage, error)
            assert name in error, (damage, error)


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.parquet"])
def test_the_output_of_an_earlier_run(
    name: str, run: Run, server: TorchServe, tmp_path: Path
) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow", reason="the `batch` extra is not installed")
    images = [shutil.copy(photos.greeting(), tmp_path / f"{number}.png") for number in range(3)]
    output = tmp_path / name
    key_file = server.state / "key_file.json"
    asked = ["--server", server.client.inference, "--model", REAL, "--key-file", key_file]
    command = ["classify", *images, *asked, "--tta", "none", "--output", output]
    code, _, error = run(*command)
    assert code == 0, error
    whole = output.read_bytes()
    kept = set(tmp_path.iterdir())
    for file in (output, output.with_name(f"{name}.run.json")):
        for damage in (*DAMAGES, pipe):
            with damaged(file, damage):
                code, _, error = run(*command)
                if code == 0:
                    assert file == output, (damage, error)
                    assert damage in (cut, empty, unreadable), (damage, error)
                    assert output.read_bytes() == whole
                else:
                    (line,) = error.splitlines()
                    assert code == 2 and output.name in line, (file, damage, error)
            assert set(tmp_path.iterdir()) == kept, (file, damage)
            assert output.read_bytes() == whole


@pytest.mark.parametrize("name", ["weights.pt", "labels.txt", "names.json", "t.json"])
def test_the_users_own_files(name: str, run: Run, tmp_path: Path) -> None:
    from visionserve.models import MODELS

    torch.save(MODELS["squeezenet1_1"].build(2).state_dict(), tmp_path / "weights.pt")
    (tmp_path / "labels.txt").write_text("alp\nvalley\n")
    (tmp_path / "names.json").write_text('{"alp": "meadow"}')
    (tmp_path / "t.json").write_text('{"architecture": "squeezenet1_1", "weights_sha256": "0"}')
    options = {"weights": "weights.pt", "labels": "labels.txt", "label-map": "names.json"}
    options |= {"temperatures": "t.json"} if name == "t.json" else {}
    given = [part for key, file in options.items() for part in (f"--{key}", tmp_path / file)]
    for damage in DAMAGES:
        if name == "labels.txt" and damage in (cut, other_version, other_kind):
            continue  # It is a list of labels.
        with damaged(tmp_path / name, damage):
            code, _, error = run("build", "squeezenet1_1", *given, "--store", tmp_path / "store")
            *told, line = error.splitlines()
            assert code == 1 and name in line, (damage, error)
            # What every picture goes through is told before the weights are read.
            assert not told or (name == "weights.pt" and told[1].startswith("Every picture"))


@pytest.mark.parametrize("name", ["identity", "logs/error.log", "logs/access.log"])
def test_what_nginx_wrote(name: str, run: Run, server: TorchServe, tmp_path: Path) -> None:
    state = tmp_path / "nginx"
    (state / "logs").mkdir(parents=True)
    key_file = server.state / "key_file.json"
    for damage in (nuls, not_utf_8, folder, pipe):
        (state / name).write_bytes(b"0123456789abcdef")
        damage(state / name)
        addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
        listen = ("--listen", addresses[0], "--probes", addresses[1], "--model", REAL)
        upstream = ("--upstream", server.client.inference, key_file)
        try:
            code, out, error = run("proxy", "start", "--state", state, *upstream, *listen)
            if damage in (folder, pipe):
                assert code == 1 and len(error.splitlines()) == 1 and name in error, error
                (state / name).rmdir() if damage is folder else (state / name).unlink()
            else:
                assert (code, error) == (0, ""), (damage, out)
        finally:
            run("proxy", "stop", "--state", state)
