"""Classify files on Ray Data, with the stages and the model of an archive."""

import io
import json
import logging
import os
import signal
import socket
import sys
import tempfile
import zipfile
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.cloudpickle
import ray.data
from tqdm import tqdm

import visionserve_tools
from visionserve.config import ModelConfig
from visionserve_tools.archive.manifest import MANIFEST, read_config
from visionserve_tools.batch.rows import Body, RunError, read_image, unreadable

if TYPE_CHECKING:
    from visionserve.item import Item

STDERR = 2


class Worker:
    """An actor that loads the archive once, with the archive's code, not any installed one.

    Args:
        archive: the archive's bytes, in Ray's object store.
        options: the options of each request, by name.
        gpu_id: CUDA device index; None for the CPU.
    """

    def __init__(
        self, archive: "ray.ObjectRef[bytes]", options: Mapping[str, str], gpu_id: int | None
    ) -> None:
        with tempfile.TemporaryDirectory() as folder:
            zipfile.ZipFile(io.BytesIO(ray.get(archive))).extractall(folder)
            sys.path.insert(0, folder)
            self._load(Path(folder), gpu_id)
            sys.path.remove(folder)
        self._headers = {f"x-classify-{name}": value for name, value in options.items()}

    def _load(self, directory: Path, gpu_id: int | None) -> None:
        from visionserve import inputs
        from visionserve.classifier import Classifier
        from visionserve.config import CacheConfig, ModelConfig

        manifest = json.loads((directory / MANIFEST).read_bytes())["model"]
        config = ModelConfig.load(directory / manifest["configFile"])
        own = {"threads": config.handler.threads or 1, "cache": CacheConfig(size_mb=0)}
        self._config = config.handler.model_copy(update=own)
        self._read_request = inputs.read
        self._classifier = Classifier.from_archive(
            directory,
            config.model_copy(update={"handler": self._config}),
            gpu_id,
            manifest["modelVersion"],
            manifest["modelName"],
        )
        defaults = self._classifier.defaults
        self._config = self._config.model_copy(update={"defaults": defaults})

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Classify a batch of files.

        Args:
            batch: `path`, absolute paths as bytes, of shape (N,).

        Returns:
            `body`, the N JSON objects as text, in order.
        """
        from visionserve.protocols.reply import body_of

        outcomes = self._classifier.classify([self._read(path) for path in batch["path"]])
        return {"body": [json.dumps(body_of(outcome)) for outcome in outcomes]}

    def _read(self, path: bytes) -> "Item":
        """Read a file as the handler reads a request with the file as its body."""
        from visionserve.errors import RequestError
        from visionserve.item import Item

        try:
            data = read_image(Path(os.fsdecode(path)), self._config.max_image_bytes)
        except (OSError, ValueError) as error:
            fault = RequestError(400, **unreadable(error)["error"])
            return Item(b"", self._config.defaults, fault=fault)
        return self._read_request({"body": data}, self._headers, self._config).items[0]


def classify(
    archive: Path,
    options: Mapping[str, str],
    paths: Iterable[Path],
    concurrency: int,
    address: str | None,
) -> Generator[tuple[Path, Body]]:
    """Classify each file in a pool of actors, each with the threads or the GPU of the archive.

    Args:
        archive: the .mar; Ray sends it to its nodes.
        options: the options of each request, by name.
        paths: the files, the same on every node; memory holds all paths but not the images.
        concurrency: the largest number of actors.
        address: the cluster's address; None starts a cluster on this machine.

    Yields:
        Each file, in order, with the JSON object of its answer or of its error.

    Raises:
        RunError: the archive cannot be loaded, no cluster accepts a connection, or Ray fails.
        OSError: the archive cannot be read, or the cluster cannot be reached.
    """
    try:
        config = read_config(archive)
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise RunError(f"{archive}: not an archive of this project: {error}") from None
    held = list(paths)
    if not held:
        return
    if address:
        _reach(address)
    where = f"Connecting to Ray at {address}" if address else "Starting Ray"
    tqdm.write(f"{where}; the first answers take some seconds.", file=sys.stderr)
    with _quietly():
        ray.init(address or "local", logging_level=logging.ERROR, log_to_driver=False)
    try:
        yield from _classify(archive, config, options, held, concurrency)
    except ray.exceptions.RayError as error:
        raise RunError(f"Ray: {error}") from None
    finally:
        ray.shutdown()


@contextmanager
def _quietly() -> Iterator[None]:
    """Hide the messages of Ray 2.60 while it starts; errors are still raised.

    For each actor pool of Ray Data, Ray's native code warns that "the actor restart will fail" if
    the pool's own arguments are lost, but Ray Data keeps them. Ray also logs the variable that
    silences this. It replaces the handler of SIGTERM by one that prints a native stack, so the
    handler is put back.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    handler = signal.getsignal(signal.SIGTERM)
    shown = os.dup(STDERR)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), STDERR)
    try:
        yield
    finally:
        os.dup2(shown, STDERR)
        os.close(shown)
        signal.signal(signal.SIGTERM, handler)


def _reach(address: str) -> None:
    """Check that a cluster accepts connections, as Ray itself would try for many minutes.

    Raises:
        RunError: no cluster accepts a connection.
    """
    host, _, port = address.rpartition("//")[2].rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise RunError(f"{address}: no cluster answers: {error}.") from None


def _classify(
    archive: Path,
    config: ModelConfig,
    options: Mapping[str, str],
    paths: list[Path],
    concurrency: int,
) -> Iterator[tuple[Path, Body]]:
    """Classify the files on Ray, in order.

    This package is sent to the workers by value, so that a cluster needs no copy of it.
    """
    ray.cloudpickle.register_pickle_by_value(visionserve_tools)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    on_gpu = config.deviceType == "gpu" and "GPU" in ray.cluster_resources()
    content = ray.put(archive.read_bytes())
    files = ray.data.from_items([{"path": os.fsencode(path.absolute())} for path in paths])
    classified = files.map_batches(
        Worker,
        fn_constructor_args=(content, options, 0 if on_gpu else None),
        batch_size=config.batchSize,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=concurrency),
        num_cpus=config.handler.threads or 1,
        num_gpus=1 if on_gpu else 0,
    )
    for path, row in zip(paths, classified.iter_rows(), strict=True):
        yield path, json.loads(row["body"])
