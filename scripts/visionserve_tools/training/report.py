"""Write what a training was, and what came of it."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from visionserve.metadata import Training, Transforms
from visionserve_tools.archive.hashes import sha256_of
from visionserve_tools.archive.trained import FILE
from visionserve_tools.report import circumstances
from visionserve_tools.report.tables import table
from visionserve_tools.training.data import Data
from visionserve_tools.training.folds import HELD_OUT
from visionserve_tools.training.measurement import Measured

WEIGHTS, LABELS = "weights.pt", "labels.txt"
ANSWERS, CONFUSION, SUMMARY = "held-out.csv", "confusion.csv", "report.md"
FILES = (WEIGHTS, LABELS, ANSWERS, CONFUSION, SUMMARY)


@dataclass(frozen=True)
class Report:
    """All that is told of a training.

    Attributes:
        architecture: a key of `visionserve.models.MODELS`.
        transforms: the preprocessing.
        training: what the archive will tell of it.
        measured: the answers for the photographs held out.
        data: all photographs.
        details: options, and what was chosen.
    """

    architecture: str
    transforms: Transforms
    training: Training
    measured: Measured
    data: Data
    details: Mapping[str, Any]

    def write(self, output: Path) -> bytes:
        """Write all files beside the weights but the report itself.

        Returns:
            The content of the report, `archive.trained.FILE`, which tells that all is done.
        """
        answers = self.measured.probabilities.argmax(axis=1)
        held_out = [path for path, _ in self.data.where(self.data.folds == HELD_OUT)]
        rows = [
            [
                path.absolute(),
                self.data.classes[label],
                self.data.classes[answer],
                f"{probabilities[answer]:.6f}",
            ]
            for path, label, answer, probabilities in zip(
                *(held_out, self.measured.labels, answers, self.measured.probabilities),
                strict=True,
            )
        ]
        _write_csv(output / ANSWERS, [["path", "label", "answer", "probability"], *rows])
        confusion = self.measured.confusion.tolist()
        named = [[name, *row] for name, row in zip(self.data.classes, confusion, strict=True)]
        _write_csv(output / CONFUSION, [["label \\ answer", *self.data.classes], *named])
        (output / SUMMARY).write_text(f"{self}\n", encoding="utf-8")
        record = {
            "weights_sha256": sha256_of(output / WEIGHTS),
            "training": self.training.model_dump(),
            "architecture": self.architecture,
            "transforms": self.transforms.model_dump(),
            "confusion": confusion,
            "left_out": {str(path): why for path, why in self.data.left_out.items()},
            "near_duplicates": [
                [str(path) for path in group] for group in self.data.near_duplicates
            ],
            "in_two_classes": [[str(path) for path in pair] for pair in self.data.in_two_classes],
            "details": self.details,
            "measured": str(circumstances.here()),
        }
        return f"{json.dumps(record, indent=1, ensure_ascii=False)}\n".encode()

    def __str__(self) -> str:
        """Return Markdown."""
        training = self.training
        counts, held = sum(training.photographs.values()), sum(training.held_out.values())
        damaged = int((~np.isnan(self.measured.damaged)).sum())
        parts = [
            f"{self.architecture}, {training.method} on {counts} photographs of "
            f"{len(self.data.classes)} classes, measured on {held} others in FP32",
            table(
                ["photographs", "number:", "Top-1 (95 %)"],
                [
                    ["held out", held, self.measured.top1.percent],
                    ["of them, severely damaged", damaged, self.measured.top1_damaged.percent],
                ],
            ),
            table(
                [
                    "class",
                    "trained on:",
                    "held out:",
                    "recall:",
                    "precision:",
                    "most often taken for",
                ],
                map(self._row, range(len(self.data.classes))),
            ),
        ]
        if training.augmented and training.method == "linear probe":
            parts.append("It was trained on photographs with the same kinds of damage.")
        if self.data.near_duplicates:
            groups = self.data.near_duplicates
            size = sum(map(len, groups))
            parts.append(
                f"{size} photographs are near-duplicates, in {len(groups)} groups. "
                f"Each group is either trained on or held out; {FILE} lists them."
            )
        if self.data.in_two_classes:
            pairs = "\n".join(f"- {one}\n  {other}" for one, other in self.data.in_two_classes)
            parts.append(f"Nearly the same photograph is in two classes:\n\n{pairs}")
        if self.data.left_out:
            files = "\n".join(f"- {path}: {why}" for path, why in self.data.left_out.items())
            parts.append(f"Left out:\n\n{files}")
        return "\n\n".join(parts)

    def _row(self, index: int) -> list[object]:
        name, confusion = self.data.classes[index], self.measured.confusion
        right, labelled = confusion[index, index], confusion[index].sum()
        answered = confusion[:, index].sum()
        wrong = confusion[index] * (np.arange(len(self.data.classes)) != index)
        often = self.data.classes[wrong.argmax()] if wrong.any() else ""
        shares = [f"{right / count:.0%}" if count else "" for count in (labelled, answered)]
        numbers = [self.training.photographs[name], self.training.held_out[name]]
        return [name, *numbers, *shares, often]


def _write_csv(path: Path, rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
