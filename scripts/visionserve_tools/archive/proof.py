"""Prove an archive: compare its model, run as in a worker, with PyTorch in FP32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from visionserve.workarounds import torchvision_compiler  # noqa: F401

# isort: split

from torchvision.transforms import functional

from visionserve import tta
from visionserve.config import TTA, Activation, Precision
from visionserve.metadata import Proof, Transforms
from visionserve.preprocessing import to_views
from visionserve_tools.archive import multi_label, plain

if TYPE_CHECKING:
    from torch import Tensor

    from visionserve.models import FullyConvolutional
    from visionserve.runtimes import Passed

MODES: tuple[TTA, ...] = ("five_crop", "dense")
SUM_ERROR = 0.001
TIE = 0.01


class ProofError(ValueError):
    """A model's probabilities differ too much from PyTorch's; the message gives the figures."""


@dataclass(frozen=True)
class Limits:
    """The limits beyond which an archive is refused.

    They are alarms, not goals, and leave room for proofs on few photographs.

    Attributes:
        difference: largest mean of |p - p_fp32|, for the class that FP32 finds best, or for any
            class of a multi-label model.
        agreement: smallest share of views with the same best class, or labels.
        cosine: smallest mean cosine of a view's features and PyTorch's.
    """

    difference: float
    agreement: float
    cosine: float = 0


LIMITS: dict[Precision, Limits] = {
    "fp32": Limits(difference=0.001, agreement=1, cosine=0.9999),
    "bf16": Limits(difference=0.012, agreement=0.99, cosine=0.995),
    "fp16": Limits(difference=0.01, agreement=0.98, cosine=0.999),
    "int8": Limits(difference=0.06, agreement=0.9, cosine=0.95),
}


# All labels of a view are right less often than its best class.
MULTI_LABEL: dict[Precision, Limits] = LIMITS | {
    "bf16": replace(LIMITS["bf16"], agreement=0.95),
    "fp16": replace(LIMITS["fp16"], agreement=0.95),
    "int8": replace(LIMITS["int8"], agreement=0.8),
}


def limits_of(precision: Precision, activation: Activation) -> Limits:
    """Return the limits of a model."""
    return (MULTI_LABEL if activation == "sigmoid" else LIMITS)[precision]


@dataclass(frozen=True)
class Reference:
    """PyTorch's probabilities and features in FP32, which a converted model is compared with.

    Attributes:
        photographs: how many there are.
        views: an array of views for each photograph and each mode of `MODES` that the model has, as
            `visionserve.tta.views` cuts them.
        probabilities: float32 of shape (views, classes) for each entry of `views`.
        features: float32 of shape (views, channels) for each entry; empty if the model has none.
    """

    photographs: int
    views: tuple[NDArray[np.uint8], ...]
    probabilities: tuple[NDArray[np.float32], ...]
    features: tuple[NDArray[np.float32], ...] = ()


def refer(
    module: FullyConvolutional,
    photographs: Sequence[Image.Image],
    transforms: Transforms,
    groups: Sequence[Sequence[int]] = (),
) -> Reference:
    """Classify the views of RGB photographs with PyTorch, preprocessed by torchvision.

    Crops go through the plain network; a dense view, which that would not average over windows,
    goes through its fully convolutional form. Groups are the module's. Features are what the last
    layer gets meanwhile, once for each window.
    """
    network = plain.grouped(module.network, groups)
    modes = [mode for mode in MODES if module.dense or mode != "dense"]
    views, answers, features = [], [], []
    seen: list[Tensor] = []
    with torch.inference_mode(), ExitStack() as hooks:
        if module.linear is not None:
            note = module.linear.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
            hooks.callback(note.remove)
        for photograph in photographs:
            resized = plain.resized(photograph, transforms)
            for mode in modes:
                crops = _crops(resized, mode, transforms.crop)
                images = torch.stack([plain.tensor(crop, transforms) for crop in crops])
                classified = (
                    module.classify(images)
                    if mode == "dense"
                    else plain.classify(network, images, module.activation)
                )
                views.append(to_views(photograph, transforms, "exact", mode).stacked())
                answers.append(classified.numpy())
                if seen:
                    windows = seen.pop()
                    of_view = windows.reshape(len(images), -1, windows.shape[-1])
                    features.append(of_view.mean(1).numpy())
    return Reference(len(photographs), tuple(views), tuple(answers), tuple(features))


def _crops(resized: Image.Image, mode: TTA, crop: int) -> list[Image.Image]:
    """Cut the views of a mode, as torchvision does, in the order of `visionserve.tta.views`."""
    if mode == "dense":
        return [resized.crop(tta.first_box(resized.size, mode, crop))]
    *corners, centre = functional.five_crop(resized, [crop])
    return [centre, *corners]


def prove(
    passed: Callable[[NDArray[np.uint8]], Passed],
    reference: Reference,
    thresholds: Sequence[float] = (),
    precision: Precision | None = None,
) -> Proof:
    """Compare what a loaded model says with PyTorch, on the reference's views.

    Args:
        passed: the model.
        reference: what it is compared with.
        thresholds: of a multi-label model.
        precision: what the model computes in.
    """
    passes = [passed(views) for views in reference.views]
    found = np.concatenate([one.probabilities for one in passes])
    expected = np.concatenate(reference.probabilities)
    rows = np.arange(len(expected))
    if thresholds:
        close = multi_label.compare(found, expected, thresholds)
        return Proof(
            photographs=reference.photographs,
            views=len(rows),
            mean_difference=close.mean,
            largest_difference=close.largest,
            agreement=close.agreement,
            largest_sum_error=float(np.maximum(np.abs(found - 0.5) - 0.5, 0).max()),
            feature_cosine=_cosine(passes, reference),
            precision=precision,
        )
    best, chosen = expected.argmax(axis=1), found.argmax(axis=1)
    differences = np.abs(found[rows, best] - expected[rows, best])
    ties = expected[rows, best] - expected[rows, chosen] <= TIE
    return Proof(
        photographs=reference.photographs,
        views=len(rows),
        mean_difference=float(differences.mean()),
        largest_difference=float(differences.max()),
        agreement=float(ties.mean()),
        largest_sum_error=float(np.abs(found.sum(axis=1) - 1).max()),
        feature_cosine=_cosine(passes, reference),
        precision=precision,
    )


def _cosine(passes: Sequence[Passed], reference: Reference) -> float | None:
    """Return the mean cosine of a view's features and PyTorch's, None if PyTorch has none.

    It is 0 if the model gives none.
    """
    if not reference.features:
        return None
    given = [one.features for one in passes if one.features is not None]
    if len(given) < len(passes):
        return 0.0
    found, expected = np.concatenate(given), np.concatenate(reference.features)
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    return float(((found * expected).sum(axis=1) / lengths).mean())


def describe(proof: Proof, activation: Activation = "softmax") -> str:
    """Describe a proof's figures in one line."""
    known = proof.feature_cosine is not None
    cosine = f"features' cosine {proof.feature_cosine:.6f} in the mean; " if known else ""
    if activation == "sigmoid":
        return (
            f"|p - p of PyTorch FP32|: {proof.mean_difference:.6f} in the mean, of the worst "
            f"class; {proof.largest_difference:.6f} at most; same labels: {proof.agreement:.1%}; "
            f"off 0 to 1 by at most {proof.largest_sum_error:.6f}; {cosine}"
            f"{proof.views} views of {proof.photographs} photographs"
        )
    return (
        f"|p - p of PyTorch FP32| of its best class: {proof.mean_difference:.6f} in the mean, "
        f"{proof.largest_difference:.6f} at most; same best class: {proof.agreement:.1%}; "
        f"sums off 1 by at most {proof.largest_sum_error:.6f}; {cosine}"
        f"{proof.views} views of {proof.photographs} photographs"
    )


def is_close(proof: Proof, precision: Precision, activation: Activation = "softmax") -> bool:
    """Tell whether a model's figures are within its limits; NaN is beyond every limit."""
    limits = limits_of(precision, activation)
    return (
        proof.largest_sum_error <= SUM_ERROR
        and proof.mean_difference <= limits.difference
        and proof.agreement >= limits.agreement
        and (proof.feature_cosine is None or proof.feature_cosine >= limits.cosine)
    )


def check(proof: Proof, precision: Precision, activation: Activation = "softmax") -> None:
    """Refuse a model whose probabilities differ too much from PyTorch's.

    Raises:
        ProofError: a sum of probabilities differs from 1 by more than `SUM_ERROR`, or a figure is
            beyond its limit; NaN counts as beyond every limit.
    """
    limits = limits_of(precision, activation)
    if not is_close(proof, precision, activation):
        raise ProofError(
            f"The {precision} model's probabilities are not those of its weights, and no archive "
            f"is written: {describe(proof, activation)}. Allowed are {limits.difference} in the "
            f"mean, {limits.agreement:.0%}, {SUM_ERROR} and a cosine of {limits.cosine}."
        )
