"""The servers under test as data, and the functions that start and stop one."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests

from visionserve.processor import multiplies_bf16
from visionserve_tools import paths
from visionserve_tools.server.ports import free_port, free_ports
from visionserve_tools.server.torchserve import TorchServe

START_TIMEOUT = 120
BIN = Path(sys.executable).parent
CLIENTS = (1, 2, 4, 8)
TTA = ("none", "five_crop", "dense")
INT8 = "openvino_int8"
FP32, BF16 = "openvino_fp32", "openvino_bf16"
MODEL = "ceiling: int8 model alone"
DECODED = "ceiling: decode, preprocess, int8 model"
PILLOW = "ceiling: decode, preprocess with Pillow, int8 model"
GROUPED = "openvino int8, dense, one size after the other"
MIXED = "openvino int8, dense, sizes mixed"


@dataclass(frozen=True)
class Contender:
    """One server.

    Attributes:
        name: the server's name in the tables.
        model: the model that it serves. For TorchServe this is an archive of the store. For a
            command it is a file or folder of the store, whose path is in `$BENCH_MODEL`.
        command: the command that runs the server in the foreground, or empty for TorchServe. In
            it, `{bin}` stands for the folder of Python's commands, `{port}` for the port and
            `{workers}` for the number of workers.
        field: the name of the form field that holds the image; `-` for a raw body.
        tta: the TTA modes to measure.
        clients: the numbers of clients to measure with.
        explains: whether to measure explained answers too; possible only with TorchServe.
        bound: the multiple of this peer's rate that ours should reach; 0 for ours, and for peers
            that are compared with it on cores of their own.
    """

    name: str
    model: str
    command: str = ""
    field: str = "-"
    tta: tuple[str, ...] = ("none",)
    clients: tuple[int, ...] = CLIENTS
    explains: bool = False
    bound: float = 0


GUNICORN = "{bin}/gunicorn --workers {workers} --bind 127.0.0.1:{port} "
FLASK = GUNICORN + "tests.bench.peers.flask_app:app"
FLASK_PILLOW = GUNICORN + "tests.bench.peers.flask_pillow_app:app"
LITSERVE = "{bin}/python -m tests.bench.peers.litserve_app {port} {workers}"
BENTOML = "{bin}/bentoml serve tests.bench.peers.bentoml_app:Service --host 127.0.0.1 --port {port}"

OURS = {
    model: Contender(f"ours, {model.replace('_', ' ')}", model, tta=tta, explains=True)
    for model, tta in (
        ("pytorch_fp32", ("none",)),
        (FP32, ("none", "dense")),
        *([(BF16, ("none", "dense"))] if multiplies_bf16() else []),
        (INT8, TTA),
    )
}
CACHED = Contender("ours, cache hits", "openvino_fp32_cached", clients=(1,))
STOCK = Contender(
    "TorchServe image_classifier, eager fp32", "image_classifier", explains=True, bound=4
)
EAGER = [
    STOCK,
    Contender("Flask + gunicorn, eager fp32", "weights.pt", FLASK, "image", bound=2.5),
    Contender("LitServe, eager fp32", "weights.pt", LITSERVE, "image", bound=2.5),
    Contender("BentoML, eager fp32", "weights.pt", BENTOML, "image", bound=2.5),
]
DROPPED_IN = [
    Contender("Flask + gunicorn, openvino int8, Pillow", INT8, FLASK_PILLOW, "image"),
    Contender("Flask + gunicorn, openvino int8", INT8, FLASK, "image", bound=1),
    Contender("LitServe, openvino int8", INT8, LITSERVE, "image"),
    Contender("BentoML, openvino int8", INT8, BENTOML, "image"),
]
ALL = [*OURS.values(), CACHED, *EAGER, *DROPPED_IN]
# With one worker that has a core to itself; see `tests.bench.pinned`.
PINNED = [OURS[INT8], CACHED, *DROPPED_IN]
PINNED_QUICK = [OURS[INT8], CACHED]


@dataclass(frozen=True)
class Running:
    """A started server.

    Attributes:
        url: the address that takes an image by POST.
        seconds: the time from its start to its first answer.
        pid: the id of its first process, which is the frontend for TorchServe.
        scale: sets the number of workers; None for servers other than TorchServe.
    """

    url: str
    seconds: float
    pid: int
    scale: Callable[[int], None] | None = None

    def pss(self) -> list[float]:
        """Return the proportional set sizes of the first process and its descendants, in MB."""
        root = psutil.Process(self.pid)
        return [
            process.memory_full_info().pss / 1e6
            for process in (root, *root.children(recursive=True))
        ]

    def spent(self) -> tuple[float, float]:
        """Return the processor seconds of the first process, and those of its descendants."""
        root = psutil.Process(self.pid)
        times = [one.cpu_times() for one in (root, *root.children(recursive=True))]
        first, *others = (one.user + one.system for one in times)
        return first, sum(others)


@contextmanager
def running(contender: Contender, store: Path, image: Path, workers: int) -> Iterator[Running]:
    """Start a server, wait for its first answer, and stop it at the end.

    Raises:
        StartError: TorchServe did not become ready.
        RuntimeError: another server did not answer.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as state:
        if contender.command:
            server = _command(contender, Path(state), store, image, workers)
        else:
            server = _torchserve(contender, Path(state), store, image)
        with server as started:
            yield started


@contextmanager
def _torchserve(contender: Contender, state: Path, store: Path, image: Path) -> Iterator[Running]:
    server = TorchServe("local", state, store, free_ports())
    begin = time.monotonic()
    try:
        server.start([f"{contender.model}={contender.model}.mar"])
        client = server.client
        client.predict(contender.model, image.read_bytes()).raise_for_status()
        seconds = time.monotonic() - begin
        pid = server.pid
        assert pid is not None

        def scale(workers: int) -> None:
            client.scale(contender.model, workers)
            while len(psutil.Process(pid).children()) > workers:
                time.sleep(0.1)

        url = f"{client.inference}/predictions/{contender.model}"
        yield Running(url, seconds, pid, scale)
    finally:
        server.stop()


@contextmanager
def _command(
    contender: Contender, state: Path, store: Path, image: Path, workers: int
) -> Iterator[Running]:
    port = free_port()
    command = contender.command.format(bin=BIN, port=port, workers=workers).split()
    environment = {
        "BENCH_MODEL": str(store / contender.model),
        "BENCH_WORKERS": str(workers),
        "BENTOML_HOME": str(state),
        "BENTOML_DO_NOT_TRACK": "True",
    }
    log = state / "log"
    url = f"http://127.0.0.1:{port}/predict"
    begin = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=paths.ROOT,
            env={**os.environ, **environment},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        while not _answers(url, contender.field, image):
            if process.poll() is not None or time.monotonic() > begin + START_TIMEOUT:
                raise RuntimeError(f"{contender.name} did not start.\n{log.read_text()[-3000:]}")
            time.sleep(0.05)
        yield Running(url, time.monotonic() - begin, process.pid)
    finally:
        _end(process)


def _answers(url: str, field: str, image: Path) -> bool:
    try:
        return requests.post(url, files={field: image.read_bytes()}, timeout=60).ok
    except requests.ConnectionError:
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """Terminate a process and its descendants, and kill the ones that still run after 5 s."""
    if process.poll() is not None:
        return
    root = psutil.Process(process.pid)
    family = [root, *root.children(recursive=True)]
    root.terminate()
    _, left = psutil.wait_procs(family, timeout=5)
    for stubborn in left:
        stubborn.kill()
    psutil.wait_procs(left)
