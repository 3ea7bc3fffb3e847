"""The work of `visionserve compare`."""

import argparse
import math
import sys
import time
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from visionserve.config import Options
from visionserve.errors import RequestError
from visionserve_tools import paths
from visionserve_tools.archive.store import named
from visionserve_tools.batch.formats import record
from visionserve_tools.batch.rows import Value, name, unreadable
from visionserve_tools.quality import contact_sheet, labelled, output
from visionserve_tools.quality.models import CANNOT, Archived, LeftOut, opened, tell_left_out
from visionserve_tools.quality.statistics import (
    Interval,
    bonett_price,
    log_loss,
    paired_difference,
    paired_interval,
    proportion,
    ratio_of_means,
    reliability,
)
from visionserve_tools.report import circumstances
from visionserve_tools.report.tables import percent, table

TABLE, SHEET = "answers.csv", "changed.html"
SHOWN = 20
NAMES = ("A", "B")
Probabilities = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Answers:
    """What two archives say of the same photographs.

    Attributes:
        paths: of the photographs.
        labels: of the columns; an archive that lacks one gives it a probability of 0.
        truth: int of shape (photographs,), the true columns; None where nobody knows them.
        probabilities: of each archive, float of shape (photographs, labels).
        thresholds: of each archive, from which a probability on an answer is confident.
        seconds: float of shape (photographs, 2), of each archive.
    """

    paths: Sequence[Path]
    labels: Sequence[str]
    truth: NDArray[np.int64] | None
    probabilities: tuple[Probabilities, Probabilities]
    thresholds: tuple[float, float]
    seconds: NDArray[np.float64]

    @cached_property
    def best(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Each archive's answers: int of shape (photographs,)."""
        first, second = self.probabilities
        return first.argmax(axis=1), second.argmax(axis=1)

    @cached_property
    def same(self) -> NDArray[np.bool_]:
        """Whether both archives give the same answer: bool of shape (photographs,)."""
        found: NDArray[np.bool_] = self.best[0] == self.best[1]
        return found

    @cached_property
    def moved(self) -> NDArray[np.float64]:
        """Half of the sum of |Δp|, 0 to 1 (total variation): float of shape (photographs,)."""
        first, second = self.probabilities
        found: NDArray[np.float64] = np.abs(second - first).sum(axis=1, dtype=np.float64) / 2
        return found

    @cached_property
    def order(self) -> list[int]:
        """All photographs by index: those whose answer changed first, the most moved first."""
        return [int(index) for index in np.lexsort((-self.moved, self.same))]

    @cached_property
    def right(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Whether each archive's answers are the labels, which have to be known."""
        assert self.truth is not None
        return self.best[0] == self.truth, self.best[1] == self.truth

    def of(self, which: int) -> dict[str, Any]:
        """Return the figures of one archive, ready for JSON, shares between 0 and 1."""
        probabilities = self.probabilities[which]
        confidence = probabilities.max(axis=1).astype(float)
        figures: dict[str, Any] = {
            "milliseconds": 1000 * float(self.seconds[:, which].mean()),
            "confident": float((confidence >= self.thresholds[which]).mean()),
        }
        if self.truth is None:
            return figures
        known = probabilities[np.arange(len(self.paths)), self.truth].astype(float)
        return figures | {
            "top1": asdict(proportion(self.right[which])),
            "nll": log_loss(known),
            "ece": reliability(confidence, self.right[which]).ece,
        }

    def between(self) -> dict[str, Any]:
        """Return the figures of the second archive beside the first, ready for JSON."""
        first, second = self.probabilities
        rows = np.arange(len(self.paths))
        at_best = np.abs(second[rows, self.best[0]] - first[rows, self.best[0]])
        figures: dict[str, Any] = {
            "changed": int((~self.same).sum()),
            "agreement": asdict(proportion(self.same)),
            "mean difference": float(np.abs(second - first).mean(dtype=np.float64)),
            "mean difference of the first's answer": float(at_best.mean(dtype=np.float64)),
            "largest difference of the first's answer": float(at_best.max()),
            "time": asdict(self.time()),
        }
        if self.truth is not None:
            ours, reference = self.right[1], self.right[0]
            figures["top1"] = asdict(paired_interval(ours, reference))
            figures["gained"] = int((ours & ~reference).sum())
            figures["lost"] = int((~ours & reference).sum())
            figures["mcnemar p"] = paired_difference(ours, reference)[2]
        return figures

    def time(self) -> Interval:
        """Return the second archive's time as a multiple of the first's."""
        if len(self.paths) < 2:
            return Interval(float(self.seconds[0, 1] / self.seconds[0, 0]), math.nan, math.nan)
        return ratio_of_means(self.seconds[:, 1], self.seconds[:, 0])

    def said(self, index: int, which: int) -> tuple[str, float]:
        """Return an archive's answer to a photograph: the label and its probability."""
        best = self.best[which][index]
        return self.labels[best], float(self.probabilities[which][index, best])

    def true_label(self, index: int) -> str | None:
        """Return the label of a photograph, if it is known."""
        return None if self.truth is None else self.labels[self.truth[index]]


def run(args: argparse.Namespace) -> int:
    """Do what `visionserve compare` was asked, and return its exit code."""
    reached = True

    def measured() -> tuple[dict[str, Any], list[Path]]:
        nonlocal reached
        found, written, reached = compared(args, archives, folder)
        return found, written

    try:
        archives = [
            named(given, paths.MODEL_STORE / args.profile) for given in (args.first, args.second)
        ]
    except CANNOT as error:
        print(error, file=sys.stderr)
        return 1
    stems = "-".join(archive.stem for archive in archives)
    folder: Path = args.output or paths.MODEL_STORE / f"{stems}-comparison"
    code = output.write(
        folder / "comparison.json", measured, [folder / file for file in (TABLE, SHEET)]
    )
    return code or int(not reached)


def compared(
    args: argparse.Namespace, archives: Sequence[Path], folder: Path
) -> tuple[dict[str, Any], list[Path], bool]:
    """Classify the photographs by both archives, and tell what differs.

    Returns:
        All figures, for JSON; what is written beside them; and whether the bar is reached.

    Raises:
        ArchiveError, HashError, RequestError, ValueError, OSError: an archive or the photographs
            cannot be used.
    """
    with opened(archives[0]) as first, opened(archives[1]) as second:
        both = first, second
        for archive, one in zip(archives, both, strict=True):
            if one.metadata.multi_label:
                raise ValueError(
                    f"{archive}: gives several labels; visionserve evaluate --archive measures it."
                )
        labels = _labels(args, both)
        photographs, truth, notes = _photographs(args, labels)
        notes += _lacking(truth or [], labels, both)
        answers, left = measure(both, photographs, truth, labels)
        names = [f"{letter}: {one}" for letter, one in zip(NAMES, both, strict=True)]
        modes = [_suited(one).tta for one in both]
    for note in notes:
        print(note, file=sys.stderr)
    tell_left_out(left, len(answers.paths))
    asked = f"{len(answers.paths)} photographs of {name(args.folder)} ({circumstances.here()})"
    about = [f"{which}, {mode}" for which, mode in zip(names, modes, strict=True)]
    print("\n".join([*about, f"{asked}; 95 % confidence intervals"]), end="\n\n")
    print(f"{figures(answers)}\n\n{changed(answers, args.folder)}\n")
    bar = {}
    if args.at_least is not None:
        bar = judge(args.at_least / 100, answers)
        print(f"{bar['told']}\n")
    found = {
        "about": [*about, asked],
        "notes": notes,
        "left out": [
            {"path": name(out.path), "error": f"{out.code}: {out.message}"} for out in left
        ],
        "archives": [
            {"name": one.name, "version": one.version, "tta": mode} | answers.of(which)
            for which, (one, mode) in enumerate(zip(both, modes, strict=True))
        ],
        "second to first": answers.between(),
        "bar": bar,
    }
    (folder / TABLE).write_text(_table(answers), encoding="utf-8", newline="")
    (folder / SHEET).write_text(_sheet(answers, args.folder, " · ".join([*about, asked])), "utf-8")
    return found, [folder / TABLE, folder / SHEET], bar.get("reached", True)


def _suited(one: Archived) -> Options:
    return one.metadata.suited(one.config.defaults)


def _labels(args: argparse.Namespace, both: tuple[Archived, Archived]) -> tuple[str, ...]:
    """Return the labels that both archives are compared by: the first's, then the second's own.

    Raises:
        ValueError: they have none in common, or other indices where indices are given.
    """
    first, second = (_categories(one) for one in both)
    if first == second:
        return first
    if not {*first} & {*second}:
        told = f"{first[0]!r} is one of {both[0].name}'s, {second[0]!r} of {both[1].name}'s"
        raise ValueError(f"The archives have no label in common: {told}.")
    if args.index_in_name:
        raise ValueError("--index-in-name: the archives have other labels, so other indices.")
    return tuple(dict.fromkeys([*first, *second]))


def _categories(one: Archived) -> tuple[str, ...]:
    return tuple(unicodedata.normalize("NFC", label) for label in one.metadata.categories)


def _photographs(
    args: argparse.Namespace, labels: Sequence[str]
) -> tuple[list[Path], list[int] | None, list[str]]:
    """Return the photographs, their labels where they are known, and what a person has to know.

    Raises:
        ValueError, OSError: as `labelled.read`; or labels are needed and not known.
    """
    plain = not args.index_in_name and labelled.is_plain(args.folder, labels)
    if args.unlabelled or plain:
        if args.at_least is not None:
            raise ValueError(f"--at-least takes labels. {labelled.FORMS}")
        found, notes = labelled.unlabelled(args.folder)
        return found, None, notes
    given = labelled.read(args.folder, labels, args.index_in_name)
    indices = [label for _, label in given.photographs]
    return [path for path, _ in given.photographs], indices, given.notes


def _lacking(
    truth: Sequence[int], labels: Sequence[str], both: tuple[Archived, Archived]
) -> list[str]:
    """Tell how many photographs are of labels that an archive lacks, which it cannot get right."""
    notes = []
    for letter, one in zip(NAMES, both, strict=True):
        known = {*_categories(one)}
        if count := sum(labels[label] not in known for label in truth):
            notes.append(f"{count} photographs are of labels that {letter} does not have.")
    return notes


def measure(
    both: tuple[Archived, Archived],
    photographs: Sequence[Path],
    truth: Sequence[int] | None,
    labels: Sequence[str],
) -> tuple[Answers, list[LeftOut]]:
    """Classify photographs by both archives, which take turns and take turns in being the first.

    Returns:
        The answers, and the photographs that one of them refuses, as a worker does.

    Raises:
        RequestError: a model fails.
        ValueError: no photograph is left.
    """
    kept: list[int] = []
    left: list[LeftOut] = []
    said: tuple[list[Any], list[Any]] = [], []
    seconds: list[list[float]] = []
    for index, path in enumerate(tqdm(photographs, desc="photographs, each by both", smoothing=0)):
        found: list[Probabilities] = [np.empty(0)] * 2
        spent = [0.0, 0.0]
        try:
            turns = (0, 1) if index % 2 == 0 else (1, 0)
            # The first photograph would also pay for what each model makes at its first pass.
            for which in turns if kept else 2 * turns:
                mode = _suited(both[which]).tta
                began = time.perf_counter()
                found[which] = both[which].classify(path, [mode])[mode]
                spent[which] = time.perf_counter() - began
        except RequestError as error:
            if error.status >= 500:
                raise
            left.append(LeftOut(path, error.code, error.message))
            continue
        except (OSError, ValueError) as error:
            left.append(LeftOut(path, **unreadable(error)["error"]))
            continue
        kept.append(index)
        seconds.append(spent)
        for rows, row in zip(said, found, strict=True):
            rows.append(row)
    if not kept:
        tell_left_out(left, 0)
    first, second = (
        _by_label(np.stack(rows), _categories(one), labels)
        for rows, one in zip(said, both, strict=True)
    )
    answers = Answers(
        paths=[photographs[index] for index in kept],
        labels=labels,
        truth=None if truth is None else np.array([truth[index] for index in kept]),
        probabilities=(first, second),
        thresholds=(_suited(both[0]).threshold or 0.0, _suited(both[1]).threshold or 0.0),
        seconds=np.array(seconds),
    )
    return answers, left


def _by_label(
    probabilities: Probabilities, categories: Sequence[str], labels: Sequence[str]
) -> Probabilities:
    """Put probabilities of shape (photographs, classes) into the columns of labels.

    Classes of one label are added up.
    """
    if tuple(categories) == tuple(labels):
        return probabilities
    columns = {label: index for index, label in enumerate(labels)}
    found = np.zeros((len(labels), len(probabilities)), probabilities.dtype)
    np.add.at(found, [columns[category] for category in categories], probabilities.T)
    return found.T


def judge(bar: float, answers: Answers) -> dict[str, Any]:
    """Compare the difference of Top-1 with the least that is asked for, as a share.

    The interval's lower end has to reach it (non-inferiority): by the estimate, half of the
    versions that are as much worse as the bar says would pass by chance.
    """
    found = paired_interval(answers.right[1], answers.right[0])
    low, high, estimate = (100 * one for one in (found.low, found.high, found.value))
    shown = f"{estimate:+.1f} points ({low:+.1f} to {high:+.1f})"
    least = f"at least {100 * bar:+g} asked for"
    if found.low >= bar:
        told = f"The bar is reached: {shown}, {least}."
    elif found.high < bar:
        told = f"The bar is missed: {shown}, {least}."
    elif found.value > bar:
        told = (
            f"The bar is not shown to be reached: {shown}, {least}. About "
            f"{_enough(bar, answers):,} photographs like these would show it."
        )
    else:
        told = f"The bar is probably missed: {shown}, {least}."
    return {"at least": bar, "reached": found.low >= bar, "told": told}


def _enough(bar: float, answers: Answers) -> int:
    """Return how many photographs show a difference above the bar, by two digits.

    They differ as often as these do.
    """
    ours, reference = answers.right[1], answers.right[0]
    gained, lost = float((ours & ~reference).mean()), float((~ours & reference).mean())
    count = float(len(ours))
    while bonett_price(gained * count, lost * count, count)[0] < bar:
        count *= 1.02
    unit: int = 10 ** max(0, int(math.log10(count)) - 1)
    return math.ceil(count / unit) * unit


def figures(answers: Answers) -> str:
    """Return a table of each archive's figures, and of the second beside the first."""
    first, second, between = answers.of(0), answers.of(1), answers.between()
    rows: list[list[object]] = []
    if answers.truth is not None:
        difference = between["top1"]
        low, high = (100 * difference[end] for end in ("low", "high"))
        rows += [
            [
                "Top-1",
                percent(**first["top1"]),
                percent(**second["top1"]),
                f"{100 * difference['value']:+.1f} points ({low:+.1f} to {high:+.1f})",
            ],
            [
                "right by one alone",
                between["lost"],
                between["gained"],
                f"McNemar's exact p = {between['mcnemar p']:.2g}",
            ],
            ["NLL", f"{first['nll']:.3f}", f"{second['nll']:.3f}", ""],
            ["ECE", f"{first['ece']:.3f}", f"{second['ece']:.3f}", ""],
        ]
    ratio = between["time"]
    at_best = between["mean difference of the first's answer"]
    rows += [
        ["confident", f"{first['confident']:.1%}", f"{second['confident']:.1%}", ""],
        [
            "milliseconds",
            f"{first['milliseconds']:.1f}",
            f"{second['milliseconds']:.1f}",
            f"{ratio['value']:.2f} times ({ratio['low']:.2f} to {ratio['high']:.2f})",
        ],
        ["same answer", "", "", percent(**between["agreement"])],
        [
            "mean Δp",
            "",
            "",
            f"{between['mean difference']:.2g} over {len(answers.labels)} labels, "
            f"{at_best:.3f} of A's answer",
        ],
    ]
    return table(["", *(f"{letter}:" for letter in NAMES), "B to A"], rows)


def changed(answers: Answers, source: Path) -> str:
    """Return a table of the answers that changed, the most moved first."""
    folder = source if source.is_dir() else source.parent
    count = int((~answers.same).sum())
    rows = []
    for index in answers.order[: min(count, SHOWN)]:
        path = answers.paths[index]
        shown = path.relative_to(folder) if path.is_relative_to(folder) else path
        both = (f"{label} ({p:.1%})" for label, p in (answers.said(index, n) for n in (0, 1)))
        rows.append([name(shown), answers.true_label(index) or "", *both])
    told = f"{count} of {len(answers.paths)} answers changed"
    if not count:
        return f"{told}."
    more = f"\n\n{count - SHOWN} more in {TABLE}" if count > SHOWN else ""
    return f"{told}:\n\n{table(['photograph', 'is', *NAMES], rows)}{more}"


def _table(answers: Answers) -> str:
    """Return a CSV of all answers, in `order`."""
    head: list[Value] = [
        "path",
        "label",
        "A",
        "probability A",
        "B",
        "probability B",
        "changed",
        "moved",
    ]
    rows: list[list[Value]] = [
        [
            name(answers.paths[index]),
            answers.true_label(index),
            *answers.said(index, 0),
            *answers.said(index, 1),
            not answers.same[index],
            round(float(answers.moved[index]), 6),
        ]
        for index in answers.order
    ]
    return "".join(map(record, [head, *rows]))


def _sheet(answers: Answers, source: Path, about: str) -> str:
    """Return a page of the photographs that changed most."""
    count = int((~answers.same).sum())
    return contact_sheet.page(
        "What changed",
        f"{count} of {len(answers.paths)} answers changed; the most changed first",
        about,
        (_figure(answers, index, source) for index in answers.order[: contact_sheet.MOST]),
    )


def _figure(answers: Answers, index: int, source: Path) -> str:
    both = (answers.said(index, which) for which in (0, 1))
    truth = answers.true_label(index)
    lines = [f"{letter}: {label} ({p:.1%})" for letter, (label, p) in zip(NAMES, both, strict=True)]
    if truth is not None:
        lines.append(f"is {truth}")
    return contact_sheet.figure(answers.paths[index], source, *lines)
