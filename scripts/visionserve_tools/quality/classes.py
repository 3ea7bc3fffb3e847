"""Which classes are found, which are mistaken for which, and the worst photographs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from visionserve_tools.batch.formats import record
from visionserve_tools.quality import contact_sheet

FILES = ("classes.csv", "confusion.csv", "worst.html", "confusion.png")
FIGURES = ("precision", "recall", "f1")
NAMED = 60


@dataclass(frozen=True)
class Answers:
    """What a model says of labelled photographs.

    Attributes:
        paths: of the photographs.
        labels: int of shape (photographs,), the true classes.
        probabilities: float of shape (photographs, classes).
        categories: the labels, in class-index order.
    """

    paths: Sequence[Path]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.floating[Any]]
    categories: Sequence[str]

    @property
    def best(self) -> NDArray[np.int64]:
        """The most probable classes: int of shape (photographs,)."""
        found: NDArray[np.int64] = self.probabilities.argmax(axis=1)
        return found

    def by_class(self) -> list[dict[str, Any]]:
        """Return each class's precision, recall and F1, between 0 and 1, ready for JSON.

        `support` is the number of its photographs, and `answers` how often it was the answer. A
        figure that has no photograph or no answer to be a share of is None.
        """
        classes = range(len(self.categories))
        figures = precision_recall_fscore_support(
            self.labels, self.best, labels=classes, zero_division=np.nan
        )
        answers = np.bincount(self.best, minlength=len(self.categories))
        return [
            {
                "label": category,
                "support": int(support),
                "answers": int(answered),
                **{
                    figure: None if np.isnan(value) else float(value)
                    for figure, value in zip(FIGURES, values, strict=True)
                },
            }
            for category, *values, support, answered in zip(
                self.categories, *figures, answers, strict=True
            )
        ]

    def confusion(self) -> NDArray[np.int64]:
        """Return how often each class, by row, got each answer, by column."""
        classes = range(len(self.categories))
        found: NDArray[np.int64] = confusion_matrix(self.labels, self.best, labels=classes)
        return found

    def worst(self) -> list[int]:
        """Return the wrong answers by index, the most confident first, as many as a sheet has."""
        confidence = self.probabilities.max(axis=1)
        wrong = np.flatnonzero(self.best != self.labels)
        order = wrong[np.argsort(-confidence[wrong], kind="stable")]
        return [int(index) for index in order[: contact_sheet.MOST]]


def write(answers: Answers, folder: Path, source: Path, about: str) -> list[Path]:
    """Write `FILES`.

    Args:
        answers: what the model says.
        folder: where to write.
        source: the photographs' folder, or a file in it, which names in `worst.html` leave out.
        about: what was measured.

    Returns:
        The files' paths.
    """
    rows = answers.by_class()
    confusion = answers.confusion()
    texts = {
        "classes.csv": "".join(map(record, [rows[0], *(row.values() for row in rows)])),
        "confusion.csv": "".join(
            [
                record(["label", *answers.categories]),
                *(
                    record([category, *map(int, counts)])
                    for category, counts in zip(answers.categories, confusion, strict=True)
                ),
            ]
        ),
        "worst.html": worst(answers, source, about),
    }
    for file, text in texts.items():
        (folder / file).write_text(text, encoding="utf-8", newline="")
    draw(confusion, answers.categories, folder / "confusion.png")
    return [folder / file for file in FILES]


def draw(confusion: NDArray[np.int64], categories: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix, each row's shares as colours and counts as numbers, as a PNG file.

    Above `NAMED` classes, numbers and labels would cover each other, and are left to the CSV.
    """
    import warnings

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    few = len(categories) <= NAMED
    totals = confusion.sum(axis=1, keepdims=True)
    shares = np.divide(confusion, totals, out=np.zeros(confusion.shape), where=totals > 0)
    side = 2 + 0.4 * len(categories) if few else 10
    figure, axes = pyplot.subplots(figsize=(side, side), layout="constrained")
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="answer", ylabel="label")
    if few:
        places = range(len(categories))
        axes.set_xticks(places, categories, rotation=90, parse_math=False)
        axes.set_yticks(places, categories, parse_math=False)
        for row, column in zip(*np.nonzero(confusion), strict=True):
            colour = "white" if shares[row, column] > 0.5 else "black"
            count = str(confusion[row, column])
            axes.text(column, row, count, ha="center", va="center", color=colour, fontsize="small")
    with warnings.catch_warnings():
        # Labels in a script that the font lacks become boxes; the CSV has them.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(path, dpi=100)
    pyplot.close(figure)


def worst(answers: Answers, source: Path, about: str) -> str:
    """Return a page of the worst photographs."""
    wrong = int((answers.best != answers.labels).sum())
    return contact_sheet.page(
        "The worst answers",
        f"{wrong} of {len(answers.paths)} answers are wrong; the most confident first",
        about,
        (_figure(answers, index, source) for index in answers.worst()),
    )


def _figure(answers: Answers, index: int, source: Path) -> str:
    probabilities = answers.probabilities[index]
    label, best = int(answers.labels[index]), int(answers.best[index])
    text = (
        f"is {answers.categories[label]} ({probabilities[label]:.1%}), "
        f"was called {answers.categories[best]} ({probabilities[best]:.1%})"
    )
    return contact_sheet.figure(answers.paths[index], source, text)
