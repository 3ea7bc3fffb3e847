"""Samples as tasks that Label Studio imports, with the model's answers as its predictions.

Formats: https://labelstud.io/guide/predictions and, for pictures on its machine,
https://labelstud.io/guide/storage#Local-storage
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from visionserve.sample_store import Sample

TASKS, INTERFACE = "label-studio.json", "label-studio.xml"
NONE = "none of these"


def write(placed: Sequence[tuple[Sample, str]], folder: Path, name: str) -> None:
    """Write the tasks, and the labelling interface that they are for.

    Args:
        placed: samples, with the paths of their pictures in the folder.
        folder: where to write.
        name: what the folder will be called, below Label Studio's document root.
    """
    tasks = [_task(sample, f"{name}/{path}") for sample, path in placed]
    text = json.dumps(tasks, indent=1, ensure_ascii=False)
    (folder / TASKS).write_text(text, encoding="utf-8")
    (folder / INTERFACE).write_text(_interface(sample for sample, _ in placed), encoding="utf-8")


def _task(sample: Sample, path: str) -> dict[str, Any]:
    about, (best, *_) = sample.about, sample.about["predictions"]
    predicted = about.get("labels", [best["label"]])
    data = {"image": f"/data/local-files/?d={quote(path)}", "id": sample.id, "time": about["time"]}
    prediction = {
        "model_version": f"{about['model']} {about['version']}",
        "score": best["probability"],
        "result": _choices(predicted) if predicted else [],
    }
    task = {"data": data, "predictions": [prediction]}
    if sample.report is not None:
        task["annotations"] = [{"result": _choices(sample.report["labels"])}]
    return task


def _choices(labels: Sequence[str]) -> list[dict[str, Any]]:
    value = {"choices": list(labels) or [NONE]}
    return [{"from_name": "label", "to_name": "image", "type": "choices", "value": value}]


def _interface(samples: Iterable[Sample]) -> str:
    """Describe the interface, with every label that the samples name."""
    labels: dict[str, None] = {}
    choice = "single"
    for sample in samples:
        choice = "multiple" if "labels" in sample.about else choice
        named = (prediction["label"] for prediction in sample.about["predictions"])
        labels |= dict.fromkeys([*sample.labels, *named, *sample.about.get("labels", ())])
    choices = "".join(
        f"    <Choice value={quoteattr(label)}/>\n" for label in [*sorted(labels), NONE]
    )
    return (
        '<View>\n  <Image name="image" value="$image"/>\n'
        f'  <Choices name="label" toName="image" choice="{choice}">\n{choices}'
        "  </Choices>\n</View>\n"
    )
