"""Evaluate an archive as it is served, on its owner's photographs."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from visionserve.config import TTA
from visionserve_tools import paths
from visionserve_tools.batch.rows import name
from visionserve_tools.quality import classes, labelled, multi_label, output
from visionserve_tools.quality.classes import Answers
from visionserve_tools.quality.evaluate import QUICK, Judgements, draw, judge
from visionserve_tools.quality.models import Archived, Gathered, gather, opened
from visionserve_tools.report import circumstances
from visionserve_tools.report.tables import percent, table

MANY = 5
DIAGRAM = "reliability.png"
# What compares with other runtimes says nothing here.
COMPARED = ("mean difference", "largest difference", "same top1")


def run(args: argparse.Namespace) -> int:
    """Do what `visionserve evaluate --archive` was asked, and return its exit code."""
    folder = args.output or paths.MODEL_STORE / f"{args.archive.stem}-evaluation"
    beside = [folder / file for file in (DIAGRAM, *classes.FILES)]
    return output.write(folder / "evaluation.json", lambda: evaluated(args, folder), beside)


def evaluated(args: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], list[Path]]:
    """Classify the photographs, and return the figures and what is written beside them.

    Raises:
        ArchiveError, HashError, RequestError, ValueError, OSError: the archive or a photograph
            cannot be used.
    """
    with opened(args.archive) as archived:
        evaluate = multi_label.evaluate if archived.metadata.multi_label else single_label
        return evaluate(archived, args, QUICK if args.quick else None, folder)


def single_label(
    archived: Archived, args: argparse.Namespace, count: int | None, folder: Path
) -> tuple[dict[str, Any], list[Path]]:
    """Classify photographs of one class each, and return what `report` does.

    Raises:
        ValueError, OSError: as `gather`.
        RequestError: the model fails.
    """
    gathered = gather(args, archived.metadata.categories, archived.config, count)
    wanted = args.modes or [archived.metadata.suited(archived.config.defaults).tta]
    answered = answer(archived, gathered.photographs, archived.modes(wanted))
    asked = f"{len(gathered.photographs)} photographs of {name(args.folder)}"
    about = f"{archived}, {asked} ({circumstances.here()})"
    return report(answered, archived, about, gathered, args.folder, folder)


def answer(
    archived: Archived, photographs: Sequence[tuple[Path, int]], modes: Sequence[TTA]
) -> dict[TTA, Answers]:
    """Classify photographs in each mode.

    Raises:
        RequestError: the model fails.
        OSError: a photograph is gone.
    """
    found: dict[TTA, list[Any]] = {mode: [] for mode in modes}
    for path, _ in tqdm(photographs, desc="photographs", smoothing=0):
        for mode, probabilities in archived.classify(path, modes).items():
            found[mode].append(probabilities)
    named, labels = [path for path, _ in photographs], np.array([one for _, one in photographs])
    categories = archived.metadata.categories
    return {
        mode: Answers(named, labels, np.stack(rows), categories) for mode, rows in found.items()
    }


def report(
    answered: Mapping[TTA, Answers],
    archived: Archived,
    about: str,
    gathered: Gathered[int],
    source: Path,
    folder: Path,
) -> tuple[dict[str, Any], list[Path]]:
    """Print the figures, and draw and write those of single classes, which are of the first mode.

    Returns:
        All figures, for JSON, and the files' paths.
    """
    threshold = archived.config.defaults.threshold or 0.0
    judged = {
        (archived.name, mode): Judgements(
            [
                judge(row, int(label), row)
                for row, label in zip(answers.probabilities, answers.labels, strict=True)
            ],
            threshold,
        )
        for mode, answers in answered.items()
    }
    first = next(iter(answered.values()))
    print(f"{about}; 95 % confidence intervals\n\n{summary(judged, len(first.categories))}\n")
    print(f"{by_class(first)}\n")
    figures = []
    for (_, mode), found in judged.items():
        of_mode = {"tta": mode} | found.summary()
        hidden = COMPARED if len(first.categories) > MANY else (*COMPARED, f"top{MANY}")
        figures.append({key: value for key, value in of_mode.items() if key not in hidden})
    record = {
        "about": about,
        "archive": {"name": archived.name, "version": archived.version},
        "notes": gathered.notes,
        "left out": [
            {"path": str(out.path), "error": f"{out.code}: {out.message}"} for out in gathered.left
        ],
        "figures": figures,
        "classes": first.by_class(),
    }
    drawn = folder / DIAGRAM
    draw(judged, drawn)
    return record, [drawn, *classes.write(first, folder, source, about)]


def summary(judged: Mapping[tuple[str, TTA], Judgements], count: int) -> str:
    """Return a table of each mode's figures; Top-5 says nothing of five classes and fewer."""
    many = count > MANY
    rows = []
    for (_, mode), found in judged.items():
        figures = found.summary()
        cells = [percent(**figures["top1"]), *([percent(**figures[f"top{MANY}"])] if many else [])]
        cells += [f"{figures['nll']:.3f}", f"{figures['ece']:.3f}"]
        names = ("confident", "right where confident", "warned where wrong")
        rows.append([mode, *cells, *(percent(figures[name]["value"]) for name in names)])
    top = ["Top-1", *([f"Top-{MANY}"] if many else [])]
    columns = ("NLL", "ECE", "confident", "of those right", "errors that carry the warning")
    return table(["TTA", *top, *columns], rows)


def by_class(answers: Answers) -> str:
    """Return a table of the classes that have photographs or answers, those of least F1 first."""
    seen = [row for row in answers.by_class() if row["support"] or row["answers"]]
    seen.sort(key=lambda row: row["f1"] or 0)
    shown = seen[: labelled.SHOWN * 2]
    rows = [
        [row["label"], row["support"], *(percent(row[name]) for name in classes.FIGURES)]
        for row in shown
    ]
    more = f"\n\n{len(seen) - len(shown)} more in classes.csv" if len(seen) > len(shown) else ""
    return table(["class", "pictures:", "precision:", "recall:", "F1:"], rows) + more
