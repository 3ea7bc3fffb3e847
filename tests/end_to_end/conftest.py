"""One real TorchServe per session, with a real classifier and a seeded random ResNet-18."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import visionserve  # noqa: F401

# isort: split
import openvino  # noqa: F401

from tests.drawn import draw
from tests.helpers import RANDOM, REAL, SMALL, write_config
from visionserve import heap
from visionserve.models import MODELS
from visionserve_tools import paths, photos
from visionserve_tools.archive import convert, converted
from visionserve_tools.archive.recipe import Recipe, build
from visionserve_tools.server.client import Client
from visionserve_tools.server.nginx import Proxy
from visionserve_tools.server.ports import free_ports
from visionserve_tools.server.torchserve import TorchServe

# OpenVINO is imported whole above: the handler, which some tests run in a process that also builds,
# would leave out its converter (`visionserve.workarounds.openvino_converter`). `visionserve` comes
# before it, as that keeps OpenVINO's telemetry from forking a process for each of its events, which
# takes more than a second of each conversion.


keep_small_buffers = heap.keep_small_buffers


def keep_all_buffers() -> None:
    """Leave glibc as it is, but for unit tests, which run in these processes as well.

    A worker has each large buffer from the kernel. A process that also computes with PyTorch would
    have each layer's output from there, page by page, which takes a quarter of its time.
    """
    if "end_to_end" not in os.environ.get("PYTEST_CURRENT_TEST", ""):
        keep_small_buffers()


heap.keep_small_buffers = keep_all_buffers

# A folder of one photograph, on which networks of drawn weights are proved.
CAT = photos.greeting().parent


@pytest.fixture(scope="session")
def common(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the run, which pytest-xdist's processes share."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "common"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session", autouse=True)
def kept(common: Path) -> Path:
    """Where the run keeps the models that it converts, so that each is converted once."""
    folder = common / "converted"
    os.environ[converted.PLACE] = str(folder)
    return folder


@contextmanager
def alone(folder: Path, what: str) -> Iterator[None]:
    """Have the other processes wait that want to make the same there, too."""
    with (folder / f"{what}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def random_weights(common: Path) -> Path:
    """A state dict of a seeded, untrained ResNet-18."""
    path = common / "random.pt"
    with alone(common, "weights"):
        if not path.exists():
            draw(path)
    return path


@pytest.fixture(scope="session")
def exact_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One worker, as a second one proves something to few tests, which start it."""
    return write_config(tmp_path_factory.mktemp("exact"), workers=1)


@pytest.fixture(scope="session")
def pytorch_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("pytorch"), workers=1, runtime="pytorch")


@pytest.fixture(scope="session")
def store(common: Path, exact_config: Path, random_weights: Path, pytorch_config: Path) -> Path:
    """A model store with both models, which classify exactly and cache nothing."""
    store = common / "store"
    with alone(common, "store"):
        build(Recipe(REAL, REAL, "1.0", exact_config), store)
        recipe = Recipe("resnet18", RANDOM, "1.0", pytorch_config, random_weights, calibration=CAT)
        build(recipe, store)
    return store


@pytest.fixture(scope="session")
def int8_archive(common: Path, store: Path) -> Path:
    """The real classifier of the local profile, in the same store: INT8, fast, with a cache.

    Its weights are those that the search writes on processors with VNNI, without the try that it
    refuses, which takes 15 s. `test_runtimes` proves the search.
    """
    config, quantize = paths.CONFIG / "local" / "model-config.yaml", convert.quantize

    def spared(model: Any, samples: Any, _: Any, half_range: bool) -> Any:
        return quantize(model, samples, convert.first_convolutions(model, 224), half_range)

    with pytest.MonkeyPatch.context() as patch, alone(common, "int8"):
        patch.setattr(convert, "CLOSE", 1)
        patch.setattr(convert, "quantize", spared)
        return build(Recipe(REAL, "int8", "1.0", config), store)


@pytest.fixture(scope="session")
def single_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One worker, which classifies exactly."""
    return write_config(tmp_path_factory.mktemp("single"), workers=1)


@pytest.fixture(scope="session")
def newer(common: Path, store: Path, single_config: Path) -> Path:
    """Version 2.0 of the random ResNet-18, with other weights, in the same store.

    A command of a README builds these weights as well, and so has this model.
    """
    weights = common / "newer.pt"
    recipe = Recipe("resnet18", RANDOM, "2.0", single_config, weights)
    with alone(common, "newer"):
        draw(weights, seed=1)
        return build(recipe, store)


@pytest.fixture(scope="session")
def fixed(common: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest network, with a cache, taken for a transformer: it has no dense form."""
    cache = {"size_mb": 8, "directory": "fixed"}
    config = write_config(tmp_path_factory.mktemp("fixed"), workers=1, cache=cache)
    weights = common / "fixed.pt"
    with pytest.MonkeyPatch.context() as patched, alone(common, "fixed"):
        patched.setitem(MODELS, SMALL, replace(MODELS[SMALL], any_size=False))
        draw(weights, SMALL)
        return build(Recipe(SMALL, "fixed", "1.0", config, weights, calibration=CAT), store)


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


@pytest.fixture(scope="module")
def one_reader() -> Iterator[None]:
    """Commands that a test calls read photographs in this process, or in a single other one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda _: {0})
        yield


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    """An nginx that a test starts."""
    proxy = Proxy(tmp_path / "nginx")
    yield proxy
    proxy.stop()
