"""Fit the score below which a picture is unfamiliar, and measure what it catches.

A threshold is the score that a share of the photographs of the classes, the false alarms, falls
below. Two methods are fitted, and the one that catches more unfamiliar pictures is taken.
"""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionserve.config import TTA
from visionserve.familiarity import Energy, Features, Neighbours, Score
from visionserve.metadata import Familiarity, Method, Numbers, Threshold
from visionserve.runtimes import Linear
from visionserve_tools import photos
from visionserve_tools.quality import generated
from visionserve_tools.quality.statistics import Interval, proportion
from visionserve_tools.report.tables import table

LEAST, ENOUGH = 100, 200
FOLDS = 5
# The features' percentile that ReAct clips at, and the share that ASH-S does not remove. Both are
# near the papers' own (90, and 0.1 to 0.35), and were chosen by the generated pictures alone.
CLIP, KEPT = 85, 0.35
MOST_KNOWN = 1000

# From features of photographs to a score of features, and the photographs' own scores. The first
# features are of the first mode, and the second ones of the mode that is scored.
Fit = Callable[[Features, Features], tuple[Score, NDArray[np.float32]]]


@dataclass(frozen=True)
class Pictures:
    """Unfamiliar pictures.

    Attributes:
        source: where they come from, for people.
        kinds: the kind of each.
        names: what people call each.
        data: each picture, encoded.
    """

    source: str
    kinds: Sequence[str]
    names: Sequence[str]
    data: Sequence[bytes]

    def only(self, indices: Sequence[int]) -> "Pictures":
        """Return some of them."""
        kinds, names = ([of[index] for index in indices] for of in (self.kinds, self.names))
        return Pictures(self.source, kinds, names, [self.data[index] for index in indices])


def pictures(folder: Path | None) -> Pictures:
    """Return the pictures below a folder, those of each folder in it as a kind; or make some.

    Raises:
        OSError: the folder cannot be read, or has no picture.
    """
    if folder is None:
        made = list(generated.pictures())
        kinds = [kind for kind, _ in made]
        return Pictures("generated", kinds, kinds, [data for _, data in made])
    paths = photos.folder(folder)
    kinds = [
        path.relative_to(folder).parts[0] if path.parent != folder else "all" for path in paths
    ]
    return Pictures(folder.name, kinds, [*map(str, paths)], [path.read_bytes() for path in paths])


@dataclass(frozen=True)
class Fitted:
    """A method's threshold in one mode.

    Attributes:
        score: what scores features.
        least: the threshold.
        false_alarms: the share of photographs below a threshold that they did not fit.
        caught: bool of shape (pictures,), the unfamiliar ones that are below it.
    """

    score: Score
    least: float
    false_alarms: Interval
    caught: NDArray[np.bool_]

    def threshold(self) -> Threshold:
        """Return what an archive keeps of it."""
        return Threshold(
            score=self.least,
            clip=self.score.clip if isinstance(self.score, Energy) else None,
            false_alarms=self.false_alarms.recorded(),
            caught=proportion(self.caught).recorded(),
        )


@dataclass(frozen=True)
class Told:
    """The better method's thresholds.

    Attributes:
        method: its name.
        fitted: for each mode.
        pictures: the unfamiliar ones that it was chosen by.
        bank: float of shape (photographs, channels), what the method of neighbours needs.
    """

    method: Method
    fitted: Mapping[TTA, Fitted]
    pictures: Pictures
    bank: NDArray[np.floating[Any]]

    def __str__(self) -> str:
        """Return a table of the false alarms, and of the share that is caught, by kind."""
        of_kind = np.array(self.pictures.kinds)
        kinds = list(dict.fromkeys(self.pictures.kinds))
        rows = []
        for mode, found in self.fitted.items():
            figures = (found.false_alarms, proportion(found.caught))
            cells = [one.percent for one in figures]
            shares = [f"{found.caught[of_kind == kind].mean():.0%}" for kind in kinds]
            rows.append([mode, *cells, *shares])
        heading = (
            f"Called unfamiliar, by {self.method}: of photographs that did not fit the threshold "
            f"(false alarms), and of {len(of_kind)} unfamiliar pictures ({self.pictures.source})"
        )
        return f"{heading}\n\n{table(['TTA', 'false alarms', 'caught', *kinds], rows)}"

    def familiarity(self, numbers: Numbers, about: str) -> Familiarity:
        """Return what an archive keeps of it, beside `known`."""
        return Familiarity(
            method=self.method,
            kept=KEPT if self.method == "react+ash" else 1,
            numbers=numbers,
            thresholds={mode: one.threshold() for mode, one in self.fitted.items()},
            about=about,
        )

    def known(self) -> str | None:
        """Return the file of features that the method needs, in base64, if it needs one."""
        if self.method != "neighbours":
            return None
        file = io.BytesIO()
        np.save(file, self.bank.astype(np.float16))
        return base64.b64encode(file.getvalue()).decode()


def fit(
    known: Mapping[TTA, Features],
    unfamiliar: Mapping[TTA, Features],
    last: Linear,
    rate: float,
    pictures: Pictures,
) -> Told:
    """Fit each method, and return the one that catches more.

    Args:
        known: float of shape (photographs, channels) for each mode.
        unfamiliar: float of shape (pictures, channels) for each mode.
        last: the network's last layer.
        rate: the wanted share of false alarms, 0 to 1.
        pictures: the unfamiliar ones.
    """
    first = next(iter(known.values())).astype(np.float16).astype(np.float32)
    everyone = np.arange(len(first))
    some = np.random.default_rng(0).permutation(everyone)[:MOST_KNOWN]
    ways: dict[Method, tuple[Fit, NDArray[np.int64]]] = {
        "react+ash": (_energy(last), everyone),
        "neighbours": (_neighbours, some),
    }
    found = {
        method: {
            mode: _fitted(fit, first[used], own[used], unfamiliar[mode], rate)
            for mode, own in known.items()
        }
        for method, (fit, used) in ways.items()
    }

    def caught(method: Method) -> float:
        return sum(float(one.caught.mean()) for one in found[method].values())

    best = max(found, key=caught)
    return Told(best, found[best], pictures, first[some])


def _energy(last: Linear) -> Fit:
    def fit(bank: Features, own: Features) -> tuple[Score, NDArray[np.float32]]:
        score = Energy(last, float(np.percentile(own, CLIP)), KEPT)
        return score, _scores(score, own)

    return fit


def _neighbours(bank: Features, own: Features) -> tuple[Score, NDArray[np.float32]]:
    score = Neighbours(bank)
    return score, score.among(own)


def _fitted(fit: Fit, bank: Features, own: Features, unfamiliar: Features, rate: float) -> Fitted:
    score, scores = fit(bank, own)
    least = float(np.quantile(scores, rate))
    folds = np.random.default_rng(0).permutation(len(own)) % FOLDS
    alarms = np.zeros(len(own), bool)
    for fold in range(FOLDS):
        rest = folds != fold
        others, of_rest = fit(bank[rest], own[rest])
        alarms[~rest] = _scores(others, own[~rest]) < np.quantile(of_rest, rate)
    return Fitted(score, least, proportion(alarms), _scores(score, unfamiliar) < least)


def _scores(score: Score, features: Features) -> NDArray[np.float32]:
    return np.array([score(row) for row in features], np.float32)
