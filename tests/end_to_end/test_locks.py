"""Two commands at once on one output, server, archive or nginx."""

import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from threading import Event

import pytest
import requests

from tests.helpers import REAL, called, site_of
from visionserve_tools import HOME, lock, paths, photos
from visionserve_tools.archive.calibrated import Fitted, pack
from visionserve_tools.archive.download import download
from visionserve_tools.archive.hashes import is_recorded, read_record, record
from visionserve_tools.server.ports import free_ports
from visionserve_tools.server.torchserve import TorchServe

TIMEOUT = 60
NOBODY = 65534


def visionserve(*arguments: object, home: Path = paths.ROOT) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "visionserve_tools", *map(str, arguments)],
        env={**os.environ, HOME: str(home)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def rows_of(output: Path) -> list[str]:
    """The paths of an output's rows, read by other programs than ours."""
    if output.suffix == ".parquet":
        from pyarrow import parquet

        return [str(path) for path in parquet.read_table(output)["path"].to_pylist()]
    lines = output.read_text().splitlines()
    if output.suffix == ".jsonl":
        return [json.loads(line)["path"] for line in lines]
    return [line.split(",")[0].strip('"') for line in lines[1:]]


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.parquet"])
def test_an_output_is_one_runs_alone(name: str, server: TorchServe, tmp_path: Path) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow", reason="the `batch` extra is not installed")
    images = [str(tmp_path / f"{number}.png") for number in range(3)]
    for image in images:
        shutil.copy(photos.greeting(), image)
    output = tmp_path / name
    key_file = server.state / "key_file.json"
    asked = ["--server", server.client.inference, "--model", REAL, "--key-file", key_file]
    command = [*asked, "--tta", "none", "--concurrency", 1, "--list", "-", "--output"]

    def begun(output: Path = output) -> subprocess.Popen[str]:
        """A run that has its first nine images, and waits for the rest."""
        running = visionserve("classify", *command, output)
        assert running.stdin
        running.stdin.write("\n".join(images * 3) + "\n")
        running.stdin.flush()
        until(lambda: f" {running.pid} " in Path("/proc/locks").read_text())
        return running

    (link := tmp_path / f"link{output.suffix}").symlink_to(name)
    first = name == "rows.csv"  # Which tries all; what is locked is the same for all formats.
    with begun() as killed:
        for same in (output, f"{tmp_path}/../{tmp_path.name}/{name}", link)[: 3 if first else 1]:
            (line,) = called("classify", *command, same).stderr.splitlines()
            assert str(killed.pid) in line and " classify " in line and "since 20" in line
        killed.kill()
    with begun(link) as running:
        for more in ([], ["--overwrite"])[: 2 if first else 1]:
            second = called("classify", *command, output, *more)
            (line,) = second.stderr.splitlines()
            assert second.returncode == 2 and str(running.pid) in line
        _, error = running.communicate(timeout=TIMEOUT)
        assert error.splitlines()[-1] == "9 images, errors: 0."
    assert rows_of(output) == images * 3
    kept = {path.name for path in tmp_path.iterdir()} - {Path(image).name for image in images}
    assert kept == {name, f"{name}.run.json", link.name}
    assert link.is_symlink()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the commands' own, for states and stores."""
    return tmp_path_factory.mktemp("home")


def test_a_second_start_waits_and_finds_the_server_running(
    home: Path, store: Path, int8_archive: Path
) -> None:
    """Of one profile; one of another profile, which wants the same ports, is told who has them."""
    ports = free_ports()
    overrides = [part for pair in ports.items() for part in ("--set", "=".join(pair))]

    def serve(*arguments: object) -> subprocess.Popen[str]:
        return visionserve("serve", *arguments, home=home)

    def plain(out: str) -> str:
        return re.sub(", built .*", "", out)

    def start(profile: str) -> subprocess.Popen[str]:
        return serve("start", "--profile", profile, "--archive", int8_archive, *overrides)

    try:
        with start("local") as first:
            until(lambda: f" {first.pid} " in Path("/proc/locks").read_text())
            with start("local") as second, start("server") as other:
                until(lambda: (home / ".torchserve" / "local" / "console.log").exists())
                stop = serve("stop", "--profile", "local")
                until(lambda: stop.stderr is not None and "waiting" in stop.stderr.readline())
                stop.kill()
                stop.communicate()
                (out, error), (more, waited), (none, refused) = (
                    process.communicate(timeout=TIMEOUT) for process in (first, second, other)
                )
        assert (first.returncode, second.returncode, other.returncode) == (0, 0, 1), (error, waited)
        # The archive may have become a minute older in between.
        assert "Egyptian cat" in out and plain(more) == plain(out)
        assert error == ""
        (line,) = waited.splitlines()
        assert (
            f"waiting for the end of process {first.pid} (-m visionserve_tools serve start" in line
        )
        *_, told = refused.splitlines()
        assert "taken by the server of profile local: make stop PROFILE=local ends it." in told
        assert none == ""
        assert requests.get(f"{ports['inference_address']}/ping", timeout=TIMEOUT).ok
        pid = TorchServe("local", home / ".torchserve" / "local", store).pid
        told, _ = serve("start", *overrides).communicate(timeout=TIMEOUT)
        assert plain(told) == plain(out)
        assert TorchServe("local", home / ".torchserve" / "local", store).pid == pid
        with lock.alone(home / ".torchserve" / "local"):
            rotating = visionserve("manage", "rotate", home=home)
            assert rotating.stderr
            assert "waiting for the end of process" in rotating.stderr.readline()
            listed = visionserve("manage", "list", home=home)
            assert listed.communicate(timeout=TIMEOUT)[0].startswith("int8 1.0 (default)")
        _, error = rotating.communicate(timeout=TIMEOUT)
        assert error.startswith("This server asks for no token")
    finally:
        stopped, _ = serve("stop").communicate(timeout=TIMEOUT)
        serve("stop", "--profile", "server").communicate(timeout=TIMEOUT)
    assert stopped.startswith("Stopped the server of profile local")


def test_a_second_build_waits_and_finds_the_archive(home: Path, store: Path) -> None:
    """The first one is halted until the second one waits; the session's store has its model."""
    own = home / "store"
    command = ["build", REAL, "--profile", "server", "--precision", "fp32", "--store", own]
    with visionserve(*command) as first:
        until(lambda: f" {first.pid} " in Path("/proc/locks").read_text())
        first.send_signal(signal.SIGSTOP)
        with visionserve(*command) as second:
            assert second.stderr is not None
            waited = second.stderr.readline()
            first.send_signal(signal.SIGCONT)
            built, again = (each.communicate(timeout=4 * TIMEOUT) for each in (first, second))
    assert (first.returncode, second.returncode) == (0, 0), (built, again)
    assert built[0] == again[0]
    assert f"waiting for the end of process {first.pid} (" in waited
    assert "packed around" in built[1] and again[1] == "", "no second build"
    record = read_record(own / f"{REAL}.mar")
    digest = hashlib.sha256((own / f"{REAL}.mar").read_bytes()).hexdigest()
    assert record is not None and record["sha256"] == digest
    assert {path.name for path in own.iterdir()} == {f"{REAL}.mar", f"{REAL}.json"}


def test_a_start_of_nginx_is_told_nothing_of_a_stop_meanwhile(
    server: TorchServe, tmp_path: Path
) -> None:
    """Two starts and a stop at once: each start finds the server that it put nginx before."""
    site, state = site_of(server), ["--state", tmp_path / "nginx"]
    (upstream,) = site.upstreams
    command = ["proxy", "start", *state, "--upstream", upstream.url, upstream.key_file]
    command += ["--listen", site.listen, "--probes", site.probes]  # Of a model that is served.
    for _ in range(2):
        starting = [visionserve(*command) for _ in range(2)]
        until(lambda: (tmp_path / "nginx" / "nginx.pid").exists())
        stopping = visionserve("proxy", "stop", *state)
        for process in starting:
            out, _ = process.communicate(timeout=TIMEOUT)
            assert (process.returncode, out) == (0, f"nginx answers at http://{site.listen}.\n")
        stopping.communicate(timeout=TIMEOUT)
        assert stopping.returncode == 0
        called("proxy", "stop", *state)


@contextmanager
def pipe(path: Path) -> Iterator[Path]:
    """A pipe for the block, with a reader, so that a writer who should not be there waits not."""
    os.mkfifo(path)
    reader = os.open(path, os.O_RDWR)
    try:
        yield path
    finally:
        os.close(reader)
        path.unlink()


def test_no_pipe_is_written_in_a_store(tmp_path: Path) -> None:
    built, archive = tmp_path / "built", tmp_path / "x.mar"
    for name in ("x.mar.part", "x.json.part"):
        built.write_bytes(b"archive")
        with pipe(tmp_path / name), pytest.raises(OSError, match=f"{name}: is no regular file"):
            record(archive, "", built=built)
    with zipfile.ZipFile(archive, "w") as empty:
        empty.writestr("metadata.json", '{"categories": []}')
    record(archive, "")
    fitted = Fitted(architecture="x", weights_sha256="", about="", temperatures={})
    with pipe(tmp_path / "x.mar.new"), pytest.raises(OSError, match=r"x\.mar\.new: is no regular"):
        pack(archive, fitted)
    with (
        pipe(tmp_path / "w.pth.part"),
        pytest.raises(OSError, match=r"w\.pth\.part: is no regular file"),
    ):
        download("http://127.0.0.1:9/w.pth", tmp_path / "w.pth", "")
    archive.unlink()
    with pipe(archive):
        assert not is_recorded(archive, "")


@pytest.mark.parametrize(
    ("command", "file", "drawn"),
    [
        ("calibrate", "t.json", ""),
        ("evaluate", "evaluation.json", "reliability.png"),
        ("evaluate --archive absent.mar", "evaluation.json", "reliability.png worst.html"),
        ("robustness", "robustness.json", "robustness.png"),
    ],
)
def test_what_is_measured_has_one_writer(
    command: str,
    file: str,
    drawn: str,
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It says so before it measures; what is there stays, where nothing can be measured.

    A pipe, which a writer waits for, is refused as early.
    """
    name, *more = command.split()
    if name != "evaluate":
        more = ["--archive", str(store / f"{REAL}.mar")]
    output = tmp_path / file
    named = output if name == "calibrate" else tmp_path
    monkeypatch.setattr(sys, "argv", [name, str(tmp_path), *more, "--output", str(named)])
    main = import_module(f"visionserve_tools.commands.{name}").main
    for other in (file, f"{file}.part", *drawn.split()):
        with pipe(tmp_path / other) as written_to:
            assert main() == 1
            assert capsys.readouterr().err == f"{written_to}: is no regular file: remove it.\n"
    output.write_text("kept")
    with lock.replace(output) as written:
        assert main() == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"{output}: process {os.getpid()} (")
        written.write(b"new")
    assert output.read_text() == "new"
    assert main() == 1
    assert capsys.readouterr().err == (
        "absent.mar: no such archive.\n"
        if "absent.mar" in more
        else f"{tmp_path}: no images below it.\n"
    )
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {file: "new"}


def test_a_lock_is_of_what_has_the_name_now(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever waited for a folder that was replaced holds the new one."""
    folder = tmp_path / "state"
    folder.mkdir()
    waited, done = Event(), Event()

    def wait() -> None:
        with lock.alone(folder):
            waited.set()
            done.wait(TIMEOUT)

    with ThreadPoolExecutor(1) as pool:
        with lock.alone(folder):
            waiting = pool.submit(wait)
            line = f"-> FLOCK  ADVISORY  WRITE {os.getpid()} "
            until(lambda: line in Path("/proc/locks").read_text())
            folder.rename(tmp_path / "moved")
            folder.mkdir()
        assert waited.wait(TIMEOUT)
        descriptor = os.open(folder / ".lock", os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)
        done.set()
        waiting.result()
    assert f"waiting for the end of process {os.getpid()} (" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_who_may_only_read_holds_nothing_up() -> None:
    """Another user locks all that there is, which a command would wait for."""
    sources = [path for path in paths.TOOLS.rglob("*.py") if "flock(" in path.read_text()]
    assert sources == [paths.TOOLS / "lock.py"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        output, part = folder / "rows.csv", folder / "weights.pth.part"
        for file in (output, part):
            file.touch()
        folder.chmod(0o755)
        locking = [
            subprocess.Popen(["flock", "--no-fork", place, "sleep", "60"], user=NOBODY)
            for place in (folder, output, part)
        ]
        try:
            until(
                lambda: all(
                    f" {process.pid} " in Path("/proc/locks").read_text() for process in locking
                )
            )
            stop = visionserve("proxy", "stop", "--state", folder)
            assert stop.communicate(timeout=TIMEOUT) == ("No nginx ran.\n", "")
            with lock.alone(folder), lock.writing(output), lock.writing(part, wait=True):
                for file in folder.glob(".*"):
                    done = subprocess.run(
                        ["flock", "-n", file, "true"], user=NOBODY, capture_output=True
                    )
                    assert b"Permission denied" in done.stderr, file
                assert len(list(folder.glob(".*"))) == 3
        finally:
            for process in locking:
                process.kill()
                process.wait()
        assert {path.name for path in folder.iterdir()} == {output.name, part.name}


@pytest.mark.parametrize(("folder", "file"), [(0o755, 0o600), (0o775, 0o660), (0o1777, 0o600)])
def test_who_may_write_may_lock(folder: int, file: int, tmp_path: Path) -> None:
    tmp_path.chmod(folder)
    with lock.alone(tmp_path):
        assert stat.S_IMODE((tmp_path / ".lock").stat().st_mode) == file


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_the_state_may_lie_in_a_volume_of_roots(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which everybody may write to and nobody else may close, as an emptyDir of Kubernetes."""
    with tempfile.TemporaryDirectory() as scratch:
        volume = Path(scratch)
        volume.chmod(0o777)
        monkeypatch.setattr(paths, "STATE", volume)
        monkeypatch.setattr(sys, "argv", ["serve", "stop"])
        os.seteuid(NOBODY)
        try:
            code = import_module("visionserve_tools.commands.serve").main()
        finally:
            os.seteuid(0)
        assert (code, *capsys.readouterr()) == (0, "No server of profile local ran.\n", "")
        assert [path.name for path in volume.iterdir()] == ["local"]
        assert stat.S_IMODE((volume / "local").stat().st_mode) == 0o700
