"""Measure a server whose one worker has a core to itself, and all else the other cores.

Where workers, frontend and client share the cores, they slow each other by the caches, and a rate
says more of the machine than of the server. Here what a worker adds to the bare model shows.
"""

import os
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.bench.contenders import Contender, Running, running
from tests.bench.load import send
from tests.bench.results import Figure, Results

CLIENTS = 4
# TorchServe's frontend compiles its code while the first requests come: those of the first two
# seconds take three times the processor time of those after eight.
WARM_UP = 8
LEAST = 4
# A peer's process that loads the model moves to this core; see `tests.bench.peers.model`.
CORE = "BENCH_CORE"


@contextmanager
def on(cores: Set[int]) -> Iterator[None]:
    """Run this thread on some cores, and the processes that it starts meanwhile."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def move(pid: int, cores: Set[int]) -> None:
    """Move all threads of a process to some cores; those that it starts later inherit them."""
    for thread in psutil.Process(pid).threads():
        os.sched_setaffinity(thread.id, cores)


def settle(server: Running, core: int, others: Set[int]) -> None:
    """Have TorchServe's one worker load its model on a core, and keep the frontend on others.

    A worker that is moved later comes back: OpenVINO keeps the cores that its process had when it
    loaded the model, and sets them again at each pass. A peer moves itself; see `CORE`.
    """
    if server.scale:
        server.scale(0)
        move(server.pid, {core})
        server.scale(1)
        move(server.pid, others)


def measure(
    contender: Contender, store: Path, images: Sequence[Path], seconds: int, results: Results
) -> None:
    """Measure one server in one round; on a machine of one core, do nothing.

    Adds its rate, and the processor milliseconds that a request takes of its first process, which
    is TorchServe's frontend, and of the others.

    Args:
        seconds: how long the load is measured, `LEAST` at least.
    """
    core, *others = sorted(os.sched_getaffinity(0))
    if not others:
        return
    os.environ[CORE] = str(core)
    try:
        with on({*others}), running(contender, store, images[0], 1) as server:
            settle(server, core, {*others})
            asked = (server.url, contender.field, "none", CLIENTS)
            send(*asked, max(2 * seconds, WARM_UP), images)
            before = server.spent()
            found = send(*asked, max(seconds, LEAST), images)
            spent = [1000 * (b - a) for a, b in zip(before, server.spent(), strict=True)]
    finally:
        del os.environ[CORE]
    name = contender.name
    results.add(Figure(name, "pinned requests/s"), found.rate)
    results.add(Figure(name, "pinned first process ms"), spent[0] / found.requests)
    results.add(Figure(name, "pinned others ms"), spent[1] / found.requests)
    results.add(Figure(name, "pinned server ms"), sum(spent) / found.requests)
