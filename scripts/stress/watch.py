"""A server of two workers, and what its processes hold while clients ask."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from scripts.server.torchserve import TorchServe
from scripts.stress.clients import MODEL, serving

WORKERS = 2
PATIENCE = 120


@contextmanager
def watched(cache: dict[str, Any], **config: Any) -> Iterator[TorchServe]:
    """Serve the packaged classifier with two workers; see `serving`."""
    with (
        tempfile.TemporaryDirectory(prefix="soak-") as folder,
        serving(Path(folder), {"cache": cache}, minWorkers=WORKERS, **config) as server,
    ):
        yield server


@dataclass(frozen=True)
class Reading:
    """A process at one moment.

    Attributes:
        requests: sent to the server so far.
        megabytes: memory of the process alone (USS).
        files: open file descriptors.
    """

    requests: int
    megabytes: float
    files: int


class Watch:
    """The frontend and the workers of a server, read again and again."""

    def __init__(self, server: TorchServe) -> None:
        assert server.pid is not None
        workers = server.client.describe(MODEL)[0]["workers"]
        pids = {"frontend": server.pid} | {f"worker {w['id']}": w["pid"] for w in workers}
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self.readings: dict[str, list[Reading]] = {name: [] for name in pids}

    def read(self, requests: int) -> None:
        """Add a reading of each process.

        Raises:
            psutil.NoSuchProcess: one ended.
        """
        for name, process in self._processes.items():
            megabytes = process.memory_full_info().uss / 1e6
            self.readings[name].append(Reading(requests, megabytes, process.num_fds()))
