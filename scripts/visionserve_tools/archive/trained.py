"""Read the report that `visionserve train` writes beside its weights, which the builder packs."""

from pathlib import Path

from pydantic import ConfigDict, ValidationError

from visionserve.config import Strict
from visionserve.metadata import Training, Transforms
from visionserve_tools.archive.hashes import sha256_of

FILE = "report.json"


class Report(Strict):
    """The content of the file that the builder reads.

    Attributes:
        weights_sha256: SHA-256 of the file of weights, in hex.
        training: what the weights were trained on, for the archive.
        transforms: the preprocessing that they were trained with.
    """

    model_config = ConfigDict(extra="ignore")
    weights_sha256: str
    training: Training
    transforms: Transforms


def read(weights: Path | None) -> Report | None:
    """Return the report of weights; None where no report of them lies beside them."""
    if weights is None:
        return None
    try:
        report = Report.model_validate_json(weights.with_name(FILE).read_bytes())
        own = report.weights_sha256 == sha256_of(weights)
    except (OSError, ValidationError):
        return None
    return report if own else None
