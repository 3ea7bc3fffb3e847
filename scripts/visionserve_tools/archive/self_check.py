"""Give an archive what its workers check their model with: pictures, and PyTorch's answers."""

from __future__ import annotations

import io
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from visionserve.metadata import SelfCheck
from visionserve.preprocessing import to_views
from visionserve.self_check import FILE, compare, model_files, sha256_of
from visionserve_tools import photos
from visionserve_tools.archive import plain
from visionserve_tools.archive.proof import limits_of

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from visionserve.config import Precision
    from visionserve.metadata import Metadata
    from visionserve.runtimes import Runtime

# Of so many pictures PyTorch is asked, and so many are kept.
SURE, PICTURES = 8, 6
# A picture is larger than the resized one, so that the resize is checked as well.
LARGER = 1.25
QUALITY = 90
# How many times as far off as here a model may be on another processor.
MORE = 1.5


def write(
    network: nn.Module,
    metadata: Metadata,
    precision: Precision,
    runtime: Runtime,
    directory: Path,
) -> SelfCheck:
    """Write `visionserve.self_check.FILE`, and return what the metadata says of it.

    The pictures are parts of scikit-image's photographs, as JPEG: of those that the converted model
    is surest of, those on which it is closest to PyTorch. So only another processor, or another
    model, makes them differ. A user's own photographs never get into an archive.

    Args:
        network: the plain network, with its groups.
        metadata: the model's transforms, activation and artifact.
        precision: decides how far answers may be off.
        runtime: the converted model.
        directory: where the model's files are.
    """
    transforms = metadata.transforms
    jpegs = _jpegs(transforms.resize)
    images = [Image.open(io.BytesIO(jpeg)) for jpeg in jpegs]
    views = [to_views(image, transforms, "exact", "none") for image in images]
    answers = np.concatenate([runtime.averaged([view]).probabilities for view in views])
    # A multi-label model may have one class, so that there is no second one.
    ordered = np.sort(np.pad(answers, ((0, 0), (0, 1))))
    surest = (ordered[:, -2] - ordered[:, -1]).argsort(kind="stable")[:SURE]
    with torch.inference_mode():
        inputs = torch.stack([plain.centre(images[index], transforms) for index in surest])
        probabilities = plain.classify(network, inputs, metadata.activation).numpy()
    found = answers[surest]
    closest = np.abs(found - probabilities).max(axis=1).argsort(kind="stable")[:PICTURES]
    arrays: dict[str, Any] = {
        f"picture_{number}": np.frombuffer(jpegs[index], np.uint8)
        for number, index in enumerate(surest[closest])
    }
    np.savez(directory / FILE, **arrays, probabilities=probabilities[closest])
    limits = limits_of(precision, metadata.activation)
    mean, agreement = compare(found[closest], probabilities[closest], metadata)
    # A model that was calibrated on pictures of another kind may be further off on these.
    return SelfCheck(
        sha256=sha256_of(model_files(directory, metadata.artifact)),
        difference=max(limits.difference, MORE * mean),
        agreement=min(limits.agreement, agreement),
    )


@cache
def _jpegs(resize: int | tuple[int, int]) -> list[bytes]:
    """Return scikit-image's photographs and their halves as JPEGs, for a preprocessing's resize."""
    parts = (part for path in photos.free() for part in _parts(photos.read(path)))
    return [_jpeg(part, resize) for part in parts]


def _parts(photograph: Image.Image) -> list[Image.Image]:
    """Return a photograph, and its halves."""
    (width, height), middle = photograph.size, photograph.width // 2
    boxes = ((0, 0, middle, height), (middle, 0, width, height))
    return [photograph, *(photograph.crop(box) for box in boxes)]


def _jpeg(photograph: Image.Image, resize: int | tuple[int, int]) -> bytes:
    """Return a photograph as a small JPEG."""
    shortest = round(LARGER * (resize if isinstance(resize, int) else max(resize)))
    scale = shortest / min(photograph.size)
    width, height = (round(scale * side) for side in photograph.size)
    written = io.BytesIO()
    photograph.resize((width, height), Image.Resampling.LANCZOS).save(
        written, "JPEG", quality=QUALITY
    )
    return written.getvalue()
