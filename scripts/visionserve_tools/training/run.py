"""The work of `visionserve train`."""

import argparse
import hashlib
import math
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import astuple
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from visionserve.metadata import Training, Transforms
from visionserve_tools import class_folders, lock, paths
from visionserve_tools.archive import arguments, convert, trained
from visionserve_tools.archive.categories import numbers, read_labels
from visionserve_tools.archive.declared import resolve_preprocessing
from visionserve_tools.archive.recipe import NAME, check_architecture
from visionserve_tools.archive.weights import (
    FALLBACK,
    Weights,
    WeightsError,
    WeightsUnavailableError,
    resolve,
)
from visionserve_tools.class_folders import ClassFolders
from visionserve_tools.errors import told
from visionserve_tools.quality.corruptions import CORRUPTIONS
from visionserve_tools.training import (
    data,
    fine_tuning,
    linear_probe,
    measurement,
    network,
    reading,
    report,
)
from visionserve_tools.training.data import Data
from visionserve_tools.training.folds import HELD_OUT
from visionserve_tools.training.reading import Damage, Seen

CHECKPOINT = "checkpoint.pt"
# How many damaged copies of each photograph --augment adds.
COPIES = 3

State = Mapping[str, Tensor]


def run(args: argparse.Namespace) -> int:
    """Do what `visionserve train` was asked, and return its exit code."""
    try:
        train(args)
    except torch.OutOfMemoryError:
        print("The GPU has too little memory: give a smaller --batch.", file=sys.stderr)
        return 1
    except WeightsUnavailableError as error:
        print(f"{error} Give --weights FILE, or --architecture {FALLBACK}.", file=sys.stderr)
        return 1
    except (WeightsError, ValueError, OSError) as error:
        print(told(error), file=sys.stderr)
        return 1
    return 0


def train(args: argparse.Namespace) -> None:
    """Read, divide, train, measure, write, and print how to go on.

    Raises:
        WeightsError: the first weights cannot be had, or are another architecture's.
        ValueError: the folder, the options or the checkpoint cannot be used.
        OSError: a file cannot be read or written.
    """
    check_architecture(args.architecture)
    name = args.name or _name(args.folder)
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name; give --name letters, digits and _ . -")
    found = class_folders.find(args.folder)
    if numbers(found.classes):
        raise ValueError(
            f"{args.folder}: each class folder's name carries its number ({found.classes[0]}), "
            "which would be a part of the label: name the folders by their classes alone."
        )
    before = trained.read(args.weights)
    preprocessing = resolve_preprocessing(
        arguments.declared(args), args.architecture, before.transforms if before else None
    )
    convert.form(args.architecture, len(found.classes), preprocessing.transforms)
    data.check(found.classes, (label for _, label in found.photographs), "are there")
    output: Path = args.output or paths.MODEL_STORE / "trained" / name
    weights = resolve(args.architecture, args.weights, args.mirror)
    began = network.start(args.architecture, len(found.classes), weights, args.seed)
    done = output / trained.FILE
    if done.exists() and not args.overwrite:
        raise ValueError(f"{done}: is of a finished training; give --overwrite or --output.")
    print(preprocessing, file=sys.stderr)
    beside = (*report.FILES, CHECKPOINT, Path(CHECKPOINT).with_suffix(".part"))
    with lock.replace(done, *(output / file for file in beside)) as file:
        _prepare(output, found.classes, args.overwrite)
        written = _trained(args, found, began, weights, preprocessing.transforms, output)
        file.write(written.write(output))
    (output / CHECKPOINT).unlink(missing_ok=True)
    print(f"{written}\n\n{_commands(args.architecture, name, output)}")


def _trained(
    args: argparse.Namespace,
    found: ClassFolders,
    began: nn.Module,
    weights: Weights,
    transforms: Transforms,
    output: Path,
) -> report.Report:
    """Train, write the weights, and measure them."""
    if args.fine_tune:
        state, used, details = _fine_tune(args, found, began, weights, transforms, output)
    else:
        state, used, details = _probe(args, found, began, transforms)
    torch.save(state, output / report.WEIGHTS)
    held_out = used.folds == HELD_OUT
    judged = used.where(held_out)
    measured = measurement.measure(
        args.architecture, output / report.WEIGHTS, judged, len(used.classes), transforms
    )
    return report.Report(
        architecture=args.architecture,
        transforms=transforms,
        training=Training(
            method="fine-tuning" if args.fine_tune else "linear probe",
            began_with=weights.source,
            date=datetime.now(UTC).date().isoformat(),
            photographs=used.counts(~held_out),
            held_out=used.counts(held_out),
            data_sha256=used.sha256,
            top1=measured.top1.recorded(),
            top1_damaged=measured.top1_damaged.recorded(),
            augmented=args.augment,
        ),
        measured=measured,
        data=used,
        details={"seed": args.seed, "began_with_sha256": weights.sha256, **details},
    )


def _name(folder: Path) -> str:
    """Return a name for the server, made of the folder's."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", folder.resolve().name).strip("-._") or "own"


def _prepare(output: Path, classes: tuple[str, ...], overwrite: bool) -> None:
    """Write the labels as `build` reads them, and remove what is of an earlier training.

    Raises:
        ValueError: `build` would refuse a label.
    """
    # The report goes first, so that it never lies beside other weights.
    (output / trained.FILE).unlink(missing_ok=True)
    if overwrite:
        (output / CHECKPOINT).unlink(missing_ok=True)
    labels = output / report.LABELS
    labels.write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
    if read_labels(labels) != classes:
        raise ValueError(f"{labels}: a name is not kept as it is; give the folders plain names.")


def _warn(used: Data) -> None:
    few = data.check(used.classes, used.labels, "can be read")
    if few:
        named = ", ".join(f"{name} {count}" for name, count in few.items())
        print(
            f"Under {data.ENOUGH} photographs of a class, more of them help most: {named}.",
            file=sys.stderr,
        )
    if used.left_out:
        print(f"{len(used.left_out)} files are left out; the report says why.", file=sys.stderr)


def _probe(
    args: argparse.Namespace, found: ClassFolders, began: nn.Module, transforms: Transforms
) -> tuple[State, Data, dict[str, Any]]:
    """Fit a new last layer to the features of the photographs that are not held out."""
    name, layer = network.last_linear(began, args.architecture, len(found.classes))
    with tempfile.TemporaryDirectory() as scratch:
        backbone = Path(scratch) / "backbone.xml"
        module = network.Backbone(args.architecture, began, name, transforms)
        convert.save(convert.to_openvino(module, transforms.crop), backbone)
        used = data.read(found, transforms, backbone, args.seed)
        _warn(used)
        chosen = np.flatnonzero(used.folds != HELD_OUT)
        features = [used.seen[index].output for index in chosen]
        if args.augment:
            kinds, generator = tuple(CORRUPTIONS), np.random.default_rng(args.seed)
            drawn = generator.integers([len(kinds), 2], size=(COPIES, len(chosen), 2))
            tasks: list[reading.Task] = [
                (used.paths[index], Damage(kinds[kind], int(severity), number))
                for copy in drawn
                for number, (index, (kind, severity)) in enumerate(zip(chosen, copy, strict=True))
            ]
            seen = reading.read(tasks, transforms, backbone, "damaged copies")
            features += [one.output for one in seen if isinstance(one, Seen)]
            chosen = np.tile(chosen, 1 + COPIES)
    print("Fitting the last layer.", file=sys.stderr)
    fitted = linear_probe.fit(
        np.stack([one for one in features if one is not None]),
        used.labels[chosen],
        used.folds[chosen],
        bias=layer.bias is not None,
    )
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(fitted.weight))
        if layer.bias is not None:
            layer.bias.copy_(torch.tensor(fitted.bias))
    return began.state_dict(), used, {"C": fitted.strength}


def _fine_tune(
    args: argparse.Namespace,
    found: ClassFolders,
    began: nn.Module,
    weights: Weights,
    transforms: Transforms,
    output: Path,
) -> tuple[State, Data, dict[str, Any]]:
    """Train all layers on three folds, and stop by the fourth."""
    used = data.read(found, transforms, None, args.seed)
    _warn(used)
    judging = used.folds == HELD_OUT - 1
    plan = fine_tuning.Plan(args.epochs, args.batch, args.learning_rate, args.seed, args.augment)
    parts = (args.architecture, weights.sha256, used.sha256, transforms, *astuple(plan))
    state, losses = fine_tuning.train(
        args.architecture,
        began,
        len(used.classes),
        used.where(~judging & (used.folds != HELD_OUT)),
        used.where(judging),
        plan,
        transforms,
        output / CHECKPOINT,
        hashlib.sha256(repr(parts).encode()).hexdigest(),
    )
    details = {"epochs": plan.epochs, "batch": plan.batch, "learning_rate": plan.rate}
    best = losses.index(min(filter(math.isfinite, losses))) + 1
    finite = [loss if math.isfinite(loss) else None for loss in losses]
    return state, used, {**details, "best_epoch": best, "losses": finite}


def _commands(architecture: str, name: str, output: Path) -> str:
    """Return the two commands that build and serve the model, for the folder that one is in."""
    here = Path.cwd()
    program = Path(sys.executable).with_name("visionserve")
    program, weights = (
        Path(os.path.relpath(path)) if path.absolute().is_relative_to(here) else path.absolute()
        for path in (program, output / report.WEIGHTS)
    )
    build = (program, "build", architecture, "--name", name, "--weights", weights)
    serve = (program, "serve", "start", "--models", name)
    return "\n".join(shlex.join(map(str, command)) for command in (build, serve))
