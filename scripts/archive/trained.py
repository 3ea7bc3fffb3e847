"""Read the report that `visionserve train` writes beside its weights, which the builder packs."""

from pathlib import Path

from pydantic import ConfigDict, ValidationError

from scripts.archive.hashes import sha256_of
from visionserve.config import Strict
from visionserve.metadata import Training

FILE = "report.json"


class Report(Strict):
    """The content of the file, of which the archive gets `training` alone.

    Attributes:
        weights_sha256: SHA-256 of the file of weights, in hex.
        training: what the weights were trained on.
    """

    model_config = ConfigDict(extra="ignore")
    weights_sha256: str
    training: Training


def read(weights: Path | None) -> Training | None:
    """Return what weights were trained on; None where no report of them lies beside them."""
    if weights is None:
        return None
    try:
        report = Report.model_validate_json(weights.with_name(FILE).read_bytes())
        own = report.weights_sha256 == sha256_of(weights)
    except (OSError, ValidationError):
        return None
    return report.training if own else None
