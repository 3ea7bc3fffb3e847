"""Measure the model without a server: its highest rates, and the time of one image."""

import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from itertools import cycle
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.ao.quantization import quantize_dynamic
from torchvision.models import resnet18

from tests.bench.contenders import BF16, DECODED, FP32, GROUPED, INT8, MIXED, MODEL, PILLOW
from tests.bench.peers import pillow
from visionserve import tta
from visionserve.metadata import Metadata, Transforms
from visionserve.preprocessing import decode, resize_fast
from visionserve.processor import multiplies_bf16
from visionserve.runtimes.openvino import OpenVINORuntime
from visionserve_tools.arguments import Parser, real, whole

WARM_UP = 20
SLICES = 5
TURNS = 10
CROP = Transforms().crop


Resize = Callable[[Image.Image, Transforms, bool], NDArray[np.uint8]]


def prepare(image: bytes, transforms: Transforms, resize: Resize) -> NDArray[np.uint8]:
    """Decode, resize and crop an image as the archive's handler does.

    Returns:
        uint8 of shape (1, crop, crop, 3).
    """
    return resize(decode(Image.open(BytesIO(image)), transforms, "fast"), transforms, True)[None]


def ceilings(
    archive: Path, images: Sequence[Path], processes: int, seconds: float
) -> dict[str, tuple[float, float]]:
    """Measure the highest rates that a server could reach, with processes of one thread.

    The model runs first on prepared tensors, then on encoded images, which are resized by the
    handler's own function and then by Pillow.

    Args:
        archive: the folder of an unpacked archive.
        images: the images' files.
        processes: the number of processes.
        seconds: how long each of the three measurements runs.

    Returns:
        The images per second of all processes together, and the processor milliseconds of an
        image, for each of the three.
    """
    context = multiprocessing.get_context("spawn")
    counts: Queue[list[tuple[float, float]]] = context.Queue()
    start = context.Barrier(processes)
    workers = [
        context.Process(target=_work, args=(archive, images, seconds, start, counts))
        for _ in range(processes)
    ]
    for worker in workers:
        worker.start()
    measured = [counts.get(timeout=120 + 3 * seconds) for _ in workers]
    for worker in workers:
        worker.join()
    found = {}
    for name, of_each in zip((MODEL, DECODED, PILLOW), zip(*measured, strict=True), strict=True):
        rates, spent = zip(*of_each, strict=True)
        found[name] = (sum(rates), statistics.mean(spent))
    return found


def _work(
    archive: Path,
    images: Sequence[Path],
    seconds: float,
    start: Barrier,
    measured: "Queue[list[tuple[float, float]]]",
) -> None:
    metadata = Metadata.load(archive)
    runtime = OpenVINORuntime(archive / metadata.artifact, metadata.transforms.crop, 1)
    encoded = [image.read_bytes() for image in images]
    transforms = metadata.transforms
    tensors = [prepare(image, transforms, resize_fast) for image in encoded]
    runs: tuple[Callable[[int], object], ...] = (
        lambda turn: runtime(tensors[turn]),
        lambda turn: runtime(prepare(encoded[turn], transforms, resize_fast)),
        lambda turn: runtime(prepare(encoded[turn], transforms, pillow.resize_fast)),
    )
    found = []
    for run in runs:
        turns = cycle(range(len(images)))
        for _ in range(WARM_UP):
            run(next(turns))
        start.wait()
        begin = time.process_time()
        times = timed(run, turns, seconds)
        spent = time.process_time() - begin
        found.append((len(times) / sum(times), 1000 * spent / len(times)))
    measured.put(found)


def timed(run: Callable[[int], object], turns: Iterable[int], seconds: float) -> list[float]:
    """Run a function repeatedly for a time, and return the seconds that each run took."""
    times: list[float] = []
    begin = time.perf_counter()
    for turn in turns:
        now = time.perf_counter()
        if now - begin >= seconds:
            break
        run(turn)
        times.append(time.perf_counter() - now)
    return times


def latencies(store: Path, seconds: float) -> dict[str, float]:
    """Time one image on one thread with each runtime, in several rounds over all runtimes.

    Args:
        store: the folder with the weights and the unpacked archives.
        seconds: how long each runtime runs in total.

    Returns:
        The median time of each runtime, in milliseconds.
    """
    torch.set_num_threads(1)
    network, dynamic = networks(store)
    channels_last = resnet18().eval().to(memory_format=torch.channels_last)
    planar = torch.rand(1, 3, CROP, CROP)
    strided = planar.contiguous(memory_format=torch.channels_last)
    pixels = (planar.permute(0, 2, 3, 1).contiguous() * 255).byte().numpy()
    runtimes = {
        name: OpenVINORuntime(store / name / "model.xml", CROP, 1, bf16=name == BF16)
        for name in (FP32, *([BF16] if multiplies_bf16() else []), INT8)
    }
    runs: dict[str, Callable[[int], object]] = {
        "eager fp32": lambda _: network(planar),
        "eager fp32, channels last": lambda _: channels_last(strided),
        "eager, dynamic int8": lambda _: dynamic(planar),
        "openvino fp32": lambda _: runtimes[FP32](pixels),
        "openvino int8": lambda _: runtimes[INT8](pixels),
    }
    if BF16 in runtimes:
        runs["openvino bf16"] = lambda _: runtimes[BF16](pixels)
    times: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        for run in runs.values():
            timed(run, range(WARM_UP), seconds)
        for _ in range(SLICES):
            for name, run in runs.items():
                times[name] += timed(run, cycle([0]), seconds / SLICES)
    return {name: 1000 * statistics.median(values) for name, values in times.items()}


def dense(archive: Path, images: Sequence[Path]) -> dict[str, float]:
    """Time the `dense` views of images on one thread, whose sizes differ.

    OpenVINO makes kernels for each size, and keeps those of few.

    Args:
        archive: the folder of an unpacked archive.
        images: the images' files.

    Returns:
        The mean of each view's least processor time in milliseconds, where all views of one size
        follow each other, and where they are mixed.
    """
    metadata = Metadata.load(archive)
    transforms = metadata.transforms
    runtime = OpenVINORuntime(archive / metadata.artifact, transforms.crop, 1)
    decoded = (decode(Image.open(image), transforms, "fast") for image in images)
    views = [tta.views(resize_fast(one, transforms), "dense", transforms.crop) for one in decoded]
    found = {}
    for name, turns in ((GROUPED, sorted(views, key=np.shape)), (MIXED, views)):
        least = [float("inf")] * len(views)
        for _ in range(TURNS):
            size = None
            for number, view in enumerate(turns):
                if name == GROUPED and view.shape != size:
                    runtime(view)  # Its kernels are made.
                size, begin = view.shape, time.process_time()
                runtime(view)
                least[number] = min(least[number], time.process_time() - begin)
        found[name] = 1000 * statistics.mean(least)
    return found


def networks(store: Path) -> tuple[nn.Module, nn.Module]:
    """Return the network, and a copy whose linear layer is quantized dynamically.

    Articles on ResNet often quantize it that way.
    """
    network = resnet18()
    network.load_state_dict(torch.load(store / "weights.pt", weights_only=True))
    network.eval()
    dynamic = quantize_dynamic(network, {nn.Linear})  # type: ignore[no-untyped-call]
    return network, dynamic


def size_mb(network: nn.Module) -> float:
    """Return the size of a network's saved state dict, in megabytes."""
    buffer = BytesIO()
    torch.save(network.state_dict(), buffer)
    return len(buffer.getvalue()) / 1e6


def main() -> int:
    """Run the command, which prints JSON."""
    parser = Parser(prog="python -m tests.bench.bare", description=__doc__)
    parser.add_argument("store", type=Path, help="holds the weights and the unpacked archives")
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--processes", type=whole(1, 1000), required=True)
    parser.add_argument("--seconds", type=real(0.01, 1e5), required=True)
    parser.add_argument("--rates", action="store_true", help="the rates alone")
    args = parser.parse_args()
    highest = ceilings(args.store / INT8, args.images, args.processes, args.seconds)
    rates = {name: rate for name, (rate, _) in highest.items()}
    if args.rates:
        print(json.dumps({"rate": rates, "ms": {name: ms for name, (_, ms) in highest.items()}}))
        return 0
    network, dynamic = networks(args.store)
    found = {
        "rate": rates,
        "latency_ms": latencies(args.store, args.seconds),
        "dense_ms": dense(args.store / INT8, args.images),
        "size_mb": {"eager fp32": size_mb(network), "eager, dynamic int8": size_mb(dynamic)},
    }
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
