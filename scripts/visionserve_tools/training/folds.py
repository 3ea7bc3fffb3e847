"""Divide photographs into five folds, the near-duplicates together."""

import numpy as np
from numpy.typing import NDArray

FOLDS = 5
# The folds before have a photograph more where a class's number is no multiple of five.
HELD_OUT = FOLDS - 1


def divide(labels: NDArray[np.int64], groups: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Divide the photographs of each class into folds of about the same size.

    A class of at least `FOLDS` groups has a photograph in every fold, which scikit-learn's
    `StratifiedGroupKFold` does not promise.

    Args:
        labels: int of shape (photographs,).
        groups: int of shape (photographs,); each group is of one class and stays in one fold.
        seed: the same one gives the same folds.

    Returns:
        int of shape (photographs,), each photograph's fold.
    """
    generator = np.random.default_rng(seed)
    folds = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        numbers, counts = np.unique(groups[labels == label], return_counts=True)
        shuffled = generator.permutation(len(numbers))
        filled = np.zeros(FOLDS, dtype=np.int64)
        for group in shuffled[np.argsort(-counts[shuffled], kind="stable")]:
            fold = int(filled.argmin())
            filled[fold] += counts[group]
            folds[groups == numbers[group]] = fold
    return folds
