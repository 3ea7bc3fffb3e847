"""The peers' models: the eager one of a typical article, and this project's INT8 archive."""

import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

Classify = Callable[[bytes], dict[str, Any]]


def load() -> Classify:
    """Load the file or folder that `$BENCH_MODEL` names.

    Returns:
        A function from an encoded image to a JSON object.
    """
    if core := os.environ.get("BENCH_CORE"):
        for thread in Path("/proc/self/task").iterdir():
            os.sched_setaffinity(int(thread.name), {int(core)})
    path = Path(os.environ["BENCH_MODEL"])
    return int8(path) if path.is_dir() else eager(path)


def eager(weights: Path) -> Classify:
    """Load torchvision's ResNet-18 with its own transforms, in FP32."""
    import torch
    from PIL import Image
    from torchvision.models import ResNet18_Weights, resnet18

    preset = ResNet18_Weights.IMAGENET1K_V1
    transform, categories = preset.transforms(), preset.meta["categories"]
    model = resnet18()
    model.load_state_dict(torch.load(weights, weights_only=True))
    model.eval()

    @torch.inference_mode()
    def classify(data: bytes) -> dict[str, Any]:
        image = Image.open(BytesIO(data)).convert("RGB")
        probabilities = model(transform(image)[None])[0].softmax(0)
        top = probabilities.topk(3)
        pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        return {"predictions": [{"label": categories[i], "probability": p} for i, p in pairs]}

    return classify


def int8(archive: Path) -> Classify:
    """Load an unpacked archive, so that the peer's process runs all its stages."""
    from visionserve.classifier import Classifier
    from visionserve.config import ModelConfig, Options
    from visionserve.item import Item

    config = ModelConfig.load(archive / "model-config.yaml")
    classifier = Classifier.from_archive(archive, config, None, "1.0")

    def classify(data: bytes) -> dict[str, Any]:
        (outcome,) = classifier.classify([Item(data, Options())])
        assert isinstance(outcome, dict)
        return dict(outcome)

    return classify
