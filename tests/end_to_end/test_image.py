"""The image of `make image`, run as `docker run --read-only` does, by `make test-image`.

With `ARCH=arm64` qemu runs it, whose times say nothing of a real processor.
"""

import io
import json
import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import psutil
import pytest
import requests
import yaml
from packaging.utils import canonicalize_name
from PIL import Image

from tests.corpus import CORRUPT, TRUNCATED
from tests.end_to_end.test_arm import PATIENCE, PROCESSOR, START
from visionserve import runtimes
from visionserve.preprocessing import decode, to_views
from visionserve_tools import emulation, paths, photos
from visionserve_tools.archive.hashes import read_record, sha256_of, write_record
from visionserve_tools.archive.package import CONFIG
from visionserve_tools.archive.unpacked import unpacked

IMAGE = os.environ.get("IMAGE")
URL = "http://127.0.0.1:8000"
TIMEOUT = 300
CAT = photos.greeting().read_bytes()
FORBIDDEN = ("torch", "torchvision", "nncf", "skimage", "sklearn", "scipy", "pip", "setuptools")

pytestmark = pytest.mark.skipif(IMAGE is None, reason="`make test-image` runs it")

# What `docker run --read-only --tmpfs ...` makes, without a container engine.
ENTER = """
set -e
mount --bind "$ROOT" "$ROOT"
mount -o remount,ro,bind "$ROOT"
mount -t tmpfs tmpfs "$ROOT/tmp"
mount -t tmpfs -o uid=10001,gid=10001,mode=0700 tmpfs "$ROOT/opt/visionserve/.torchserve"
mount -t proc proc "$ROOT/proc"
mount --rbind /dev "$ROOT/dev"
mount --rbind /sys "$ROOT/sys"
if test "$STORE"; then
    mount --bind "$STORE" "$ROOT/opt/visionserve/model_store/server"
    mount -o remount,ro,bind "$ROOT/opt/visionserve/model_store/server"
    mount --bind "$STORE/cpuinfo" "$ROOT/proc/cpuinfo"
fi
exec chroot --userspec=10001:10001 "$ROOT" env --ignore-environment --chdir="$DIRECTORY" "$@"
"""


@dataclass(frozen=True)
class Container:
    """A mounted container of the image.

    Attributes:
        path: its root folder, which only commands see that begin with `entered`.
        seen: the same folder as this process sees it.
        config: the image's configuration.
        architecture: what its programs are for.
        entered: see `emulation.emulated`.
    """

    path: Path
    seen: Path
    config: dict[str, Any]
    architecture: str
    entered: Sequence[str]

    @property
    def emulated(self) -> bool:
        return self.architecture != emulation.own()

    @property
    def archive(self) -> Path:
        return self.seen / "opt/visionserve/model_store/server" / f"{self.model}.mar"

    @property
    def timeout(self) -> int:
        return PATIENCE if self.emulated else TIMEOUT

    @property
    def model(self) -> str:
        (model,) = [of.removeprefix("MODEL=") for of in self.config["Env"] if "MODEL=" in of]
        return str(model)


def buildah(*arguments: str, entered: Sequence[str] = ()) -> str:
    command = [*entered, "buildah", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def container() -> Iterator[Container]:
    described = json.loads(buildah("inspect", "--type", "image", str(IMAGE)))["Docker"]
    architecture = described["architecture"]
    with emulation.emulated(architecture) as entered:
        name = buildah("from", "--pull-never", str(IMAGE), entered=entered).strip()
        try:
            path = buildah("mount", name, entered=entered).strip()
            targets = [word.partition("=")[2] for word in entered if word.startswith("--target=")]
            seen = Path(f"/proc/{targets[0]}/root{path}" if targets else path)
            yield Container(Path(path), seen, described["config"], architecture, entered)
        finally:
            buildah("rm", name, entered=entered)


@contextmanager
def running(container: Container, log: Path, store: Path | None = None) -> Iterator[psutil.Process]:
    """Start the container, its output in a file of root's, and wait until it answers.

    `store` takes the place of the image's own archives.
    """
    config = container.config
    environment, command = config["Env"], config["Cmd"]
    if container.emulated:
        environment = [*environment, f"QEMU_CPU={PROCESSOR}"]
        patient = f"python -c {shlex.quote(START)} start"
        command = [word.replace("visionserve serve start", patient) for word in command]
    log.touch(mode=0o600)
    unshare = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", ENTER, "enter")
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*container.entered, *unshare, *environment, *command],
            env={
                "PATH": os.environ["PATH"],
                "ROOT": str(container.path),
                "DIRECTORY": config["WorkingDir"],
                "STORE": str(store or ""),
            },
            stdout=output,
            stderr=output,
        )
    try:
        deadline = time.monotonic() + container.timeout
        while not answers():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        (first,) = psutil.Process(process.pid).children()
        yield first
        stop = config["StopSignal"]
        if first.is_running():
            first.send_signal(getattr(signal, stop))
        assert process.wait(timeout=60) == 0, log.read_text()
    finally:
        # A change of the user keeps the kernel from ending them with `unshare`.
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children():
                child.kill()
        process.kill()
        process.wait()


def answers() -> bool:
    try:
        return requests.get("http://127.0.0.1:8001/ping", timeout=5).ok
    except requests.RequestException:
        return False


def ask(container: Container, data: bytes = CAT, *options: tuple[str, str]) -> requests.Response:
    """Ask with bytes behind the image that keep the answer out of the cache."""
    return requests.post(
        f"{URL}/predictions/{container.model}",
        data=data + os.urandom(8),
        headers={"Content-Type": "image/png", **dict(options)},
        timeout=container.timeout,
    )


def check_answers(container: Container, first: psutil.Process) -> None:
    """Compare the whole distribution with FP32's on this machine, and send what is no image."""
    with unpacked(container.archive) as one:
        config = one.config.handler.model_copy(update={"precision": "fp32"})
        runtime = runtimes.load(one.directory, one.metadata, config, None, 1)
        decoded = decode(Image.open(io.BytesIO(CAT)), one.metadata.transforms, config.decode)
        view = to_views(decoded, one.metadata.transforms, config.decode, "none")
        expected = runtime.averaged([view]).probabilities[0]
    every = ("X-Classify-Top-K", str(len(expected)))
    response = ask(container, CAT, ("X-Classify-TTA", "none"), every)
    assert response.status_code == 200, response.text
    found = np.zeros_like(expected)
    for each in response.json()["predictions"]:
        found[each["class_id"]] = each["probability"]
    print(f"at most {np.abs(found - expected).max():.7f} from FP32")
    # This machine's own may be in BF16.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 if container.emulated else 0.1)
    for body, (status, code) in (
        (CAT[: len(CAT) // 2], TRUNCATED),
        (b"GIF89a" + bytes(64), CORRUPT),
    ):
        refused = ask(container, body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (status, code)
    kind, *health = container.config["Healthcheck"]["Test"]
    assert kind == "CMD"
    own = ("nsenter", f"--target={first.pid}", "--mount", "--root", "--setgid=10001")
    environment = ("env", "--ignore-environment", *container.config["Env"])
    command = [*container.entered, *own, "--setuid=10001", *environment, *health]
    deadline = time.monotonic() + container.timeout
    while subprocess.run(command, stderr=subprocess.DEVNULL).returncode != 0:
        # It is tried again, as Docker does; a probe has 3 s, which are few in emulation.
        assert time.monotonic() < deadline, "the health check fails"


def test_it_holds_no_torch_no_tools_and_no_configuration_of_pip(container: Container) -> None:
    path = container.seen
    (packages,) = (path / "opt/visionserve/.venv/lib").glob("python*/site-packages")
    assert [name for name in FORBIDDEN if (packages / name).exists()] == []
    assert not (path / "root/.cache").exists() and not (path / "usr/bin/gcc").exists()
    conf = path / "etc/pip.conf"
    assert not conf.exists() or conf.read_bytes() == b""


def test_its_bill_of_materials_has_each_package_with_hashes(container: Container) -> None:
    """`make sbom`, which is made of the locks, and not of an image."""
    bill = json.loads((paths.ROOT / "dist" / "visionserve-cpu.cdx.json").read_bytes())
    (packages,) = (container.seen / "opt/visionserve/.venv/lib").glob("python*/site-packages")
    installed = {
        canonicalize_name(each.metadata["Name"]): each.version
        for each in distributions(path=[str(packages)])
    }
    listed = {each["name"]: each["version"] for each in bill["components"]}
    if container.architecture != "amd64":
        del listed["cykooz-resizer"]  # It has no wheel there.
    own = bill["metadata"]["component"]
    assert installed == listed | {own["name"]: own["version"]}
    for each in bill["components"]:
        hashes = [one for of in each["externalReferences"] for one in of.get("hashes", [])]
        assert hashes and {one["alg"] for one in hashes} == {"SHA-256"}, each["name"]


def test_it_answers_as_x86_does_where_qemu_runs_it(container: Container, tmp_path: Path) -> None:
    if not container.emulated:
        pytest.skip("this machine runs it itself, as the next test does")
    store, log = tmp_path / "store", tmp_path / "output"
    store.mkdir()
    patient = store / container.archive.name
    limits = {"responseTimeout": PATIENCE, "startupTimeout": PATIENCE, "minWorkers": 1}
    with ZipFile(container.archive) as packed, ZipFile(patient, "w") as written:
        for name in packed.namelist():
            data = packed.read(name)
            if name == CONFIG:
                config = yaml.safe_load(data) | limits
                config["handler"]["deadline_seconds"] = PATIENCE
                data = yaml.safe_dump(config).encode()
            written.writestr(name, data)
    record = read_record(container.archive)
    assert record is not None
    write_record(patient, {**record, "sha256": sha256_of(patient)})
    # qemu 7.2 shows this machine's.
    (store / "cpuinfo").write_text("processor\t: 0\nFeatures\t: fp asimd crc32 cpuid\n")
    for file in (tmp_path, store, *store.iterdir()):
        file.chmod(0o755)
    with running(container, log, store) as first:
        family = [first, *first.children(recursive=True)]
        assert {process.uids().real for process in family} == {10001}
        check_answers(container, first)


def test_it_runs_read_only_loses_no_request_when_it_stops_and_starts_again(
    container: Container, tmp_path: Path
) -> None:
    if container.emulated:
        pytest.skip("qemu is slower than the times that the image gives its answers")
    log = tmp_path / "output"
    stopping = threading.Event()

    def client() -> list[int]:
        statuses = []
        while not stopping.is_set():
            try:
                statuses.append(ask(container).status_code)
            except requests.ConnectionError as error:
                # Came too late: no connection was made, and nothing was sent.
                assert stopping.is_set() and "Connection refused" in str(error), error
        return statuses

    with running(container, log) as first:
        family = [first, *first.children(recursive=True)]
        assert {process.uids().real for process in family} == {10001}
        assert any("java" in process.name() for process in family)
        response = ask(container)
        assert response.status_code == 200, response.text
        assert response.json()["predictions"][0]["label"] == "Egyptian cat"
        check_answers(container, first)
        with ThreadPoolExecutor(4) as pool:
            clients = [pool.submit(client) for _ in range(4)]
            time.sleep(2)
            stopping.set()
            first.send_signal(signal.SIGQUIT)
            statuses = [status for each in clients for status in each.result()]
        assert len(statuses) > 4 and set(statuses) == {200}
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    assert [line["status"] for line in lines].count(200) >= len(statuses)
    with running(container, log) as first:
        assert ask(container).status_code == 200
        (java,) = [each for each in first.children(recursive=True) if each.name() == "java"]
        java.kill()
        # The restart policy needs a container that ends.
        first.wait(timeout=20)
