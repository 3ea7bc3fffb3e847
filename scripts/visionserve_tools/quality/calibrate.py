"""The work of `visionserve calibrate`."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from tqdm import tqdm

from visionserve.config import TTA, Activation
from visionserve.errors import RequestError
from visionserve.metadata import COLDEST, HOTTEST, Metadata
from visionserve.postprocessing import temper
from visionserve.runtimes import Passed
from visionserve_tools import paths
from visionserve_tools.archive.calibrated import Fitted, hash_groups, numbers, pack
from visionserve_tools.archive.rewrite import check_recorded
from visionserve_tools.quality import output, plausible, thresholds, unfamiliar
from visionserve_tools.quality.arguments import archive_of
from visionserve_tools.quality.models import Loaded, gather, gather_multi_label, opened
from visionserve_tools.quality.statistics import (
    EPSILON,
    Interval,
    log_loss,
    proportion,
    reliability,
)
from visionserve_tools.report import circumstances
from visionserve_tools.report.tables import percent, table

RESAMPLES = 1000
GRID = np.geomspace(COLDEST, HOTTEST, 161)
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


def losses(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64], temperature: float
) -> NDArray[np.float64]:
    """Return the negative log-likelihood of each answer's label at a temperature.

    Args:
        probabilities: float32 of shape (answers, classes).
        labels: int of shape (answers,); or, of a multi-label model, bool of shape (answers,
            classes), whose mean over the classes is returned.
        temperature: a positive number.
    """
    if labels.ndim == 2:
        own = temper(probabilities, temperature, "sigmoid")
        return thresholds.log_losses(own, labels.astype(bool))
    tempered = temper(probabilities, temperature)
    chosen = tempered[np.arange(len(labels)), labels].astype(float)
    lost: NDArray[np.float64] = -np.log(np.maximum(chosen, EPSILON))
    return lost


def fit(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> Interval:
    """Fit one temperature by maximum likelihood (Guo et al., 2017).

    Args:
        probabilities: float32 of shape (answers, classes), averaged over the views.
        labels: as for `losses`.

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
        labels: as for `losses`.
        temperature: with its bootstrap interval.
        features: float32 of shape (answers, channels); None if the model has none.
    """

    probabilities: NDArray[np.float32]
    labels: NDArray[np.int64]
    temperature: Interval
    features: NDArray[np.float32] | None

    def at(self, temperature: float) -> tuple[NDArray[np.float64], NDArray[np.bool_], float, float]:
        """Return confidences, whether each answer is right, NLL and ECE at a temperature.

        Of a multi-label model, each label is an answer, and right where the photograph shows it.
        """
        if self.labels.ndim == 2:
            own = temper(self.probabilities, temperature, "sigmoid").astype(float).ravel()
            shown = self.labels.astype(bool).ravel()
            lost = float(losses(self.probabilities, self.labels, temperature).mean())
            return own, shown, lost, reliability(own, shown).ece
        tempered = temper(self.probabilities, temperature).astype(float)
        confidence = tempered.max(axis=1)
        right = self.probabilities.argmax(axis=1) == self.labels
        nll = log_loss(tempered[np.arange(len(self.labels)), self.labels])
        return confidence, right, nll, reliability(confidence, right).ece

    @property
    def tempered(self) -> NDArray[np.floating[Any]]:
        """The probabilities at the temperature that is packed."""
        activation: Activation = "sigmoid" if self.labels.ndim == 2 else "softmax"
        return temper(self.probabilities, self.packed, activation)

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
    """Fit the temperatures and thresholds, print what they change, and put them into the archive.

    Raises:
        ArchiveError, HashError, ProofError, RequestError, WeightsError, ValueError, OSError: the
            archive or a photograph cannot be used, or the model cannot be built.
    """
    archive = archive_of(args)
    check_recorded(archive)
    with opened(archive) as archived:
        described, config = archived.metadata, archived.config
        find = gather_multi_label if described.multi_label else gather
        given = find(args, described.categories, config)
        name, fitted = str(archived), fit_all(archived, given.photographs, args.modes)
        told = tell(archived, fitted, args)
        served = described.suited(config.defaults).tta
    about = f"{args.folder.name}, {len(given.photographs)} photographs ({circumstances.here()})"
    print(f"{name}, {about}\n\n{summary(fitted)}\n")
    if told:
        print(f"{told}\n")
    found = Fitted(
        architecture=described.architecture,
        weights_sha256=described.weights_sha256,
        groups_sha256=hash_groups(described.groups),
        about=about,
        temperatures={mode: one.packed for mode, one in fitted.items()},
        plausible={} if described.multi_label else fit_plausible(fitted),
        thresholds=fit_thresholds(described, fitted, served) if described.multi_label else {},
        familiarity=told.familiarity(numbers(config.precision, described.half_range), about)
        if told
        else None,
        known=told.known() if told else None,
    )
    pack(archive, found)
    print(f"{archive} has them; a server has them once it loads it anew.")
    return found


def fit_plausible(fitted: Mapping[TTA, Scaled]) -> dict[TTA, float]:
    """Fit the probability below which a name is not worth showing, and print what it leaves."""
    print(f"{warnings(fitted)}\n")
    print(plausible.summary({mode: (one.tempered, one.labels) for mode, one in fitted.items()}))
    print()
    return {mode: one.plausible for mode, one in fitted.items()}


def fit_thresholds(
    described: Metadata, fitted: Mapping[TTA, Scaled], served: TTA
) -> dict[str, float]:
    """Fit each label's threshold to the probabilities that answers will have, and print them.

    Args:
        described: the archive's metadata.
        fitted: the answers in each mode.
        served: the mode whose answers count, or else the first one.
    """
    mode = served if served in fitted else next(iter(fitted))
    tempered, truth = fitted[mode].tempered, fitted[mode].labels.astype(bool)
    own = thresholds.fit(tempered, truth)
    print(thresholds.summary(described.categories, tempered, truth, described.thresholds, own))
    print(f"by the views {mode}\n")
    return dict(zip(described.categories, own, strict=True))


def fit_all(
    loaded: Loaded, photographs: Sequence[tuple[Path, Any]], wanted: Sequence[TTA]
) -> dict[TTA, Scaled]:
    """Classify all photographs in each mode, and fit each mode's temperature.

    Raises:
        ValueError: the model has none of the modes.
        RequestError: the model fails.
    """
    modes = loaded.modes(wanted)
    found: dict[TTA, list[Passed]] = {mode: [] for mode in modes}
    for path, _ in tqdm(photographs, desc=f"photographs, each {len(modes)} times", smoothing=0):
        data = loaded.read(path)
        for mode in modes:
            found[mode].append(loaded.passed(data, mode))
    truth = [label for _, label in photographs]
    many = loaded.metadata.multi_label
    labels: NDArray[Any] = (
        thresholds.hot(truth, len(loaded.metadata.categories)) if many else np.array(truth)
    )
    stacked = {mode: Passed.stacked(rows) for mode, rows in found.items()}
    return {
        mode: Scaled(of.probabilities, labels, fit(of.probabilities, labels), of.features)
        for mode, of in stacked.items()
    }


def tell(
    loaded: Loaded, fitted: Mapping[TTA, Scaled], args: argparse.Namespace
) -> unfamiliar.Told | None:
    """Fit what tells unfamiliar pictures; None where that cannot be done, which is printed.

    A multi-label model needs nothing of the kind.

    Raises:
        ValueError, OSError: the unfamiliar pictures cannot be read.
    """
    if loaded.metadata.multi_label:
        return None  # A picture without a label is none of the classes'.
    known = {mode: one.features for mode, one in fitted.items() if one.features is not None}
    count = len(next(iter(fitted.values())).labels)
    if not known or count < unfamiliar.LEAST:
        reason = (
            f"it takes {unfamiliar.LEAST} photographs, better {unfamiliar.ENOUGH}"
            if known
            else f"{loaded.metadata.architecture} has no features"
        )
        print(f"Unfamiliar pictures will not be told: {reason}.", file=sys.stderr)
        return None
    if count < unfamiliar.ENOUGH:
        few = f"With {count} photographs, fewer than {unfamiliar.ENOUGH}"
        print(f"{few}, the rate of false alarms may be twice the wanted one.", file=sys.stderr)
    pictures = unfamiliar.pictures(args.unfamiliar)
    passed: dict[int, dict[TTA, Passed]] = {}
    for index, data in enumerate(tqdm(pictures.data, desc="unfamiliar pictures", smoothing=0)):
        try:
            passed[index] = {mode: loaded.passed(data, mode) for mode in known}
        except RequestError as error:
            print(f"Left out: {pictures.names[index]}: {error.message}", file=sys.stderr)
    if not passed:
        raise ValueError("No unfamiliar picture is left.")
    strange: dict[TTA, NDArray[np.float32]] = {
        mode: np.array([one[mode].features for one in passed.values()], np.float32)
        for mode in known
    }
    last, left = loaded.runtime.linear(), pictures.only([*passed])
    return unfamiliar.fit(known, strange, last, args.false_alarms, left)


def summary(fitted: dict[TTA, Scaled]) -> str:
    """Return a table of each mode's temperature and its effect on NLL and ECE."""
    rows = []
    for mode, found in fitted.items():
        (_, _, nll, ece), fit = found.at(1), found.temperature
        _, _, cooled_nll, cooled_ece = found.at(fit.value)
        cells = [mode, f"{fit.value:.2f} ({fit.low:.2f} to {fit.high:.2f})"]
        rows.append([*cells, f"{nll:.3f} → {cooled_nll:.3f}", f"{ece:.3f} → {cooled_ece:.3f}"])
    return table(["TTA", "temperature", "NLL, 1 → fitted", "ECE, 1 → fitted"], rows)


def warnings(fitted: Mapping[TTA, Scaled]) -> str:
    """Return a table of the shares of wrong and right answers below each threshold."""
    rows = []
    for mode, found in fitted.items():
        for name, temperature in (("1", 1.0), ("fitted", found.temperature.value)):
            confidence, right, _, _ = found.at(temperature)
            row = [mode, name]
            for threshold in THRESHOLDS:
                warned = confidence < threshold
                shares = (proportion(warned[those]).value for those in (~right, right))
                row.append(" / ".join(percent(share, digits=0) for share in shares))
            rows.append(row)
    columns = (f"threshold {threshold:.0%}" for threshold in THRESHOLDS)
    heading = "Answers that carry the warning: of the wrong ones / of the right ones"
    return f"{heading}\n\n{table(['TTA', 'temperature', *columns], rows)}"
