"""Whether an archive's model computes on this machine what its weights compute in PyTorch.

A builder proves a model on its own processor, and another one may compute otherwise: without VNNI,
sums of INT8 overflow, and an engine has kernels of its own for each processor. So an archive holds
a few pictures with PyTorch's probabilities of them, and each worker classifies these when it loads.
"""

import hashlib
import io
import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from visionserve.config import HandlerConfig, Strict
from visionserve.metadata import Metadata, SelfCheck
from visionserve.preprocessing import decode, to_views
from visionserve.processor import overflows
from visionserve.runtimes import Passed, Runtime

FILE = "self_check.npz"
# An answer whose probability in PyTorch is within this of the best one's is as right as that.
TIE = 0.01
# What `decode: fast` may add to the differences, and take from the agreement.
FAST_DIFFERENCE, FAST_AGREEMENT = 0.01, 0.02
ADVICE = (
    "Build it on this machine (`visionserve rebuild`), or for another precision; `self_check: "
    "warn` in the handler's configuration serves it as it is."
)

logger = logging.getLogger(__name__)


class SelfCheckError(RuntimeError):
    """A model is not what was built, or computes otherwise on this machine."""


class Checked(Strict):
    """What a model's self-check found.

    Attributes:
        passed: whether the model may be served.
        pictures: how many were classified.
        mean_difference: mean of |p - p of PyTorch FP32|, for the class that PyTorch finds best; of
            a multi-label model, for the class whose mean is largest.
        agreement: share of the pictures, 0 to 1, whose best class is PyTorch's, or ties with it;
            1 of a multi-label model.
        about: the result in words.
    """

    passed: bool
    pictures: int
    mean_difference: float
    agreement: float
    about: str


def check(
    directory: Path, metadata: Metadata, config: HandlerConfig, runtime: Runtime
) -> Checked | None:
    """Classify an archive's own pictures, and hold the answers against PyTorch's.

    Args:
        directory: where the archive's files are.
        metadata: the archive's `metadata.json`.
        config: gives the precision, the decoding, and whether a fault is only warned of.
        runtime: the loaded model.

    Returns:
        What was found; None for an archive of an earlier builder, which has no pictures.

    Raises:
        SelfCheckError: a file of the model is not the one that was built, the answers differ by
            more than the archive allows, or INT8 overflows on this processor; unless the
            configuration says `warn`.
    """
    allowed = metadata.self_check
    if allowed is None:
        logger.info("The archive has no pictures to check itself with: `visionserve rebuild`.")
        return None
    found = _compare(directory, metadata, config, runtime, allowed)
    if found.passed:
        logger.info("Self-check: %s", found.about)
    elif config.self_check == "warn":
        logger.warning("Self-check: %s %s", found.about, ADVICE)
    else:
        raise SelfCheckError(f"{found.about} {ADVICE}")
    return found


def compare(
    found: NDArray[np.float32], expected: NDArray[np.float32], metadata: Metadata
) -> tuple[float, float]:
    """Compare a model's probabilities with PyTorch's, both of shape (pictures, classes).

    Returns:
        The mean difference and the agreement, as `Checked` has them.
    """
    differences = np.abs(found - expected)
    if metadata.multi_label:
        return float(differences.mean(axis=0).max()), 1.0
    rows, best, chosen = np.arange(len(found)), expected.argmax(axis=1), found.argmax(axis=1)
    agreement = (expected[rows, best] - expected[rows, chosen] <= TIE).mean()
    return float(differences[rows, best].mean()), float(agreement)


def sha256_of(files: Iterable[Path]) -> str:
    """Return one SHA-256 in hex of files, in the order of their paths."""
    digests = []
    for path in sorted(files):
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def model_files(directory: Path, artifact: str) -> list[Path]:
    """Return the paths of a model's files: `artifact` and those that differ by suffix alone."""
    return sorted(directory.glob(f"{Path(artifact).stem}.*"))


def _compare(
    directory: Path,
    metadata: Metadata,
    config: HandlerConfig,
    runtime: Runtime,
    allowed: SelfCheck,
) -> Checked:
    with np.load(directory / FILE, allow_pickle=False) as kept:
        expected = kept["probabilities"]
        pictures = [kept[f"picture_{number}"].tobytes() for number in range(len(expected))]
    views = []
    for picture in pictures:
        image = decode(Image.open(io.BytesIO(picture)), metadata.transforms, config.decode)
        views.append(to_views(image, metadata.transforms, config.decode, "none"))
    found = Passed.joined([runtime.averaged([view]) for view in views]).probabilities
    mean, agreement = compare(found, expected, metadata)
    fast = config.decode == "fast"
    largest = allowed.difference + fast * FAST_DIFFERENCE
    least = allowed.agreement - fast * FAST_AGREEMENT
    close = mean <= largest and agreement >= least  # NaN is not close.
    figures = (
        f"{len(found)} pictures differ from PyTorch by {mean:.6f} in the mean, {agreement:.0%} "
        f"have its best class; allowed are {largest:g} and {least:.0%}"
    )
    fault = ""
    if sha256_of(model_files(directory, metadata.artifact)) != allowed.sha256:
        fault = "The model's files are not those that were built. "
    elif not close:
        fault = "The model's answers are wrong on this machine. "
    elif config.precision == "int8" and not metadata.half_range and overflows():
        fault = (
            "The INT8 weights use their whole range, and this processor has no VNNI, so sums "
            "overflow and answers are less exact. "
        )
    return Checked(
        passed=not fault,
        pictures=len(found),
        mean_difference=mean,
        agreement=agreement,
        about=f"{fault}{figures}.",
    )
