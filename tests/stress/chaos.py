"""Break a server in each known way under load, and count lost, wrong and late responses."""

import base64
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from itertools import pairwise
from pathlib import Path

import psutil
import requests
import yaml
from PIL import Image

from tests.stress.clients import (
    MODEL,
    REFUSED_FORMATS,
    RETRIES,
    Load,
    Question,
    Sent,
    plain,
    refused,
    serving,
)
from visionserve_tools.arguments import Parser
from visionserve_tools.report import tables
from visionserve_tools.server import processes
from visionserve_tools.server.nginx import Proxy, Site, Upstream
from visionserve_tools.server.ports import free_port
from visionserve_tools.server.properties import read_properties
from visionserve_tools.server.retire import retire
from visionserve_tools.server.torchserve import StartError, TorchServe, client_of

CLIENTS = 3
PATIENCE = 90
PAUSE = 0.02
WORKERS = 2
RESPONSE_TIMEOUT = 3
LATE = 10
QUICK = 3
DISK = "32m"
CONFIG = "model-config.yaml"
ATTEMPTS = 5


class FaultError(Exception):
    """The server did not recover, or did something that it must not do."""


class SkippedError(Exception):
    """This machine does not permit this fault."""


class Testbed:
    """A server that faults are caused in, with two workers and a response timeout of 3 s.

    If mounting is permitted, its logs and its cache of answers lie on a small disk of their own.
    """

    def __init__(self, folder: Path, server: TorchServe) -> None:
        self.folder = folder
        self.server = server
        self.client = server.client
        self.load = Load(server.state, plain())
        self.archive = folder / "store" / f"{MODEL}.mar"

    def restart(self) -> None:
        """Stop what is left of the server, and start it anew."""
        self.server.stop()
        self.server.start([f"{MODEL}={self.archive.name}"])

    def pids(self) -> list[int]:
        """Return the process ids of the first version's workers."""
        return [worker["pid"] for worker in self.client.describe(MODEL)[0]["workers"]]

    def file(self, name: str) -> bytes:
        """Return the content of a file in the archive."""
        with zipfile.ZipFile(self.archive) as archive:
            return archive.read(name)

    def register(self, version: str, files: Mapping[str, bytes]) -> None:
        """Register the archive as another version of one worker, with some of its files replaced.

        Raises:
            requests.HTTPError: the worker cannot load the version.
        """
        target = self.archive.with_name(f"{version}.mar")
        config = yaml.safe_load(files.get(CONFIG) or self.file(CONFIG)) | {"minWorkers": 1}
        files = {**files, CONFIG: yaml.safe_dump(config).encode()}
        with zipfile.ZipFile(self.archive) as source, zipfile.ZipFile(target, "w") as copy:
            for name in source.namelist():
                content = source.read(name)
                if name == "MAR-INF/MANIFEST.json":
                    manifest = json.loads(content)
                    manifest["model"]["modelVersion"] = version
                    content = json.dumps(manifest).encode()
                copy.writestr(name, files.get(name, content))
        self.server.register(target.name)

    def replace(self, version: str, successor: str) -> None:
        """Make the successor the default version, and then remove the version."""
        self.client.set_default(MODEL, successor)
        retire(self.client, self.server.admitted, MODEL, version)


@contextmanager
def testbed() -> Iterator[Testbed]:
    """Start the server for the faults, with all its files in a temporary folder.

    The temporary files of the server and of this process lie in that folder too.
    """
    with tempfile.TemporaryDirectory(prefix="chaos-") as name, _temporary(Path(name) / "tmp"):
        folder = Path(name)
        disk = folder / "state" / "logs"
        disk.mkdir(parents=True)
        mounted = _run("mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(disk))
        # In FP32, whose answers are PyTorch's within a thousandth on every processor.
        handler = {
            "precision": "fp32",
            "cache": {"directory": str(disk / "cache"), "size_mb": 2},
        }
        try:
            with serving(
                folder, handler, minWorkers=WORKERS, responseTimeout=RESPONSE_TIMEOUT
            ) as server:
                yield Testbed(folder, server)
        finally:
            if mounted:
                _run("umount", str(disk))


@contextmanager
def _temporary(folder: Path) -> Iterator[None]:
    """Make a folder the one for temporary files, in this process and in its child processes."""
    folder.mkdir()
    before, inherited = tempfile.tempdir, os.environ.get("TMPDIR")
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before
        if inherited is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = inherited


def _run(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def until(condition: Callable[[], bool], seconds: float = 90) -> None:
    """Wait until a condition holds; it does not hold while the server cannot be reached.

    Raises:
        FaultError: the condition did not hold in time.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(requests.RequestException):
            if condition():
                return
        time.sleep(0.1)
    raise FaultError(f"The server is not back after {seconds} s.")


def kill_worker(testbed: Testbed) -> None:
    """a worker is killed (`kill -9`)"""
    _replace_worker(testbed, signal.SIGKILL)


def stop_worker(testbed: Testbed) -> None:
    """a worker is stopped (SIGSTOP) past the response timeout of 3 s"""
    _replace_worker(testbed, signal.SIGSTOP)


def _replace_worker(testbed: Testbed, number: signal.Signals) -> None:
    victim = testbed.pids()[0]
    os.kill(victim, number)
    until(lambda: victim not in testbed.pids() and testbed.client.ready())


def kill_frontend(testbed: Testbed) -> None:
    """the frontend is killed (`kill -9`), then started from its snapshot"""
    frontend = testbed.server.process
    assert frontend is not None
    frontend.kill()
    processes.wait(
        frontend, 90
    )  # A dying process keeps its ports, but has no command line to find it by.
    restart_frontend(testbed)


def restart_frontend(testbed: Testbed) -> None:
    """the frontend is stopped, then started from its snapshot"""
    testbed.server.stop()
    testbed.server.restore()
    if len(testbed.pids()) != WORKERS:
        raise FaultError("The snapshot has other workers.")


def fill_disk(testbed: Testbed) -> None:
    """the disk of cache, logs and snapshots is full"""
    disk = testbed.folder / "state" / "logs"
    if not disk.is_mount():
        raise SkippedError("mounting a small disk is not permitted")
    filler = disk / "filler"
    try:
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        kill_worker(testbed)
        testbed.client.scale(MODEL, WORKERS)
    finally:
        filler.unlink()


def corrupt_version(testbed: Testbed) -> None:
    """a corrupt new version is registered, its model or its archive cut short"""
    (testbed.archive.with_name("cut.mar")).write_bytes(testbed.archive.read_bytes()[:100_000])
    testbed.server.admit("cut.mar")
    model = testbed.file("model.bin")
    attempts: tuple[Callable[[], None], ...] = (
        lambda: testbed.client.register("cut.mar"),
        lambda: testbed.register("2.0", {"model.bin": model[: len(model) // 2]}),
    )
    for register in attempts:
        try:
            register()
        except requests.HTTPError:
            continue
        raise FaultError("A corrupt version was taken.")
    with suppress(requests.HTTPError):  # TorchServe may keep it listed, without a worker.
        testbed.client.unregister(MODEL, "2.0")


def replace_model(testbed: Testbed) -> None:
    """the model is unregistered and registered again; meanwhile a version serves whose cache \
cannot be written"""
    config = yaml.safe_load(testbed.file(CONFIG))
    config["handler"]["cache"]["directory"] = str(testbed.archive / "cache")
    testbed.register("2.0", {CONFIG: yaml.safe_dump(config).encode()})
    testbed.replace("1.0", successor="2.0")
    testbed.server.register(testbed.archive.name, WORKERS)
    testbed.replace("2.0", successor="1.0")


def remove_model(testbed: Testbed) -> None:
    """the model is unregistered and registered again, no other version serving"""
    retire(testbed.client, testbed.server.admitted, MODEL)
    testbed.server.register(testbed.archive.name, WORKERS)


def kill_workers_amid_a_list(testbed: Testbed) -> None:
    """both workers are killed (`kill -9`) in turn while a list of images is answered"""
    images = tuple(image for question in plain() for image in question.images)
    load = Load(testbed.server.state, [Question(images[:3], "five_crop")])
    with load.steady(1, RETRIES, PATIENCE) as lists:
        for _ in range(ATTEMPTS):
            for victim in testbed.pids():
                time.sleep(0.2)
                os.kill(victim, signal.SIGKILL)
            until(lambda: len(testbed.pids()) == WORKERS and testbed.client.ready())
            count = len(lists) + 1
            until(lambda count=count: len(lists) > count)  # type: ignore[misc]
            if any(sent.setbacks for sent in lists):
                break
        else:
            raise FaultError("No list met a killed worker.")
    if failed := [sent for sent in lists if sent.verdict != "right"]:
        raise FaultError(f"A list was {failed[0].verdict}.")


def ask_for_many_pixels(testbed: Testbed) -> None:
    """a list of 32 PNGs of 6,000 × 4,000 pixels with alpha is asked for"""
    _ask_for(testbed, _large())


def ask_for_many_scans(testbed: Testbed) -> None:
    """a list of 32 progressive JPEGs of 11 arithmetic scans is asked for"""
    from tests.corpus import scans

    _ask_for(testbed, scans(10, arithmetic=True))


def ask_for_refused_images(testbed: Testbed) -> None:
    """lists of 32 images of 24 MP to refuse are asked for, of workers that may grow by 400 MB"""
    for pid in testbed.pids():
        worker = psutil.Process(pid)
        most = worker.memory_info().vms + 400_000_000
        worker.rlimit(psutil.RLIMIT_AS, (most, psutil.RLIM_INFINITY))
    for _ in range(2):
        _ask_for(testbed, *(refused(format) for format in REFUSED_FORMATS))


def _ask_for(testbed: Testbed, *images: bytes) -> None:
    """Send a list of 32 copies of images, and check that no worker ends and none takes long.

    Each copy has other bytes at its end, so that no answer comes from the cache.
    """
    before = testbed.pids()
    copies = [image + os.urandom(8) for image in images for _ in range(32 // len(images))]
    body = _list(copies)
    began = time.monotonic()
    response = client_of(testbed.server.state).predict(MODEL, body, content_type="application/json")
    seconds = time.monotonic() - began
    if (
        response.status_code not in (200, 207, 413, 503)
        or testbed.pids() != before
        or "internal_error" in response.text
    ):
        raise FaultError(f"The list ended a worker: {response.status_code} after {seconds:.1f} s.")
    if seconds > LATE:
        raise FaultError(f"The list took {seconds:.1f} s.")


def attack_from_one_address(testbed: Testbed) -> None:
    """hostile forms, refused lists and lists of 24 megapixels come from one address behind nginx, \
for a minute"""
    part = b'--b\r\nContent-Disposition: form-data; name="data"'
    large = _large()
    attacks = (
        ("multipart/form-data; boundary=b", part + b";a=b" * 1_700_000 + b"\r\n\r\n\r\n--b--"),
        ("multipart/form-data; boundary=b", (part + b"\r\n\r\n\r\n") * 120_000 + b"--b--"),
        ("application/json", _list([large[: len(large) * 2 // 3]] * 32)),
        ("application/json", _list([large + os.urandom(8) for _ in range(32)])),
    )
    listen, probes = (f"127.0.0.1:{free_port()}" for _ in range(2))
    photographs = [image for question in plain() for image in question.images]
    stop = time.monotonic() + 600
    seconds: list[float] = []

    def attack(number: int) -> None:
        while time.monotonic() < stop:
            with suppress(OSError):  # nginx may close the connection of a form that it refuses.
                _post(listen, "127.0.0.2", *attacks[number % len(attacks)])

    folder = testbed.folder / "attacked"
    folder.mkdir(exist_ok=True)
    nginx = Proxy(folder / "nginx")
    with serving(folder, {"precision": "fp32"}) as server, ThreadPoolExecutor(16) as pool:
        workers = [worker["pid"] for worker in server.client.describe(MODEL)[0]["workers"]]
        upstream = Upstream(server.client.inference, server.state / "key_file.json")
        nginx.start(Site((upstream,), listen, probes, MODEL))
        try:
            for number in range(16):
                pool.submit(attack, number)
            stop = time.monotonic() + 60
            while time.monotonic() < stop:
                image = photographs[len(seconds) % len(photographs)] + os.urandom(8)
                began = time.monotonic()
                status = _post(listen, "127.0.0.3", "image/jpeg", image)
                seconds.append(time.monotonic() - began)
                if status != 200:
                    raise FaultError(f"Another client got {status} after {seconds[-1]:.1f} s.")
                if requests.get(f"http://{probes}/ping", timeout=60).status_code != 200:
                    raise FaultError("nginx says that the server is not ready.")
                time.sleep(0.3)
        finally:
            stop = 0
            nginx.stop()
        if workers != [worker["pid"] for worker in server.client.describe(MODEL)[0]["workers"]]:
            raise FaultError("A worker ended.")
    if (late := sorted(seconds)[len(seconds) * 99 // 100]) > QUICK:
        raise FaultError(f"The 99th percentile of another client's requests is {late:.1f} s.")


def _post(address: str, source: str, content_type: str, body: bytes) -> int:
    """Send a request from a source address; return the status of the answer."""
    with closing(HTTPConnection(address, timeout=60, source_address=(source, 0))) as connection:
        connection.request("POST", f"/predictions/{MODEL}", body, {"Content-Type": content_type})
        response = connection.getresponse()
        response.read()
        return response.status


def _list(images: Sequence[bytes]) -> bytes:
    return json.dumps({"data": [base64.b64encode(image).decode() for image in images]}).encode()


def _large() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", (6000, 4000), (90, 120, 60, 200)).save(buffer, "PNG")
    return buffer.getvalue()


def delete_temporary_files(testbed: Testbed) -> None:
    """all temporary files are deleted, then a worker is killed"""
    for path in Path(tempfile.gettempdir()).iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    if testbed.server.pid is None:
        raise FaultError("The server is no longer known to run.")
    kill_worker(testbed)


def leave_stale_ids(testbed: Testbed) -> None:
    """files of process ids name a bystander, and the server is stopped and started"""
    bystander = subprocess.Popen(["sleep", "3600"])
    frontend = testbed.server.process
    assert frontend is not None
    try:
        for folder in (testbed.server.state, testbed.server.state / "tmp"):
            for file in folder.glob("*.pid"):
                file.write_text(str(bystander.pid))
        restart_frontend(testbed)
        if bystander.poll() is not None:
            raise FaultError("A bystander was ended.")
        if frontend.is_running():
            raise FaultError("The server was not stopped.")
    finally:
        bystander.kill()
        bystander.wait()


def outlive_tokens(testbed: Testbed) -> None:
    """tokens live for a minute, and are renewed (`manage rotate`) twice in each, for three"""
    properties = read_properties(testbed.server.state / "config.properties")
    addresses = {
        key: value for key, value in properties.items() if key.endswith(("_address", "_port"))
    }
    brief = TorchServe(
        "server",
        testbed.server.state,
        testbed.server.store,
        addresses | {"token_expiration_min": "1"},
    )
    testbed.server.stop()
    try:
        brief.restore()
        with testbed.load.steady(1, pause=PAUSE) as asked:
            for _ in range(6):
                time.sleep(30)
                brief.client.rotate()
        if failed := sum(sent.verdict != "right" for sent in asked):
            raise FaultError(f"{failed} of {len(asked)} requests got no right answer.")
    finally:
        brief.stop()
        testbed.server.restore()


def rotate_read_only_keys(testbed: Testbed) -> None:
    """keys are to be replaced (`manage rotate`) while their file is read-only"""
    keys = testbed.server.state / "key_file.json"
    before = keys.read_bytes()
    with read_only(keys):
        with suppress(OSError):
            testbed.client.rotate()
            raise FaultError("Keys were replaced that no file holds.")
        answered = testbed.client.predict(MODEL, plain()[0].images[0])
        if keys.read_bytes() != before or not answered.ok:
            raise FaultError("The file no longer holds the server's keys.")
    testbed.client.rotate()
    if keys.read_bytes() == before:
        raise FaultError("The keys are still the old ones.")


@contextmanager
def read_only(file: Path) -> Iterator[None]:
    """Have nobody write a file, root included, during the block.

    Raises:
        SkippedError: this process is root's, and mounting is not permitted.
    """
    path = str(file)
    if os.geteuid():
        file.chmod(0o400)
    elif not _run("mount", "--bind", path, path):
        raise SkippedError("mounting a file read-only is not permitted")
    try:
        if not os.geteuid():
            _run("mount", "-o", "remount,bind,ro", path)
        yield
    finally:
        if os.geteuid():
            file.chmod(0o600)
        else:
            _run("umount", path)


Fault = Callable[[Testbed], None]
FAULTS: tuple[Fault, ...] = (
    kill_worker,
    stop_worker,
    kill_workers_amid_a_list,
    ask_for_many_pixels,
    ask_for_many_scans,
    ask_for_refused_images,
    attack_from_one_address,
    fill_disk,
    kill_frontend,
    restart_frontend,
    corrupt_version,
    replace_model,
    remove_model,
    delete_temporary_files,
    leave_stale_ids,
    rotate_read_only_keys,
    outlive_tokens,
)


@dataclass(frozen=True)
class Report:
    """The requests that clients sent during and after a fault, and what became of them.

    Attributes:
        asked: the requests of the clients that retry.
        probed: the requests of the clients that do not retry: one client from before the fault
            to the end, and one that starts after the fault.
    """

    asked: Sequence[Sent]
    probed: Sequence[Sent]

    @property
    def wrong(self) -> int:
        """The number of wrong answers."""
        return sum(sent.verdict == "wrong" for sent in [*self.asked, *self.probed])

    @property
    def lost(self) -> int:
        """The number of requests that got no answer in spite of all retries."""
        return sum(sent.verdict in ("refused", "lost") for sent in self.asked)

    @property
    def late(self) -> int:
        """The number of requests that ended after more than 10 s."""
        return sum(sent.seconds > LATE for sent in self.asked)

    @property
    def away(self) -> float:
        """The longest time without a right answer, in seconds."""
        ends = sorted(s.ended for s in [*self.asked, *self.probed] if s.verdict == "right")
        return max(later - earlier for earlier, later in pairwise(ends))

    @property
    def waited(self) -> float:
        """The longest time of a request by a client that does not retry, in seconds."""
        return max(sent.seconds for sent in self.probed)

    @property
    def met(self) -> bool:
        """Whether the targets are met.

        No answer is wrong and no request lost, no client that does not retry waits over 10 s, and
        right answers are never more than 10 s apart.
        """
        return self.wrong == self.lost == 0 and max(self.away, self.waited) <= LATE

    def cells(self) -> list[str]:
        """Return the cells of this report's row, without the first one, which names the fault."""
        everyone = [*self.asked, *self.probed]
        setbacks = Counter(name for sent in everyone for name in set(sent.setbacks))
        return [
            f"{len(self.asked):,} + {len(self.probed):,}",
            f"{sum(bool(sent.setbacks) for sent in self.asked)}",
            ", ".join(f"{name} ({count})" for name, count in setbacks.most_common()),
            str(self.wrong),
            str(self.lost),
            str(self.late),
            f"{max(sent.seconds for sent in self.asked):.1f} s",
            f"{self.waited:.1f} s",
            f"{self.away:.1f} s",
        ]


COLUMNS = (
    *("fault", "requests:", "retried:", "because of", "wrong:", "lost:", "late:", "slowest:"),
    *("bystander:", "no answer for:"),
)


def cause(fault: Fault, testbed: Testbed) -> Report:
    """Cause a fault while clients send requests, which they continue after the fault.

    Raises:
        FaultError: the server did not recover, or did something that it must not do.
        SkippedError: this machine does not permit this fault.
    """
    load = testbed.load
    with (
        load.steady(CLIENTS, RETRIES, PATIENCE, PAUSE) as asked,
        load.steady(1, pause=PAUSE) as probed,
    ):
        until(lambda: len(asked) > 5 * CLIENTS)
        fault(testbed)
        with load.steady(1, pause=PAUSE) as after:
            until(lambda: sum(sent.verdict == "right" for sent in after) > 10)
    return Report(asked, [*probed, *after])


def main() -> int:
    """Run all faults, or those that are named; `make chaos`."""
    parser = Parser(prog="python -m tests.stress.chaos", description=__doc__)
    parser.add_argument("faults", nargs="*", metavar="FAULT", help="a function of its name (all)")
    args = parser.parse_args()
    faults = {fault.__name__: fault for fault in FAULTS}
    if unknown := sorted(set(args.faults) - faults.keys()):
        known = ", ".join(faults)
        print(f"No such fault: {', '.join(unknown)}; there are {known}.", file=sys.stderr)
        return 2
    missed = []
    with testbed() as started:
        print(tables.heading(COLUMNS))
        for name in args.faults or faults:
            fault = faults[name]
            try:
                report = cause(fault, started)
            except SkippedError as reason:
                _tell(fault, f"skipped: {reason}")
                continue
            except (FaultError, StartError) as error:
                _tell(fault, f"failed: {error}")
                missed.append(name)
                started.restart()
                continue
            _tell(fault, *report.cells())
            if not report.met:
                missed.append(name)
    if missed:
        print(f"Missed the targets: {', '.join(missed)}.", file=sys.stderr)
    return 1 if missed else 0


def _tell(fault: Fault, *cells: str) -> None:
    """Print a fault's row of the table at once, because the next fault may take minutes."""
    missing = len(COLUMNS) - 1 - len(cells)
    print(tables.row([str(fault.__doc__), *cells, *[""] * missing]), flush=True)


if __name__ == "__main__":
    sys.exit(main())
