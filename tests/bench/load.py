"""Put load on a server with wrk, or time single requests."""

import json
import resource
import shutil
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import requests

SCRIPT = Path(__file__).with_name("load.lua")


@dataclass(frozen=True)
class Summary:
    """The measurements of a load whose clients each send one request after another.

    Attributes:
        requests: how many answers there were.
        rate: answers per second.
        p50_ms: median time of an answer, in milliseconds.
        p99_ms: time that one answer in a hundred exceeds, in milliseconds.
        client_ms: the client's own CPU time for a request, in milliseconds.
    """

    requests: int
    rate: float
    p50_ms: float
    p99_ms: float
    client_ms: float


def send(
    url: str, field: str, tta: str, clients: int, seconds: float, images: Sequence[Path]
) -> Summary:
    """Send images in turn.

    Args:
        url: the address that takes an image by POST.
        field: the name of the form field that holds the image; `-` for a raw body.
        tta: the TTA mode, sent as this project's header; other servers ignore it.
        clients: the number of connections, each with one request at a time.
        seconds: how long the load lasts.
        images: the images' files.

    Raises:
        RuntimeError: wrk is missing, or a request failed.
    """
    wrk = shutil.which("wrk")
    if wrk is None:
        raise RuntimeError("wrk is missing: apt-get install wrk.")
    command = [
        *(wrk, "--threads", "1", "--connections", str(clients), "--duration", f"{seconds:.0f}s"),
        *("--timeout", "30s", "--script", str(SCRIPT), "--header", f"X-Classify-TTA: {tta}"),
        *(url, "--", field, *map(str, images)),
    ]
    before = _cpu_seconds()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    spent = _cpu_seconds() - before
    found = json.loads(done.stdout.splitlines()[-1])
    if not found["requests"]:
        raise RuntimeError(f"{url}: no answer in {seconds:.0f} s: give more --seconds.")
    if found["failed"]:
        raise RuntimeError(f"{url}: {found['failed']} of {found['requests']} requests failed.")
    return Summary(
        requests=found["requests"],
        rate=found["requests"] / found["seconds"],
        p50_ms=found["p50_ms"],
        p99_ms=found["p99_ms"],
        client_ms=1000 * spent / found["requests"],
    )


def one_by_one(url: str, images: Sequence[Path], count: int) -> float:
    """Time raw images sent one after another, for answers that are too slow for a load.

    Args:
        url: the address that takes an image by POST.
        images: the images' files.
        count: how many answers to time, after a first one that is not timed.

    Returns:
        The median time of an answer, in milliseconds.

    Raises:
        RuntimeError: a request failed.
    """
    headers = {"Content-Type": "image/jpeg", "X-Classify-TTA": "none"}
    times = []
    with requests.Session() as session:
        for image in islice(cycle(images), count + 1):
            started = time.perf_counter()
            response = session.post(url, data=image.read_bytes(), headers=headers, timeout=120)
            times.append(time.perf_counter() - started)
            if not response.ok:
                raise RuntimeError(f"{url}: {response.status_code} {response.text[:300]}")
    return 1000 * statistics.median(times[1:])


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
