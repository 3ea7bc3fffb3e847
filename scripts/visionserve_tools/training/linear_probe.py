"""Fit a network's last layer on frozen features: a linear probe."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

# The inverse strengths of the L2 penalty that are tried.
STRENGTHS = tuple(10.0**exponent for exponent in (-3, -2, -1, 0, 1))
STEPS = 2000


@dataclass(frozen=True)
class Probe:
    """A linear layer from features to logits.

    Attributes:
        weight: float32 of shape (classes, features).
        bias: float32 of shape (classes,).
        strength: the C of scikit-learn's `LogisticRegression` that was chosen.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    strength: float


def fit(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    folds: NDArray[np.int64],
    bias: bool = True,
) -> Probe:
    """Fit a multinomial logistic regression on standardized features.

    The C whose likelihood is largest in cross-validation is chosen. Standardization is a part of
    the layer that is returned.

    Args:
        features: float32 of shape (photographs, features).
        labels: int of shape (photographs,), each class in every fold.
        folds: int of shape (photographs,), the fold of the cross-validation.
        bias: whether the layer has one; without it, features are scaled but not centred.
    """
    steps = (StandardScaler(with_mean=bias), LogisticRegression(max_iter=STEPS, fit_intercept=bias))
    search = GridSearchCV(
        make_pipeline(*steps),
        {"logisticregression__C": STRENGTHS},
        cv=PredefinedSplit(folds),
        scoring="neg_log_loss",
    )
    # The matrices are so small that BLAS's threads would wait for each other most of the time.
    with threadpool_limits(1):
        search.fit(features.astype(np.float64), labels)
    scaler, regression = (step for _, step in search.best_estimator_.steps)
    weight, intercept = regression.coef_, regression.intercept_
    if len(weight) == 1:
        # Of two classes it fits the difference of the logits.
        weight, intercept = (np.concatenate([-half, half]) for half in (weight / 2, intercept / 2))
    weight = weight / scaler.scale_
    offset = weight @ scaler.mean_ if bias else 0.0
    return Probe(
        weight.astype(np.float32),
        (intercept - offset).astype(np.float32),
        float(search.best_params_["logisticregression__C"]),
    )
