"""One real TorchServe per session, with a real classifier and a seeded random ResNet-18."""

import io
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import torch
import yaml
from PIL import Image

from scripts import paths
from scripts.build import Recipe, build
from scripts.client import Client
from scripts.load import free_port, free_ports
from scripts.proxy import Proxy, Site, Upstream
from scripts.torchserve import TorchServe
from visionserve.models import MODELS

SAMPLES = paths.ROOT.parent / "shared" / "imagenet-samples"
REAL = "efficientnet_lite0"
RANDOM = "random_weights_resnet18"
SERVER_CONFIG = paths.CONFIG / "server" / "model-config.yaml"

# OpenMP's threads spin while they wait, and take four times the processor time where other
# processes, such as a TorchServe, want the cores. What a test starts has one thread, too.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

# A shell that starts the tests in the background lets them ignore SIGINT, and so would commands
# that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

_running_fast = False


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Hold a `fast` test, and what is set up for it, to what `make test-fast` promises."""
    global _running_fast
    _running_fast = item.get_closest_marker("fast") is not None
    try:
        return (yield)
    finally:
        _running_fast = False


def _refuse(event: str, _: object) -> None:
    if _running_fast and event in ("subprocess.Popen", "socket.connect"):
        raise AssertionError(f"a fast test starts and asks nothing: {event}")


sys.addaudithook(_refuse)


def encode(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def samples() -> list[Path]:
    """Real photographs; the first three digits of a name are the class index."""
    found = sorted(SAMPLES.glob("*.JPEG"))
    if not found:
        pytest.skip(f"{SAMPLES} is absent")
    return found


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict of a seeded, untrained ResNet-18."""
    path = tmp_path_factory.mktemp("weights") / "random.pt"
    torch.manual_seed(0)
    torch.save(MODELS["resnet18"].build(1000).state_dict(), path)
    return path


def write_config(directory: Path, **handler: object) -> Path:
    """Write the server profile's model-config.yaml with other handler settings and no cache."""
    config = yaml.safe_load(SERVER_CONFIG.read_text())
    config["handler"] |= {"cache": {"size_mb": 0}} | handler
    path = directory / "model-config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="session")
def exact_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("exact"))


@pytest.fixture(scope="session")
def pytorch_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("pytorch"), runtime="pytorch")


@pytest.fixture(scope="session")
def store(
    tmp_path_factory: pytest.TempPathFactory,
    exact_config: Path,
    random_weights: Path,
    pytorch_config: Path,
) -> Path:
    """A model store with both models, which classify exactly and cache nothing."""
    store = tmp_path_factory.mktemp("store")
    build(Recipe(REAL, REAL, "1.0", exact_config), store)
    build(Recipe("resnet18", RANDOM, "1.0", pytorch_config, random_weights), store)
    return store


@pytest.fixture(scope="session")
def int8_archive(store: Path) -> Path:
    """The real classifier of the local profile, in the same store: INT8, fast, with a cache."""
    config = paths.CONFIG / "local" / "model-config.yaml"
    return build(Recipe(REAL, "of_local", "1.0", config), store)


@pytest.fixture(scope="session")
def server(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    """TorchServe of the server profile, with token authorization."""
    server = TorchServe("server", tmp_path_factory.mktemp("server"), store, free_ports())
    server.start([f"{name}={name}.mar" for name in (REAL, RANDOM)])
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def client(server: TorchServe) -> Client:
    return server.client


def upstream_of(server: TorchServe) -> Upstream:
    return Upstream(server.client.inference, server.state / "key_file.json")


def site_of(*servers: TorchServe, rate: str = "10000r/s", trusted: tuple[str, ...] = ()) -> Site:
    """A site on free ports, at a rate that no test meets unless it gives another one."""
    listen, probes = (f"127.0.0.1:{free_port()}" for _ in range(2))
    upstreams = tuple(upstream_of(server) for server in servers)
    return Site(upstreams, listen, probes, REAL, rate, trusted)


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    """An nginx that a test starts."""
    proxy = Proxy(tmp_path / "nginx")
    yield proxy
    proxy.stop()


def spend(site: Site) -> None:
    """Send as many requests as an nginx lets one client send at once."""
    with requests.Session() as session:
        while session.get(f"http://{site.listen}/ping", timeout=60).status_code != 429:
            pass
