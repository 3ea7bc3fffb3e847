"""Statistics of a classifier's answers: accuracy, calibration and confidence intervals."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from visionserve.metadata import Proportion
from visionserve_tools.report.tables import percent

BINS = 15
EPSILON = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def recorded(self) -> Proportion:
        """Return it as an archive's metadata holds it."""
        return Proportion(value=self.value, low=self.low, high=self.high)

    @property
    def percent(self) -> str:
        """A share as tables show it."""
        return percent(self.value, self.low, self.high)


@dataclass(frozen=True)
class Reliability:
    """Answers in bins of equal width over their confidence, (0, 1/15] to (14/15, 1].

    Attributes:
        counts: int of shape (bins,).
        confidence: float of shape (bins,), the mean of each bin; NaN where it is empty.
        accuracy: the same, the share that was right.
    """

    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def ece(self) -> float:
        """The expected calibration error (Naeini et al., 2015; Guo et al., 2017)."""
        gaps = np.nan_to_num(np.abs(self.accuracy - self.confidence))
        return float((gaps * self.counts).sum() / self.counts.sum())


def reliability(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> Reliability:
    """Sort answers into bins.

    Args:
        confidence: float of shape (answers,), the probability of the answer.
        right: bool of shape (answers,), whether it is the label.
    """
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):
        return Reliability(
            counts,
            np.bincount(bins, confidence, BINS) / counts,
            np.bincount(bins, right, BINS) / counts,
        )


def log_loss(label_probability: NDArray[np.float64]) -> float:
    """Return the mean negative log-likelihood of the labels, in nats.

    Args:
        label_probability: float of shape (answers,); values below FP32's epsilon count as epsilon,
            as in scikit-learn's `log_loss`.
    """
    return float(-np.log(np.maximum(label_probability, EPSILON)).mean())


def proportion(right: NDArray[np.bool_]) -> Interval:
    """Return a share with Wilson's interval (E. B. Wilson, 1927); NaN without answers."""
    if not len(right):
        return Interval(math.nan, math.nan, math.nan)
    found = stats.binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
    return Interval(float(right.mean()), float(found.low), float(found.high))


def clustered(values: NDArray[np.float64]) -> Interval:
    """Return the mean of answers that are correlated within each photograph.

    The interval is a bootstrap over whole photographs, because only these are independent
    (percentiles of 9,999 resamples, the same ones each time).

    Args:
        values: float of shape (photographs, answers to each), two photographs at least; NaN for
            an answer that there is not.
    """
    sums, counts = np.nansum(values, axis=1), np.count_nonzero(~np.isnan(values), axis=1)

    def mean(sums: NDArray[np.float64], counts: NDArray[np.int64], axis: int) -> Any:
        return sums.sum(axis=axis) / counts.sum(axis=axis)

    resampled = stats.bootstrap((sums, counts), mean, paired=True, method="percentile", rng=0)
    low, high = resampled.confidence_interval
    return Interval(float(sums.sum() / counts.sum()), float(low), float(high))


def ratio_of_means(over: NDArray[np.float64], under: NDArray[np.float64]) -> Interval:
    """Compare two measurements of the same photographs: the ratio of their means.

    The interval is a bootstrap over photographs, as in `clustered`.

    Args:
        over, under: float of shape (photographs,), two photographs at least.
    """

    def ratio(over: NDArray[np.float64], under: NDArray[np.float64], axis: int) -> Any:
        return over.mean(axis=axis) / under.mean(axis=axis)

    resampled = stats.bootstrap((over, under), ratio, paired=True, method="percentile", rng=0)
    low, high = resampled.confidence_interval
    return Interval(float(over.mean() / under.mean()), float(low), float(high))


def paired_difference(
    ours: NDArray[np.bool_], reference: NDArray[np.bool_]
) -> tuple[float, float, float]:
    """Compare two ways on the same images.

    Returns:
        The difference of the proportions, the half-width of its 95 % confidence interval
        (normal approximation for paired proportions), and McNemar's exact p-value.
    """
    gained, lost = int((ours & ~reference).sum()), int((~ours & reference).sum())
    count = len(ours)
    spread = math.sqrt(gained + lost - (gained - lost) ** 2 / count) / count
    p = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    return (gained - lost) / count, 1.96 * spread, float(p)


def paired_interval(ours: NDArray[np.bool_], reference: NDArray[np.bool_]) -> Interval:
    """Return the difference of two ways on the same images, with the interval of `bonett_price`.

    Args:
        ours: bool of shape (images,).
        reference: the same.
    """
    gained, lost = int((ours & ~reference).sum()), int((~ours & reference).sum())
    low, high = bonett_price(gained, lost, len(ours))
    return Interval((gained - lost) / len(ours), low, high)


def bonett_price(gained: float, lost: float, count: float) -> tuple[float, float]:
    """Return the interval of a difference of paired proportions.

    It is Wald's with Laplace's adjustment (D. G. Bonett and R. M. Price, 2012): it counts an image
    more that each way alone has right, so that few images without a difference do not show that
    there is none.

    Args:
        gained: how many images the first way alone has right.
        lost: how many the second alone has right.
        count: how many images there are.
    """
    centre, apart = (gained - lost) / (count + 2), (gained + lost + 2) / (count + 2)
    half = 1.96 * math.sqrt((apart - centre**2) / (count + 2))
    return max(centre - half, -1.0), min(centre + half, 1.0)
