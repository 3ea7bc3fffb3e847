"""The work of `visionserve calibrate`."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from tqdm import tqdm

from scripts import paths
from scripts.archive.rewrite import check_recorded
from scripts.archive.temperatures import Fitted, hash_groups, pack
from scripts.quality import output, plausible
from scripts.quality.arguments import archive_of
from scripts.quality.models import Loaded, gather, opened
from scripts.quality.statistics import EPSILON, Interval, log_loss, reliability
from scripts.report import circumstances
from scripts.report.tables import table
from visionserve.config import TTA
from visionserve.metadata import COLDEST, HOTTEST
from visionserve.postprocessing import temper

RESAMPLES = 1000
GRID = np.geomspace(COLDEST, HOTTEST, 161)
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


def losses(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64], temperature: float
) -> NDArray[np.float64]:
    """Return the negative log-likelihood of each answer's label at a temperature.

    Args:
        probabilities: float32 of shape (answers, classes).
        labels: int of shape (answers,).
        temperature: a positive number.
    """
    tempered = temper(probabilities, temperature)
    chosen = tempered[np.arange(len(labels)), labels].astype(float)
    lost: NDArray[np.float64] = -np.log(np.maximum(chosen, EPSILON))
    return lost


def fit(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> Interval:
    """Fit one temperature by maximum likelihood (Guo et al., 2017).

    Args:
        probabilities: float32 of shape (answers, classes), averaged over the views.
        labels: int of shape (answers,).

    Returns:
        The temperature; the bounds are percentiles of bootstrap resamples of the answers.
    """

    def loss(logarithm: float) -> float:
        return float(losses(probabilities, labels, float(np.exp(logarithm))).mean())

    bounds = (float(np.log(COLDEST)), float(np.log(HOTTEST)))
    best = float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))
    on_grid = np.stack([losses(probabilities, labels, temperature) for temperature in GRID])
    chosen = np.random.default_rng(0).multinomial(
        len(labels), np.full(len(labels), 1 / len(labels)), RESAMPLES
    )
    resampled = GRID[(on_grid @ chosen.T).argmin(axis=0)]
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Interval(best, float(low), float(high))


@dataclass(frozen=True)
class Scaled:
    """A mode's fitted temperature, and the answers it was fitted on.

    Attributes:
        probabilities: float32 of shape (answers, classes), averaged over the views.
        labels: int of shape (answers,).
        temperature: with its bootstrap interval.
    """

    probabilities: NDArray[np.float32]
    labels: NDArray[np.int64]
    temperature: Interval

    def at(self, temperature: float) -> tuple[NDArray[np.float64], NDArray[np.bool_], float, float]:
        """Return confidences, whether each answer is right, NLL and ECE at a temperature."""
        tempered = temper(self.probabilities, temperature).astype(float)
        confidence = tempered.max(axis=1)
        right = self.probabilities.argmax(axis=1) == self.labels
        nll = log_loss(tempered[np.arange(len(self.labels)), self.labels])
        return confidence, right, nll, reliability(confidence, right).ece

    @property
    def tempered(self) -> NDArray[np.floating[Any]]:
        """The probabilities at the temperature that is packed."""
        return temper(self.probabilities, self.packed)

    @property
    def packed(self) -> float:
        """The temperature as the archive has it."""
        return round(self.temperature.value, 4)

    @property
    def plausible(self) -> float:
        """The probability below which a name is not worth showing."""
        return plausible.fit(self.tempered, self.labels)


def run(args: argparse.Namespace) -> int:
    """Do what `visionserve calibrate` was asked, and return its exit code."""
    beside = args.archive or paths.MODEL_STORE / args.profile / f"{args.model}.mar"
    file = args.output or beside.with_name(f"{beside.stem}-temperatures.json")
    return output.write(file, lambda: (calibrated(args).model_dump(mode="json"), ()))


def calibrated(args: argparse.Namespace) -> Fitted:
    """Fit the temperatures, print what they change, and put them into the archive.

    Raises:
        ArchiveError, HashError, ProofError, RequestError, WeightsError, ValueError, OSError: the
            archive or a photograph cannot be used, or the model cannot be built.
    """
    archive = archive_of(args)
    check_recorded(archive)
    with opened(archive) as archived:
        described = archived.metadata
        given = gather(args, described.categories, archived.config)
        name, fitted = str(archived), fit_all(archived, given.photographs, args.modes)
    about = f"{args.folder.name}, {len(given.photographs)} photographs ({circumstances.here()})"
    print(f"{name}, {about}\n\n{summary(fitted)}\n\n{warnings(fitted)}\n")
    print(plausible.summary({mode: (one.tempered, one.labels) for mode, one in fitted.items()}))
    print()
    found = Fitted(
        architecture=described.architecture,
        weights_sha256=described.weights_sha256,
        groups_sha256=hash_groups(described.groups),
        about=about,
        temperatures={mode: one.packed for mode, one in fitted.items()},
        plausible={mode: one.plausible for mode, one in fitted.items()},
    )
    pack(archive, found)
    print(f"{archive} has them; a server has them once it loads it anew.")
    return found


def fit_all(
    loaded: Loaded, photographs: Sequence[tuple[Path, int]], wanted: Sequence[TTA]
) -> dict[TTA, Scaled]:
    """Classify all photographs in each mode, and fit each mode's temperature.

    Raises:
        ValueError: the model has none of the modes.
        RequestError: the model fails.
    """
    modes = loaded.modes(wanted)
    found: dict[TTA, list[NDArray[np.float32]]] = {mode: [] for mode in modes}
    for path, _ in tqdm(photographs, desc=f"photographs, each {len(modes)} times", smoothing=0):
        for mode in modes:
            found[mode].append(loaded.probabilities(path, mode))
    labels = np.array([label for _, label in photographs])
    stacked = {mode: np.stack(rows) for mode, rows in found.items()}
    return {mode: Scaled(rows, labels, fit(rows, labels)) for mode, rows in stacked.items()}


def summary(fitted: dict[TTA, Scaled]) -> str:
    """Return a table of each mode's temperature and its effect on NLL and ECE."""
    rows = []
    for mode, found in fitted.items():
        (_, _, nll, ece), fit = found.at(1), found.temperature
        _, _, cooled_nll, cooled_ece = found.at(fit.value)
        cells = [mode, f"{fit.value:.2f} ({fit.low:.2f} to {fit.high:.2f})"]
        rows.append([*cells, f"{nll:.3f} → {cooled_nll:.3f}", f"{ece:.3f} → {cooled_ece:.3f}"])
    return table(["TTA", "temperature", "NLL, 1 → fitted", "ECE, 1 → fitted"], rows)


def warnings(fitted: dict[TTA, Scaled]) -> str:
    """Return a table of the shares of wrong and right answers below each threshold."""
    rows = []
    for mode, found in fitted.items():
        for name, temperature in (("1", 1.0), ("fitted", found.temperature.value)):
            confidence, right, _, _ = found.at(temperature)
            under = [confidence < threshold for threshold in THRESHOLDS]
            shares = [
                f"{warned[~right].mean():.0%} / {warned[right].mean():.0%}" for warned in under
            ]
            rows.append([mode, name, *shares])
    columns = (f"threshold {threshold:.0%}" for threshold in THRESHOLDS)
    heading = "Answers that carry the warning: of the wrong ones / of the right ones"
    return f"{heading}\n\n{table(['TTA', 'temperature', *columns], rows)}"
