"""Measure torchvision's families of classifiers in each precision, seeded, or archives."""

import os
import statistics
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from visionserve import runtimes
from visionserve.config import Precision
from visionserve.metadata import Proof
from visionserve.models import MODELS, FullyConvolutional
from visionserve.processor import multiplies_bf16, overflows
from visionserve.runtimes import Runtime
from visionserve.runtimes.openvino import OpenVINORuntime
from visionserve_tools import photos
from visionserve_tools.archive import convert, proof
from visionserve_tools.archive.hashes import HashError
from visionserve_tools.archive.manifest import ArchiveError
from visionserve_tools.arguments import Parser
from visionserve_tools.quality.models import opened
from visionserve_tools.report import circumstances
from visionserve_tools.report.tables import table

# One model of each of torchvision's families, two ResNets, and the model with packaged weights.
FAMILIES = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_lite0"),
    *("efficientnet_v2_s", "googlenet", "inception_v3", "maxvit_t", "mnasnet1_0"),
    *("mobilenet_v2", "mobilenet_v3_large", "regnet_y_400mf", "resnet18", "resnet50"),
    *("resnext50_32x4d", "shufflenet_v2_x1_0", "squeezenet1_1", "swin_t", "swin_v2_t"),
    *("vgg16", "vit_b_16"),
)
CONFIDENCE = 0.5
# Few suffice: with seeded weights, only the time and size of INT8 are of interest.
SAMPLES, PHOTOGRAPHS = 30, 3
ROUNDS, PASSES, WARM_UP = 5, 10, 3
COLUMNS = (
    *("model", "crop:", "`dense`", "explained", "FP32 ms:", "BF16 ms:", "INT8 ms:"),
    *("FP32 MB:", "INT8 MB:", "FP32 proof", "BF16 proof", "INT8 proof", "INT8 `dense`, mixed:"),
)
# Height and width of the usual `dense` views, in crops of 224 pixels plus strides of 32.
STRIDES = ((1, 3), (1, 1), (3, 1), (1, 7))


@dataclass(frozen=True)
class Measured:
    """The measurements of a model in one precision.

    Attributes:
        milliseconds: median processor time of one crop on one thread, from pixels to answer.
        megabytes: the compressed size of the model's files in an archive.
        proof: how close its probabilities are to PyTorch's in FP32; None if not known.
        accepted: whether the builder would write an archive.
    """

    milliseconds: float
    megabytes: float
    proof: Proof | None
    accepted: bool


@dataclass(frozen=True)
class Row:
    """One model of the table.

    Attributes:
        name: a key of `MODELS`.
        crop: side of its crop, in pixels.
        dense: see `visionserve.metadata.Metadata`.
        explains: whether the model can explain its answers.
        fp32: the measurements in FP32; None for an archive of another precision.
        int8: the measurements in INT8, with all layers quantized; None likewise.
        bf16: the measurements in BF16; None likewise, and where the processor does not multiply it.
        mixed: how long `dense` views of mixed sizes take in INT8, to one size after the other;
            None if not measured.
    """

    name: str
    crop: int
    dense: bool
    explains: bool
    fp32: Measured | None
    int8: Measured | None
    bf16: Measured | None = None
    mixed: float | None = None


def seeded(name: str, pixels: Tensor) -> FullyConvolutional:
    """Return a network with random weights whose answers differ between images.

    With torchvision's own random weights, a network gives all images nearly the same
    probabilities, so that any comparison of them would succeed. Here a pass in training mode sets
    the statistics of the batch normalizations. The last layer gets new random weights, which
    ignore the component that the features of all images share, and are scaled so that the mean
    probability of the best class is `CONFIDENCE`.

    Args:
        name: a key of `MODELS`.
        pixels: the images that it has to tell apart, uint8 of shape (N, crop, crop, 3).
    """
    torch.manual_seed(0)
    module = FullyConvolutional(name, 1000, MODELS[name].transforms)
    layers = list(module.network.modules())
    norms = [layer for layer in layers if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    last = [layer for layer in layers if isinstance(layer, nn.Linear | nn.Conv2d)][-1]
    seen: list[Tensor] = []
    with torch.inference_mode():
        images = module.normalize(pixels)
        if norms:
            module.network.train()(images)
        hook = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        module.eval().network(images)
        hook.remove()
        common = seen[0].transpose(1, -1).flatten(0, -2).mean(0)
        weight = nn.init.normal_(last.weight).flatten(1)
        weight -= torch.outer(weight @ common, common) / common.dot(common)
        if last.bias is not None:
            nn.init.zeros_(last.bias)
        last.weight *= _scale(module.network(images))
    return module.requires_grad_(False)


def _scale(logits: Tensor) -> float:
    """Find by bisection the factor that gives logits a mean probability of `CONFIDENCE`."""
    low, high = 1e-6, 1e6
    while high / low > 1 + 1e-4:
        middle = (low * high) ** 0.5
        sure = (logits * middle).softmax(-1).amax(-1).mean() > CONFIDENCE
        low, high = (low, middle) if sure else (middle, high)
    return low


def measure(name: str) -> Row:
    """Convert, quantize, prove and time one model."""
    transforms = MODELS[name].transforms
    calibration, judges = convert.divide(photos.packaged())
    samples = convert.calibration_samples(calibration, transforms.crop, SAMPLES)
    module = seeded(name, torch.from_numpy(np.concatenate(samples)))
    reference = proof.refer(
        module, [photos.read(path) for path in judges[:PHOTOGRAPHS]], transforms
    )
    exact = convert.to_openvino(module, transforms.crop)
    quantized = convert.quantize(exact, samples, [], overflows())
    models: dict[Precision, Any] = {"fp32": exact, "int8": quantized}
    models |= {"bf16": exact} if multiplies_bf16() else {}
    with tempfile.TemporaryDirectory() as scratch:
        loaded: dict[Precision, Runtime] = {}
        sizes: dict[Precision, float] = {}
        for precision, model in models.items():
            directory = Path(scratch) / precision
            convert.save(model, directory / "model.xml")
            loaded[precision] = OpenVINORuntime(
                *(directory / "model.xml", transforms.crop, 1, module.linear is not None),
                bf16=precision == "bf16",
            )
            sizes[precision] = _megabytes(directory)
        times = _times(loaded, samples[0])
        found = {}
        for precision, runtime in loaded.items():
            figures = proof.prove(runtime.passed, reference)
            found[precision] = judged(times[precision], sizes[precision], figures, precision)
        mixed = _mixed(loaded["int8"], transforms.crop) if module.dense else None
    explains = module.linear is not None
    return Row(name, transforms.crop, module.dense, explains, **found, mixed=mixed)


def measure_archive(archive: Path) -> Row:
    """Time the model of an archive, with its own transforms, in the precision that it has.

    FP16 is FP32 without a GPU. The proof is the one that the builder packed.

    Raises:
        ArchiveError, HashError, OSError: as `quality.models.opened`.
    """
    with opened(archive) as archived:
        described, config = archived.metadata, archived.config
        crop = described.transforms.crop
        sample = convert.calibration_samples(photos.packaged(), crop, 1)[0]
        runtime = runtimes.load(archived.directory, described, config, None, threads=1)
        precision = runtime.precision
        files = [*archived.directory.glob(f"{Path(described.artifact).stem}.*")]
        found = Measured(
            _times({precision: runtime}, sample)[precision],
            _compressed(archive, [path.name for path in files]),
            described.proof,
            accepted=True,
        )
        fp32, int8, bf16 = (found if one == precision else None for one in ("fp32", "int8", "bf16"))
        mixed = _mixed(runtime, crop) if described.dense and precision == "int8" else None
        able = (described.dense, described.explains)
        return Row(archived.name, crop, *able, fp32, int8, bf16, mixed)


def _compressed(archive: Path, names: Sequence[str]) -> float:
    with zipfile.ZipFile(archive) as packed:
        return sum(packed.getinfo(name).compress_size for name in names) / 1e6


def _megabytes(directory: Path) -> float:
    target = directory.with_suffix(".mar")
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in directory.iterdir():
            archive.write(path)
    return target.stat().st_size / 1e6


def _times(loaded: Mapping[Precision, Runtime], crop: NDArray[np.uint8]) -> dict[Precision, float]:
    """Return the median processor time of one crop on each runtime, in milliseconds.

    The runtimes take turns in several rounds. Processor time is measured because other work on the
    machine affects it little.
    """
    times: dict[Precision, list[float]] = {precision: [] for precision in loaded}
    for _ in range(ROUNDS):
        for precision, runtime in loaded.items():
            for turn in range(WARM_UP + PASSES):
                begin = time.process_time()
                runtime(crop)
                if turn >= WARM_UP:
                    times[precision].append(time.process_time() - begin)
    return {precision: statistics.median(values) * 1000 for precision, values in times.items()}


def _mixed(runtime: Runtime, crop: int) -> float:
    """Return how long `dense` views of mixed sizes take, to one size after the other.

    OpenVINO makes kernels for each size, and keeps those of few. Both take turns; the least
    processor time of each size counts.
    """
    views = [
        np.zeros((1, crop + 32 * down, crop + 32 * across, 3), np.uint8) for down, across in STRIDES
    ]
    grouped, mixed = ([float("inf")] * len(views) for _ in range(2))
    for _ in range(PASSES):
        for number, view in enumerate(views):
            for least, passes in ((mixed, 1), (grouped, 2)):
                for _ in range(passes):  # The second one of a size has its kernels.
                    begin = time.process_time()
                    runtime(view)
                    spent = time.process_time() - begin
                least[number] = min(least[number], spent)
    return sum(mixed) / sum(grouped)


def judged(milliseconds: float, megabytes: float, figures: Proof, precision: Precision) -> Measured:
    """Return the measurements, with whether the builder would accept the model."""
    try:
        proof.check(figures, precision)
    except proof.ProofError:
        return Measured(milliseconds, megabytes, figures, accepted=False)
    return Measured(milliseconds, megabytes, figures, accepted=True)


def markdown(rows: list[Row]) -> str:
    """Write the table."""
    return table(COLUMNS, map(_cells, rows))


def _cells(row: Row) -> list[str]:
    all_three, pair = (row.fp32, row.bf16, row.int8), (row.fp32, row.int8)
    return [
        *(f"`{row.name}`", str(row.crop)),
        *("yes" if able else "no" for able in (row.dense, row.explains)),
        *(f"{each.milliseconds:.1f}" if each else "–" for each in all_three),
        *(f"{each.megabytes:.1f}" if each else "–" for each in pair),
        *(_verdict(each) if each else "–" for each in all_three),
        f"{row.mixed:.2f}" if row.mixed else "–",
    ]


def _verdict(measured: Measured) -> str:
    figures = measured.proof
    if figures is None:
        return "not proved"
    verdict = "passes" if measured.accepted else "refused"
    return f"{verdict}: {figures.mean_difference:.2g}, {figures.agreement:.0%}"


def main() -> int:
    """Run the command."""
    parser = Parser(prog="python -m tests.bench.families", description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="(one of each family)")
    parser.add_argument(
        "--archive", nargs="+", type=Path, default=[], metavar="FILE.mar", help="these instead"
    )
    args = parser.parse_args()
    models = args.models or ([] if args.archive else FAMILIES)
    if unknown := sorted(set(models) - MODELS.keys()):
        print(f"No such model: {', '.join(unknown)}.", file=sys.stderr)
        return 1
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)  # More threads would spin while they wait.
    try:
        with redirect_stdout(sys.stderr):  # NNCF's progress
            rows = [measure_archive(archive) for archive in args.archive]
            for name in (bar := tqdm(models)):
                bar.set_description(name)
                rows.append(measure(name))
    except (ArchiveError, HashError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{circumstances.here()}; load average at the end {os.getloadavg()[0]:.1f}\n")
    print(markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
