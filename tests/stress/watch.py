"""A server of two workers, and readings of its processes' memory and open files."""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.stress.clients import MODEL, serving
from visionserve_tools.server.torchserve import TorchServe

WORKERS = 2
PATIENCE = 120


@contextmanager
def watched(cache: dict[str, Any], **settings: Any) -> Iterator[TorchServe]:
    """Serve a model with two workers, and other settings of `serving`."""
    with (
        tempfile.TemporaryDirectory(prefix="soak-") as folder,
        serving(Path(folder), {"cache": cache}, minWorkers=WORKERS, **settings) as server,
    ):
        yield server


@dataclass(frozen=True)
class Reading:
    """A reading of a process at one moment.

    Attributes:
        requests: the number of requests sent to the server so far.
        megabytes: the memory that only this process uses (unique set size), in MB.
        files: the number of open file descriptors.
    """

    requests: int
    megabytes: float
    files: int


class Watch:
    """All readings of a server's frontend and workers."""

    def __init__(self, server: TorchServe, model: str = MODEL) -> None:
        assert server.pid is not None
        workers = server.client.describe(model)[0]["workers"]
        pids = {"frontend": server.pid} | {f"worker {w['id']}": w["pid"] for w in workers}
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self.readings: dict[str, list[Reading]] = {name: [] for name in pids}

    def read(self, requests: int) -> None:
        """Add a reading of each process.

        Raises:
            psutil.NoSuchProcess: a process has ended.
        """
        for name, process in self._processes.items():
            megabytes = process.memory_full_info().uss / 1e6
            self.readings[name].append(Reading(requests, megabytes, process.num_fds()))


def exit_code(met: bool) -> int:
    """Return a command's exit code, and say so if a target was missed."""
    if not met:
        print("Missed a target.", file=sys.stderr)
    return 0 if met else 1
