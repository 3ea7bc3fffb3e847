"""Measure how well a worker keeps its device busy, with the `Classifier` but no TorchServe.

It runs from a checkout on any machine with a GPU, because it needs only torch, torchvision, pillow,
numpy, pydantic, pyyaml, diskcache and efficientnet-lite-pytorch.
"""

import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[2] / "handler"))

from tests.drawn import draw
from visionserve.classifier import Classifier
from visionserve.config import TTA, HandlerConfig, Options
from visionserve.item import Item
from visionserve.metadata import Metadata, Transforms
from visionserve.preprocessing import decode, to_views
from visionserve.runtimes import Passed, Runtime
from visionserve.runtimes.pytorch import BUCKETS, PyTorchRuntime
from visionserve.runtimes.transfer import Transfer
from visionserve.tta import Views
from visionserve.validation import open_image
from visionserve_tools.arguments import Parser, real, whole
from visionserve_tools.report import tables

SEED = 0
SIZE = (500, 375)
BATCHES = (1, 8, 32)
ROUNDS = 15
COLUMNS = (
    *("views", "batch:", "decoders:", "images/s:", "to the first:", "device at work:"),
    *("decoders alone, images/s:", "device alone, images/s:", "of the slower:"),
)
MEDIANS = ("ratio", "decoders_alone", "device_alone", "share")
MODES: tuple[TTA, ...] = get_args(TTA)
CONFIG = HandlerConfig(runtime="pytorch", decode="fast")
METADATA = Metadata(
    architecture="resnet18",
    weights="random",
    weights_sha256="",
    artifact="model.pt",
    transforms=Transforms(),
    categories=tuple(str(index) for index in range(1000)),
)


class Simulated(Runtime):
    """A simulated device, which sleeps instead of computing a forward pass.

    Sleeping releases the interpreter's lock, as CUDA does. Each batch is packed for the copy to
    the device in the same way as for PyTorch.

    Args:
        seconds: the time of a forward pass over 32 views of 224 x 224 pixels; other batches take
            time in proportion to their pixels.
    """

    capacity = PyTorchRuntime.capacity

    def __init__(self, seconds: float) -> None:
        self._per_byte = seconds / (32 * 224 * 224 * 3)
        self._transfer = Transfer(BUCKETS[-1], BUCKETS[-1] * 224 * 224, torch.device("cpu"))

    def averaged(self, images: Sequence[Views]) -> Passed:
        """Wait; see `visionserve.runtimes.Runtime`."""
        for batch in self._transfer.batches(images):
            self._transfer.pack(batch)
            time.sleep(self._per_byte * sum(views.size for views in batch))
        return Passed(np.full((len(images), 1000), 1 / 1000, np.float32))


class Clock(Runtime):
    """A runtime that measures how long its device was busy.

    Args:
        runtime: the runtime that does the work.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.capacity = runtime.capacity
        self.busy = 0.0

    def averaged(self, images: Sequence[Views]) -> Passed:
        """Classify a batch; see `visionserve.runtimes.Runtime`."""
        started = time.perf_counter()
        passed = self._runtime.averaged(images)
        self.busy += time.perf_counter() - started
        return passed


def photographs(count: int) -> list[bytes]:
    """Encode JPEGs of soft noise, which take as long to decode as photographs of their size."""
    generator = np.random.default_rng(SEED)
    encoded = []
    for _ in range(count):
        coarse = generator.integers(0, 256, (SIZE[1] // 8, SIZE[0] // 8, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC)
        grain = generator.integers(-20, 20, (*reversed(SIZE), 3))
        noisy = (np.asarray(image) + grain).clip(0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noisy).save(buffer, "JPEG", quality=90)
        encoded.append(buffer.getvalue())
    return encoded


def load(device: str, forward_ms: float, threads: int) -> Runtime:
    """Load a seeded ResNet-18 on a device, or return the simulated device."""
    if device == "simulated":
        return Simulated(forward_ms / 1000)
    with tempfile.TemporaryDirectory() as folder:
        artifact = draw(Path(folder) / METADATA.artifact, seed=SEED)
        gpu_id = None if device == "cpu" else int(device.removeprefix("cuda").lstrip(":") or 0)
        return PyTorchRuntime(artifact, METADATA, gpu_id, gpu_id is not None, threads)


def measure(
    runtime: Runtime, decoders: int, images: Sequence[bytes], mode: TTA, seconds: float
) -> dict[str, Any]:
    """Classify the same batch repeatedly.

    Returns:
        The settings; `images_per_s`; `utilization`, the device's busy time divided by wall time;
        and `ms`, the mean milliseconds of an image in each stage. A forward pass counts in full
        for each image that shared it.
    """
    clock = Clock(runtime)
    classifier = Classifier(clock, METADATA, CONFIG, "1.0", decoders=decoders)
    stages = dict[str, float]()

    def classify() -> None:
        items = [Item(data, Options(tta=mode)) for data in images]
        for outcome in classifier.classify(items):
            if not isinstance(outcome, dict):
                raise outcome
        for item in items:
            for stage, spent in item.trace.seconds.items():
                stages[stage] = stages.get(stage, 0) + spent

    classify()
    clock.busy = 0.0
    stages.clear()
    times, wall = repeat(classify, seconds)
    count = times * len(images)
    return {
        "decoders": decoders,
        "tta": mode,
        "batch": len(images),
        "images_per_s": round(count / wall, 1),
        "utilization": round(clock.busy / wall, 3),
        "ms": {stage: round(1000 * spent / count, 2) for stage, spent in stages.items()},
    }


def alone(
    runtime: Runtime, decoders: int, images: Sequence[bytes], mode: TTA, seconds: float
) -> dict[str, float]:
    """Measure the two halves of the work, each by itself, on the same batch repeatedly.

    Returns:
        `decoders_alone`, how many images a second the decoders validate, decode and resize, and
        `device_alone`, how many the device classifies.
    """
    transforms = METADATA.transforms

    def prepare(data: bytes) -> Views:
        image = open_image(data, CONFIG)
        rgb = decode(image, transforms, CONFIG.decode, CONFIG.max_image_pixels)
        return to_views(rgb, transforms, CONFIG.decode, mode)

    with ThreadPoolExecutor(decoders) as pool:
        views = list(pool.map(prepare, images))
        batches, decoding = repeat(lambda: list(pool.map(prepare, images)), seconds / 2)
    passes, classifying = repeat(lambda: runtime.averaged(views), seconds / 2)
    return {
        "decoders_alone": batches * len(images) / decoding,
        "device_alone": passes * len(images) / classifying,
    }


def repeat(work: Callable[[], object], seconds: float) -> tuple[int, float]:
    """Repeat work for some seconds, and return how often it ran and how many seconds it took."""
    times, started = 0, time.perf_counter()
    while (wall := time.perf_counter() - started) < seconds:
        work()
        times += 1
    return times, wall


def compare(
    runtime: Runtime, decoders: Sequence[int], images: Sequence[bytes], mode: TTA, seconds: float
) -> Iterator[dict[str, Any]]:
    """Measure with each number of decoders.

    Each round measures all numbers, so that changes of the machine's speed affect all alike.

    Yields:
        For each number, what `summarize` says of its rounds.
    """
    half = seconds / ROUNDS / 2
    rounds = [
        [
            measure(runtime, number, images, mode, half)
            | alone(runtime, number, images, mode, half)
            for number in decoders
        ]
        for _ in range(ROUNDS)
    ]
    yield from summarize(rounds)


def summarize(rounds: Sequence[Sequence[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Sum up an odd number of rounds, each of which has a row for each number of decoders.

    Yields:
        For each number, its row with the median rate, and the medians over the rounds of four
        figures: `ratio`, this number's rate divided by the first number's; `decoders_alone` and
        `device_alone`, see `alone`; and `share`, this number's rate divided by the slower of these
        two.
    """
    for rows in zip(*rounds, strict=True):
        figures = [
            row
            | {
                "ratio": row["images_per_s"] / first["images_per_s"],
                "share": row["images_per_s"] / min(row["decoders_alone"], row["device_alone"]),
            }
            for row, (first, *_) in zip(rows, rounds, strict=True)
        ]
        ordered = sorted(figures, key=lambda row: row["images_per_s"])
        yield ordered[len(rounds) // 2] | {
            key: round(statistics.median(row[key] for row in figures), 3) for key in MEDIANS
        }


def main() -> int:
    """Run the command."""
    parser = Parser(prog="python -m tests.bench.device", description=__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, cpu or simulated")
    parser.add_argument(
        "--forward-ms", type=real(0.001, 1e5), default=8, help="simulated, for 32 views"
    )
    parser.add_argument("--decoders", type=whole(1, 1000), nargs="+", default=[1, 2])
    parser.add_argument("--batches", type=whole(1, 10_000), nargs="+", default=BATCHES)
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES)
    parser.add_argument("--seconds", type=real(0.01, 1e5), default=5, help="of each line")
    args = parser.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print("There is no CUDA device: give --device cpu or simulated.", file=sys.stderr)
        return 1
    runtime = load(args.device, args.forward_ms, 1)
    images = photographs(max(args.batches))
    rows = []
    print(tables.heading(COLUMNS))
    for mode in args.modes:
        for batch in args.batches:
            for row in compare(runtime, args.decoders, images[:batch], mode, args.seconds):
                rows.append(row)
                ratio, at_work = f"{row['ratio']:.2f} x", f"{row['utilization']:.0%}"
                halves = (f"{row[half]:.1f}" for half in ("decoders_alone", "device_alone"))
                cells = (mode, batch, row["decoders"], row["images_per_s"], ratio, at_work)
                print(tables.row((*cells, *halves, f"{row['share']:.0%}")), flush=True)
    name = torch.cuda.get_device_name(args.device) if args.device.startswith("cuda") else ""
    print(json.dumps({"device": args.device, "name": name, "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
