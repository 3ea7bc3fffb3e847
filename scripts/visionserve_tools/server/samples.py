"""The work of `visionserve samples`."""

import argparse
import shutil
import sys
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from visionserve import sample_store
from visionserve.config import ModelConfig
from visionserve.sample_store import LOCK, Sample
from visionserve_tools import paths
from visionserve_tools.batch.formats import MARK, defused, record
from visionserve_tools.errors import told
from visionserve_tools.report.tables import printable
from visionserve_tools.server import label_studio

INDEX = "index.csv"
# Hidden, so that no command takes it for a class.
NONE = ".none-of-these"
LONGEST_NAME = 200
COLUMNS = (
    *("reported", "id", "time", "kept", "model", "version", "tta"),
    *("predicted", "probability", "confident", "unfamiliar", "hints"),
)


def run(args: argparse.Namespace) -> int:
    """Run `visionserve samples`, and return its exit code."""
    try:
        directory = args.directory or _directory(args.profile)
        if not (directory / LOCK).exists():
            print(_absent(args, directory), file=sys.stderr)
            return int(args.command == "export")
        if args.command == "clear":
            print(f"{sample_store.clear(directory)} samples were removed from {directory}.")
            return 0
        samples = [sample for sample in sample_store.read(directory) if _is_wanted(sample, args)]
        if args.command == "list":
            for sample in samples:
                print(line(sample))
            print(f"{len(samples)} samples in {directory}.", file=sys.stderr)
            return 0
        count = export(samples, args.folder)
        print(f"{count} pictures are in {args.folder}, listed in {args.folder / INDEX}.")
    except (OSError, ValueError) as error:
        print(told(error), file=sys.stderr)
        return 1
    return 0


def _directory(profile: str) -> Path:
    config = ModelConfig.of(paths.profile(profile)).handler.samples
    return paths.STATE / profile / config.directory


def _absent(args: argparse.Namespace, directory: Path) -> str:
    told = f"{directory}: no samples were kept here."
    if args.directory or ModelConfig.of(paths.profile(args.profile)).handler.samples.on:
        return told
    told += f" {paths.profile(args.profile)}/{paths.MODEL_CONFIG} sets no handler.samples"
    if paths.profile(args.profile).parent == paths.ROOT / "config":
        return f"{told}."
    return f"{told}: copy its folder to {paths.ROOT / 'config'}, and set it."


def _is_wanted(sample: Sample, args: argparse.Namespace) -> bool:
    if args.since and sample.time < args.since:
        return False
    if args.model and sample.about["model"] != args.model:
        return False
    if args.only == "reported":
        return sample.report is not None
    return args.only is None or args.only in sample.about["kept"]


def line(sample: Sample) -> str:
    """Return what a person is told of a sample, in one line."""
    about, (best, *_) = sample.about, sample.about["predictions"]
    said = ";".join(about["labels"]) or "no label" if "labels" in about else best["label"]
    text = f"{said} {best['probability']:.1%}"
    if sample.report is not None:
        text += f"; reported: {';'.join(sample.report['labels']) or 'none of these'}"
    reasons = ",".join(about["kept"])
    made_by = f"{about['model']} {about['version']}"
    return printable(f"{about['time']}  {sample.id}  {made_by}  {reasons}  {text}")


def export(samples: Iterable[Sample], folder: Path) -> int:
    """Copy samples into class folders, by their reported label, or else by their best prediction.

    Of a picture that several versions answered, the one whose answer was reported counts, or the
    last one. Pictures of none of the classes go to a hidden folder.

    Args:
        samples: the oldest first.
        folder: a new folder, or an empty one; it is there once all is in it.

    Returns:
        How many pictures there are.

    Raises:
        ValueError: there are no samples.
        OSError: the folder holds something, or cannot be written.
    """
    chosen: dict[str, Sample] = {}
    for sample in samples:
        earlier = chosen.get(sample.id)
        if earlier is None or sample.report or not earlier.report:
            chosen[sample.id] = sample
    if not chosen:
        raise ValueError("There are no such samples.")
    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OSError(f"{folder}: is no empty folder; give a new one.")
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(mode=0o700, parents=True)
    try:
        placed = list(_copy(chosen.values(), part))
        is_multi_label = any("labels" in sample.about for sample, _ in placed)
        head = ("path", "labels" if is_multi_label else "label", *COLUMNS)
        rows = [record(head), *(_row(sample, path) for sample, path in placed)]
        (part / INDEX).write_text(MARK + "".join(rows), encoding="utf-8", newline="")
        label_studio.write(placed, part, folder.name)
        part.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return len(placed)


def _copy(samples: Iterable[Sample], folder: Path) -> Iterable[tuple[Sample, str]]:
    """Copy pictures, and yield each sample with the path of its picture in the folder.

    One that is removed meanwhile is left out.
    """
    names: dict[str, str] = {}
    for sample in samples:
        # An answer without a label is no report that there is none.
        best = [] if sample.report is not None else [sample.about["predictions"][0]["label"]]
        label = next(iter([*sample.labels, *best]), None)
        if label is None:
            name = NONE
        elif label in names:
            name = names[label]
        else:
            name = names[label] = folder_name(label, names.values())
        (folder / name).mkdir(exist_ok=True)
        path = f"{name}/{sample.id}.jpg"
        try:
            shutil.copyfile(sample.picture, folder / path)
        except FileNotFoundError:
            continue
        yield sample, path


def folder_name(label: str, taken: Iterable[str]) -> str:
    """Return the name of a label's class folder: the label, where that can be one.

    Args:
        label: any text.
        taken: names of other labels' folders, none of which a reader could take for this one.
    """
    plain = "".join(c if c.isprintable() and c not in "/\\" else "_" for c in label).strip()
    while len(plain.encode()) > LONGEST_NAME:
        plain = plain[:-1].strip()
    if not plain or plain.startswith("."):
        plain = f"_{plain}"
    plain = defused(plain)  # As the index has it.
    known = {_same(name) for name in taken}
    name, number = plain, 2
    while _same(name) in known:
        name, number = f"{plain} ({number})", number + 1
    return name


def _same(name: str) -> str:
    """Return what is the same for names that look the same."""
    return unicodedata.normalize("NFKC", name).casefold()


def _row(sample: Sample, path: str) -> str:
    about, (best, *_) = sample.about, sample.about["predictions"]
    predicted = ";".join(about["labels"]) if "labels" in about else best["label"]
    return record(
        [
            *(path, ";".join(sample.labels), sample.report is not None, sample.id, about["time"]),
            *(" ".join(about["kept"]), about["model"], about["version"], about["tta"]),
            *(predicted, best["probability"], about["confident"], about.get("unfamiliar")),
            " ".join(about.get("hints", ())),
        ]
    )
