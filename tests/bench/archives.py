"""Build the archives that the contenders serve, and write the weights that they share."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.bench.peers import stock_model
from tests.drawn import draw
from visionserve.models import IMAGENET_CATEGORIES
from visionserve.processor import multiplies_bf16
from visionserve_tools.archive.recipe import Recipe, build
from visionserve_tools.archive.weights import WeightsUnavailableError, resolve

ARCHITECTURE = "resnet18"
VARIANTS: dict[str, dict[str, object]] = {
    "pytorch_fp32": {"runtime": "pytorch", "precision": "fp32"},
    "openvino_fp32": {"runtime": "openvino", "precision": "fp32"},
    "openvino_int8": {"runtime": "openvino", "precision": "int8"},
    **(
        {"openvino_bf16": {"runtime": "openvino", "precision": "bf16"}} if multiplies_bf16() else {}
    ),
    # A cached answer takes the same time whatever computed it, and FP32 is built sooner.
    "openvino_fp32_cached": {"runtime": "openvino", "precision": "fp32", "cache": {"size_mb": 64}},
}
STOCK = "image_classifier"
WEIGHTS = "weights.pt"


@dataclass(frozen=True)
class Built:
    """The result of building all archives.

    Attributes:
        weights: where the weights came from, as text for people.
        size_mb: the size of each archive by its name, in megabytes.
    """

    weights: str
    size_mb: dict[str, float]


def build_all(store: Path, workers: int) -> Built:
    """Build every archive into a store, and unpack this project's archives there too.

    Args:
        store: the folder to write to.
        workers: the number of workers of each archive.
    """
    store.mkdir(parents=True, exist_ok=True)
    weights = store / WEIGHTS
    source = prepare_weights(weights)
    archives = []
    scaling = {"minWorkers": workers, "maxWorkers": workers, "deviceType": "cpu"}
    for name, handler in VARIANTS.items():
        config = store / f"{name}.yaml"
        settings = {"decode": "fast", "cache": {"size_mb": 0}} | handler
        config.write_text(yaml.safe_dump(scaling | {"handler": settings}))
        archives.append(build(Recipe(ARCHITECTURE, name, "1.0", config, weights), store))
        with zipfile.ZipFile(archives[-1]) as archive:
            archive.extractall(store / name)
    archives.append(build_stock(store, weights, scaling))
    sizes = {archive.stem: archive.stat().st_size / 1e6 for archive in archives}
    return Built(source, sizes)


def prepare_weights(target: Path) -> str:
    """Write the official weights, or seeded random ones if there are none, and return their source.

    Random weights are as fast, so that the measurements remain valid.
    """
    try:
        weights = resolve(ARCHITECTURE)
    except WeightsUnavailableError:
        draw(target, ARCHITECTURE)
        return "random (seed 0), since the official ones cannot be had; they are as fast"
    shutil.copy(weights.path, target)
    return weights.source


def build_stock(store: Path, weights: Path, config: dict[str, object]) -> Path:
    """Build an archive with TorchServe's own `image_classifier` handler."""
    names = store / "index_to_name.json"
    names.write_text(json.dumps({str(i): name for i, name in enumerate(IMAGENET_CATEGORIES)}))
    settings = store / f"{STOCK}.yaml"
    settings.write_text(yaml.safe_dump(config))
    command = [
        *(str(Path(sys.executable).with_name("torch-model-archiver")), "--force"),
        *("--model-name", STOCK, "--version", "1.0", "--handler", "image_classifier"),
        *("--model-file", str(stock_model.__file__), "--serialized-file", str(weights)),
        *("--extra-files", str(names), "--config-file", str(settings)),
        *("--export-path", str(store)),
    ]
    subprocess.run(command, check=True, env={**os.environ, "TMPDIR": str(store)})
    return store / f"{STOCK}.mar"


if __name__ == "__main__":
    print(json.dumps(dataclasses.asdict(build_all(Path(sys.argv[1]), int(sys.argv[2])))))
