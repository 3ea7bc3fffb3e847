"""The rounds of `make bench`."""

import argparse
import dataclasses
import importlib.metadata
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from PIL import Image
from tqdm import tqdm

from tests.bench import pinned, report
from tests.bench.contenders import (
    ALL,
    BIN,
    DECODED,
    INT8,
    OURS,
    PINNED,
    PINNED_QUICK,
    Contender,
    running,
)
from tests.bench.load import one_by_one, send
from tests.bench.results import About, Figure, Results, bars, rate, repeated
from visionserve_tools import lock, paths, photos
from visionserve_tools.report import circumstances
from visionserve_tools.server.torchserve import StartError

STORE = paths.MODEL_STORE / "bench"
WORKERS = len(os.sched_getaffinity(0))
IMAGES = 64
# ImageNet's usual sizes, with which `dense` views have several.
SIZES = ((500, 375), (500, 333), (375, 500), (500, 500), (333, 500))
EXPLAINED, PROFILE = 4, 10
REPEATS = 4
PROGRESS = "{desc}{percentage:.0f} %, {elapsed} gone, {remaining} left"
PACKAGES = (
    *("torch", "torchvision", "openvino", "torchserve"),
    *("flask", "gunicorn", "litserve", "bentoml"),
)


def measure_server(
    contender: Contender, images: Sequence[Path], seconds: int, results: Results
) -> None:
    """Measure one server in one round: start it, load it, read its memory, and stop it."""

    def add(metric: str, value: float, tta: str = "none", clients: int = 0) -> None:
        results.add(Figure(contender.name, metric, tta, clients), value)

    with running(contender, STORE, images[0], WORKERS) as server:
        add("start s", server.seconds)
        for tta in contender.tta:
            send(server.url, contender.field, tta, max(2, WORKERS), 2 * seconds, images)
            for clients in contender.clients:
                found = send(server.url, contender.field, tta, clients, seconds, images)
                add("requests/s", found.rate, tta, clients)
                add("p50 ms", found.p50_ms, tta, clients)
                add("p99 ms", found.p99_ms, tta, clients)
                add("client ms", found.client_ms, tta, clients)
        if contender == OURS[INT8]:
            for _ in range(REPEATS):
                found = send(server.url, contender.field, "none", report.CHARTED, seconds, images)
                results.add(repeated(contender.name), found.rate)
        processes = server.pss()
        for number, megabytes in enumerate(processes):
            add(f"process {number} MB", megabytes)
        if server.scale:
            server.scale(1)
            one = sum(server.pss())
            add("one worker MB", one)
            add("further worker MB", (sum(processes) - one) / max(1, WORKERS - 1))
        if contender.explains:
            url = server.url.replace("/predictions/", "/explanations/")
            add("explained p50 ms", one_by_one(url, images, EXPLAINED), clients=1)


def measure_bare(images: Sequence[Path], seconds: int, results: Results) -> dict[str, float]:
    """Run the model without a server, and return the sizes of its files in megabytes."""
    arguments = ("--processes", str(WORKERS), "--seconds", str(seconds))
    found = _json_of("tests.bench.bare", str(STORE), *map(str, images), *arguments)
    for name, value in found["rate"].items():
        results.add(rate(name), value)
    for name, value in (found["latency_ms"] | found["dense_ms"]).items():
        results.add(Figure(name, "one image ms"), value)
    sizes: dict[str, float] = found["size_mb"]
    core = min(os.sched_getaffinity(0))
    with pinned.on({core}):
        one = ("--processes", "1", "--seconds", str(seconds), "--rates")
        alone = _json_of("tests.bench.bare", str(STORE), *map(str, images), *one)
    results.add(Figure(DECODED, "pinned requests/s"), alone["rate"][DECODED])
    results.add(Figure(DECODED, "pinned others ms"), alone["ms"][DECODED])
    return sizes


def _json_of(module: str, *arguments: str) -> Any:
    """Run a module in a process of its own, and return the JSON object that it prints.

    In this process, the libraries that it maps would count as shared with the servers, and so
    lower the memory measured for them.
    """
    command = [sys.executable, "-W", "ignore", "-m", module, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def photographs(folder: Path | None, scratch: Path) -> list[Path]:
    """Choose images spread evenly over a folder, or else the packaged ones as JPEG files.

    Args:
        folder: the user's own folder; None means ImageNet's samples beside the repository.
        scratch: the folder for the packaged images, which are used if there are no samples.
    """
    if folder is None and not paths.PHOTOGRAPHS.is_dir():
        named = zip(photos.packaged(), itertools.cycle(SIZES), strict=False)
        return [_as_jpeg(path, size, scratch) for path, size in named]
    found = photos.folder(folder or paths.PHOTOGRAPHS)
    return found[:: max(1, len(found) // IMAGES)][:IMAGES]


def _as_jpeg(path: Path, size: tuple[int, int], scratch: Path) -> Path:
    target = scratch / f"{path.stem}.jpg"
    with Image.open(path) as image:
        image.convert("RGB").resize(size).save(target, quality=95)
    return target


def measure(
    rounds: int, seconds: int, images: Sequence[Path], apart: Sequence[Contender]
) -> tuple[Results, About]:
    """Measure everything, in rounds; some servers also with a worker that has a core to itself.

    Raises:
        StartError: a TorchServe did not become ready.
        RuntimeError: another server did not start, or a request failed.
    """
    results = Results()
    total = rounds * (1 + sum(map(_steps, ALL)) + 3 * len(apart))
    with tqdm(total=total, bar_format=PROGRESS) as bar:
        bar.set_description("building the archives")
        built = _json_of("tests.bench.archives", str(STORE), str(WORKERS))
        bar.unpause()
        for _ in range(rounds):
            bar.set_description("without a server")
            sizes = measure_bare(images, seconds, results)
            bar.update()
            for contender in ALL:
                bar.set_description(contender.name)
                measure_server(contender, images, seconds, results)
                bar.update(_steps(contender))
            for contender in apart:
                bar.set_description(f"{contender.name}, pinned")
                pinned.measure(contender, STORE, images, seconds, results)
                bar.update(3)
    about = About(
        processor=circumstances.processor(),
        workers=WORKERS,
        packages={name: importlib.metadata.version(name) for name in PACKAGES},
        weights=built["weights"],
        images=len(images),
        image_kb=statistics.mean(image.stat().st_size for image in images) / 1000,
        rounds=rounds,
        seconds=seconds,
        size_mb=built["size_mb"] | sizes,
    )
    return results, about


def _steps(contender: Contender) -> int:
    """Return the progress steps of a contender: one for each load, and two for its start."""
    return 2 + len(contender.tta) * len(contender.clients)


def profile(images: Sequence[Path], target: Path) -> None:
    """Draw a worker's time under load as a flame graph, with py-spy."""
    contender = OURS[INT8]
    with running(contender, STORE, images[0], WORKERS) as server:
        worker = psutil.Process(server.pid).children()[0].pid
        arguments = ("--pid", str(worker), "--duration", str(PROFILE), "--output", str(target))
        with subprocess.Popen([str(BIN / "py-spy"), "record", *arguments]):
            send(server.url, contender.field, "none", 2, PROFILE + 2, images)


def run(args: argparse.Namespace) -> int:
    """Measure, write the results, and return its exit code."""
    # Each core has a worker, so each worker gets one thread; more would only slow the peers.
    os.environ["OMP_NUM_THREADS"] = "1"
    target = paths.MODEL_STORE / ("bench-quick.json" if args.quick else "bench.json")
    drawn, flames = target.with_suffix(".png"), target.with_name("bench-profile.svg")
    try:
        with (
            lock.replace(target, drawn, flames) as file,
            tempfile.TemporaryDirectory() as scratch,
        ):
            images = photographs(args.images, Path(scratch))
            apart = PINNED_QUICK if args.quick else PINNED
            results, about = measure(args.rounds, args.seconds, images, apart)
            if args.profile:
                profile(images, flames)
            held = bars(results, about.size_mb[INT8])
            figures = [
                dataclasses.asdict(figure) | {"median": results.median(figure), "rounds": values}
                for figure, values in results.values.items()
            ]
            reached = [dataclasses.asdict(bar) | {"reached": bar.reached} for bar in held]
            found = dataclasses.asdict(about) | {"figures": figures, "bars": reached}
            file.write(json.dumps(found, indent=1).encode())
    except (StartError, RuntimeError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    report.chart(results, drawn)
    print(report.markdown(results, about, held))
    return 0
