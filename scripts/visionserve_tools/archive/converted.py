"""Keep converted models: an archive whose model is one that was converted before needs no PyTorch.

A built archive is what is kept. Its record names its model by all that made it, so that the model
can be taken from there into another handler, configuration, name, or with other labels.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from visionserve import processor
from visionserve.config import ModelConfig
from visionserve.metadata import FILE, KNOWN, Metadata
from visionserve_tools import environment, lock, paths
from visionserve_tools.archive import handler, trained
from visionserve_tools.archive.hashes import HashError, read_record, sha256_of, write_record
from visionserve_tools.archive.manifest import MANIFEST

if TYPE_CHECKING:
    from visionserve_tools.archive.recipe import Recipe

# Where archives are kept in place of `model_store/.converted`.
PLACE = "VISIONSERVE_CONVERTED"
MOST_BYTES = 1_000_000_000
# The code that makes a model and proves it, in this package and in `handler/visionserve`.
MAKERS = (
    *("archive/checkpoint.py", "archive/convert.py", "archive/declared.py", "archive/fitting.py"),
    *("archive/multi_label.py", "archive/plain.py", "archive/proof.py", "archive/self_check.py"),
    *("archive/weights.py", "photos.py"),
)
PROVED = (
    "metadata.py",
    "models.py",
    "preprocessing.py",
    "resizer.py",
    "runtimes/*.py",
    "self_check.py",
    "tta.py",
)
# The code that compares an archive with its owner's figures, beside the whole handler.
COMPARED = ("archive/alternatives.py", "archive/expected.py", "archive/serving.py")
# What the builder and the handler compute with, beside the extra `build`.
NUMERIC = ("cykooz-resizer", "numpy", "openvino", "pillow")


def key_of(
    recipe: Recipe,
    config: ModelConfig,
    hashes: Mapping[str, str],
    labels: Sequence[str],
    groups: Sequence[Sequence[int]],
    special: bool,
) -> str:
    """Return the SHA-256 in hex over everything that a converted model is made of.

    Args:
        recipe: what its archive is made of.
        config: the recipe's configuration, of which the runtime and the precision count.
        hashes: the SHA-256 of the recipe's files, by what they are. Those of labels, names and
            what was fitted count only if the archive is compared with its owner's figures.
        labels: of the network's classes, of which only the number counts otherwise.
        groups: as for `archive.convert.convert`.
        special: whether weights in INT8 use half their range, or the model is proved in BF16.
    """
    arithmetic = config.handler
    report = trained.read(recipe.weights)
    declared = asdict(recipe.declared) | ({"preset": ""} if recipe.declared.file else {})
    made_of = {
        "recipe": [recipe.architecture, recipe.averaged, recipe.activation, declared],
        "files": [hashes.get(what) for what in ("weights", "preset", "calibration")],
        "transforms": report and report.transforms.model_dump(mode="json"),
        "classes": [len(labels), groups],
        "arithmetic": [arithmetic.runtime, arithmetic.precision],
        "special": arithmetic.precision in processor.DEPEND and special,
        "packages": packages(),
        "code": code(MAKERS, PROVED),
    }
    if recipe.expect:
        made_of["expect"] = [dict(hashes), labels, code(COMPARED, ["**/*.py"])]
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def packages() -> list[str]:
    """Return the releases of the packages that a model is made and proved with.

    They are those of x86-64 on every machine, as an archive is made on one and served on another,
    and `cykooz-resizer` is not there for ARM64.
    """
    needed = environment.dependencies("x86_64")
    needed = [one for one in needed if one.partition("==")[0] in NUMERIC]
    return [*environment.pinned("build"), *needed]


def code(tools: Iterable[str], handlers: Iterable[str] = ()) -> str:
    """Return the SHA-256 in hex over what files do: their text without docstrings and comments.

    Args:
        tools: files of this package.
        handlers: patterns of files in `handler/visionserve`.
    """
    root = paths.HANDLER / "visionserve"
    files = [paths.TOOLS / name for name in tools]
    files += sorted(file for pattern in handlers for file in root.glob(pattern))
    texts = (f"{file.name} {_undocumented(file.read_bytes())}" for file in files)
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


@cache
def _undocumented(source: bytes) -> str:
    """Return Python's syntax tree of a source, which serves for both ranges of a key."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            del node.body[: ast.get_docstring(node) is not None]
    return ast.dump(tree)


def find(key: str, archive: Path) -> Path | None:
    """Return an archive whose model has this key, as it was built: the given one, or one kept."""
    kept = _folder() / f"{key}.mar"
    for found in (archive, kept):
        with suppress(HashError, OSError):
            told = read_record(found)
            mine = told is not None and (told["made_of"] or {}).get("model") == key
            if told and mine and told["sha256"] == sha256_of(found):
                return found
    return None


def unpack(archive: Path, directory: Path) -> Metadata:
    """Write the files that are the model of an archive, and return what it says of them."""
    with zipfile.ZipFile(archive) as packed:
        manifest = json.loads(packed.read(MANIFEST))
        others = {MANIFEST, manifest["model"]["configFile"], FILE, KNOWN}
        for name in packed.namelist():
            if name not in others and not handler.belongs(name):
                packed.extract(name, directory)
        return Metadata.model_validate_json(packed.read(FILE))


def keep(archive: Path, key: str) -> None:
    """Keep an archive whose model was just converted; those that were kept long ago go for it.

    Where the file system has hard links, it takes no room of its own until the archive is built
    again. If it cannot be kept, as the disk is full, the model is converted again some day.
    """
    folder, told = _folder(), read_record(archive)
    if told is None:
        return
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with lock.alone(folder):
            mine = folder / f"{key}.mar"
            mine.unlink(missing_ok=True)
            try:
                os.link(archive, mine)
            except OSError:
                shutil.copyfile(archive, mine)
            write_record(mine, told)
            _bound(folder)


def _bound(folder: Path) -> None:
    """Remove the archives that were kept first, if all are too large together."""
    records = sorted(folder.glob("*.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    total = 0
    for number, file in enumerate(records):
        archive = file.with_suffix(".mar")
        total += archive.stat().st_size if archive.exists() else 0
        if number and total > MOST_BYTES:
            archive.unlink(missing_ok=True)
            file.unlink()


def _folder() -> Path:
    return Path(os.environ.get(PLACE) or paths.MODEL_STORE / ".converted")
