"""Define what an archive is made of, and build it."""

import difflib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from pydantic import TypeAdapter

from scripts import class_folders, environment, lock, paths, photos
from scripts.archive import expected, handler, imagenet, temperatures, thresholds, trained
from scripts.archive.categories import read_labels, read_map
from scripts.archive.declared import Declared, assumed, resolve_preprocessing
from scripts.archive.groups import read_groups
from scripts.archive.hashes import HashError, is_recorded, read_record, record, sha256_of
from scripts.archive.manifest import ArchiveError, read_name
from scripts.archive.temperatures import Fitted, with_fitted
from scripts.archive.weights import (
    ClassCountError,
    WeightsError,
    WeightsUnavailableError,
    remembered,
    resolve,
)
from visionserve import metadata
from visionserve.config import Activation, Language, ModelConfig
from visionserve.metadata import Metadata, Training
from visionserve.processor import overflows

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
FIRST = "1.0"
ENOUGH = 50
MANY = 10
# A change to this code changes the archive, so its fingerprint includes these files.
MAKERS = (
    *("archive/checkpoint.py", "archive/fitting.py", "archive/convert.py", "archive/declared.py"),
    *("archive/groups.py", "archive/multi_label.py", "archive/plain.py", "archive/proof.py"),
    *("archive/self_check.py", "photos.py", "archive/familiarity.json"),
)


class UnknownModelError(ValueError):
    """There is no such architecture."""


@dataclass(frozen=True)
class Recipe:
    """Everything that an archive is made of.

    Attributes:
        architecture: a key of `visionserve.models.MODELS`.
        name: the archive's name in the server.
        version: the archive's version.
        config: its `model-config.yaml`.
        weights: a file of the user's own, see `scripts.archive.weights.load`; None for the official
            one.
        labels: labels in class-index order, see `scripts.archive.categories.read_labels`; None for
            those that `visionserve train` trained the weights on, or ImageNet's.
        label_map: a JSON file that maps labels to the names shown beside them.
        calibration: a folder of photographs for INT8; None for the photographs in PyPI packages.
        temperatures: a file that `visionserve calibrate` wrote; None for no temperatures.
        declared: what the user says of the preprocessing.
        expect: a file of the owner's own predictions; see `scripts.archive.expected`.
        file: the archive's file name without `.mar`; None for NAME, or NAME-VERSION for another
            version than 1.0.
        averaged: whether the averaged weights (EMA) in the user's file are meant.
        groups: a file of groups of classes, see `scripts.archive.groups.read_groups`; None for the
            network's own classes.
        activation: what follows the network; see `visionserve.metadata.Metadata`.
        thresholds: a file of a multi-label model's thresholds; see `scripts.archive.thresholds`.

    Raises:
        ValueError: a name, version or file name would not be valid in a URL or for TorchServe.
    """

    architecture: str
    name: str
    version: str
    config: Path
    weights: Path | None = None
    labels: Path | None = None
    label_map: Path | None = None
    calibration: Path | None = None
    temperatures: Path | None = None
    declared: Declared = field(default_factory=Declared)
    expect: Path | None = None
    file: str | None = None
    averaged: bool = False
    groups: Path | None = None
    activation: Activation = "softmax"
    thresholds: Path | None = None

    def __post_init__(self) -> None:
        """Check the names before anything is computed."""
        for what in ("name", "version", "file"):
            text = getattr(self, what)
            if text is not None and not NAME.fullmatch(text):
                raise ValueError(
                    f"{text!r} is no {what}: give letters, digits and _ . - after a first "
                    "letter or digit, 100 at most."
                )

    @property
    def is_own(self) -> bool:
        """Whether the recipe differs from the one that `serve` uses for this architecture."""
        return self != served(self.architecture, self.config, self.groups)

    @property
    def archive(self) -> str:
        """The archive's file name. Each version has its own; the first has the plain name."""
        plain = self.name if self.version == FIRST else f"{self.name}-{self.version}"
        return f"{self.file or plain}.mar"

    def photographs(self) -> list[Path]:
        """Return the paths of the photographs to calibrate with."""
        return photos.folder(self.calibration) if self.calibration else photos.packaged()

    def files(self) -> dict[str, Path]:
        """Return the files and folders that the recipe names, by what they are."""
        named = {one.name: getattr(self, one.name) for one in fields(self)}
        named["preset"] = self.declared.file
        return {what: path for what, path in named.items() if isinstance(path, Path)}

    def at(self, moved: Callable[[Path], Path]) -> Self:
        """Return the recipe with other paths of the same files and folders."""
        changed: dict[str, Any] = {what: moved(path) for what, path in self.files().items()}
        if "preset" in changed:
            changed["declared"] = replace(self.declared, preset=str(changed.pop("preset")))
        return replace(self, **changed)


def served(architecture: str, config: Path, groups: Path | None = None) -> Recipe:
    """Return the recipe that `serve` uses for an architecture, with groups of its classes or not.

    Args:
        architecture: a key of `visionserve.models.MODELS`.
        config: the profile's `model-config.yaml`.
        groups: as in `Recipe`.
    """
    return Recipe(architecture, grouped(architecture, groups), FIRST, config, groups=groups)


def grouped(name: str, groups: Path | None) -> str:
    """Return the name of a model whose classes are the groups of a file: they make another one."""
    return f"{name}-{groups.stem}" if groups else name


def build(
    recipe: Recipe,
    store: Path,
    mirror: str | None = None,
    again: bool = True,
    carried: Fitted | None = None,
) -> Path:
    """Build an archive, unless the store has one with the same ingredients.

    PyTorch is installed only if there is something to build. One build at a time writes to a store;
    another one waits for it. The SHA-256 of the archive and of its ingredients, and the recipe, are
    recorded beside it, in `NAME.json`.

    Args:
        recipe: what to build.
        store: where to write.
        mirror: see `scripts.archive.weights.resolve`.
        again: whether to retry a download that failed within the last day, and to build an INT8
            archive anew that was built for other processors; `serve` does neither.
        carried: what was fitted for the same weights after an earlier build of the archive.

    Returns:
        The archive's path.

    Raises:
        WeightsError: the weights are missing, corrupt or for another model, or have another number
            of classes than there are labels; nothing is written.
        ProofError: the model's probabilities differ too much from PyTorch's; nothing is written.
        ExpectationError: they differ too much from the owner's figures; nothing is written.
        UnknownModelError: there is no such architecture.
        ValueError: the labels, the label map, the groups, the temperatures, the preprocessing that
            is declared, the owner's figures or a photograph cannot be used, or the archive would
            overwrite another model or version.
        InstallError: pip could not install the packages that building needs.
        OSError: a file of the recipe cannot be read.
        pydantic.ValidationError: the configuration has an unknown key or a bad value.
    """
    config = ModelConfig.load(recipe.config)
    archive = store / recipe.archive
    figures = expected.read(recipe.expect) if recipe.expect else None
    ingredients = with_fitted(fingerprint(recipe, config), carried)
    ranges = (None,) if again else (True, False)
    made = (with_fitted(fingerprint(recipe, config, half), carried) for half in ranges)
    if any(is_recorded(archive, one) for one in made):
        return archive
    _keep(archive, recipe)
    if not (again or recipe.weights) and (reason := remembered(recipe.architecture, mirror)):
        raise WeightsUnavailableError(reason)
    environment.require("build", f"{archive} has to be built")
    from scripts.archive import convert, proof

    check_architecture(recipe.architecture)
    report = trained.read(recipe.weights)
    training = report.training if report else None
    preprocessing = resolve_preprocessing(
        recipe.declared, recipe.architecture, report.transforms if report else None
    )
    labels = read_categories(recipe, training)
    if recipe.groups and recipe.activation == "sigmoid":
        raise ValueError("--groups sums up a softmax: give it without --activation sigmoid.")
    given = read_groups(recipe.groups, labels) if recipe.groups else None
    categories = tuple(given.members) if given else labels
    members = tuple(given.members.values()) if given else ()
    names = read_names(recipe, categories, given.names if given else None)
    if figures:
        figures.arranged(categories)
    limits = read_thresholds(recipe, categories)
    weights = resolve(recipe.architecture, recipe.weights, mirror, recipe.averaged)
    fitted = (
        temperatures.read(recipe.temperatures, recipe.architecture, weights.sha256, members)
        if recipe.temperatures
        else None
    )
    print(preprocessing, file=sys.stderr)
    if recipe.weights and recipe.declared == Declared() and not (figures or training):
        print(assumed(recipe.architecture), file=sys.stderr)
    photographs = recipe.photographs()
    if recipe.calibration and config.handler.precision == "int8" and len(photographs) < ENOUGH:
        print(
            f"{recipe.calibration}: {len(photographs)} photographs; INT8 is closer to FP32 with "
            f"{ENOUGH} and more.",
            file=sys.stderr,
        )

    kept = made_of(recipe, carried)
    store.mkdir(parents=True, exist_ok=True)
    with lock.alone(store), tempfile.TemporaryDirectory() as scratch:
        if is_recorded(archive, ingredients):
            return archive
        _keep(archive, recipe)
        print(f"{archive} is built, as {_reason(archive, ingredients)}.", file=sys.stderr)
        content = Path(scratch) / "content"
        handler.copy(config.handler.runtime, content)
        try:
            described = convert.convert(
                recipe.architecture,
                weights,
                categories,
                config.handler,
                photographs,
                content,
                preprocessing.transforms,
                figures,
                members,
                recipe.activation,
                limits,
            )
        except ClassCountError as error:
            source = recipe.labels or "ImageNet (give --labels FILE)"
            raise WeightsError(f"{error}, but {source} has {len(labels)} labels.") from None
        described = described.model_copy(update={"training": training, "names": names})
        numbers = temperatures.numbers(config.handler.precision, described.half_range)
        for found in (
            temperatures.registered(recipe.architecture, weights.sha256, numbers)
            if recipe.declared == Declared()
            else None,
            *(one and one.suited(numbers) for one in (fitted, carried)),
        ):
            if found:
                put = found.put_into(described.model_dump())
                if limits and found is not carried:  # Thresholds that are given go before those.
                    put["thresholds"] = limits
                described = Metadata.model_validate(put)
                for name, data in found.files().items():
                    (content / name).write_bytes(data)
        if fitted and fitted.familiarity and fitted.familiarity.numbers != numbers:
            print(
                f"{recipe.temperatures}: its threshold of unfamiliar pictures is of "
                f"{fitted.familiarity.numbers}, not of {numbers}: calibrate {archive.name} itself.",
                file=sys.stderr,
            )
        if described.proof:
            proved = proof.describe(described.proof, described.activation)
            print(f"{archive.name}: {proved}.", file=sys.stderr)
        if described.comparison:
            compared = expected.describe(described.comparison, described.activation)
            print(f"{archive.name}: {compared}.", file=sys.stderr)
        (content / metadata.FILE).write_text(described.model_dump_json(), encoding="utf-8")
        built = _package(recipe, content, Path(scratch))
        own = recipe.is_own or carried is not None
        record(archive, ingredients, own, built, kept)
    return archive


def _reason(archive: Path, ingredients: str) -> str:
    """Say why an archive has to be built, as half a sentence."""
    try:
        kept = read_record(archive)
    except HashError:
        kept = None
    if not archive.exists():
        return "there is none yet"
    if kept is None:
        return "no record says what the one there was made of"
    if kept["ingredients"] != ingredients:
        return "something that the one there was made of has changed since"
    return "the one there was changed since it was built"


def made_of(recipe: Recipe, carried: Fitted | None = None) -> dict[str, Any]:
    """Return what a record keeps of a recipe, as JSON: its values, and a hash of each file.

    Paths in this project's folder start there, so that it may be moved.

    Raises:
        WeightsError, ValueError, OSError: as `hash_of`.
    """
    recipe = recipe.at(_portable)
    return {
        "recipe": TypeAdapter(Recipe).dump_python(recipe, mode="json"),
        "files": {what: hash_of(what, paths.ROOT / path) for what, path in recipe.files().items()},
        "fitted": carried and carried.model_dump(),
    }


def _portable(path: Path) -> Path:
    path = path.absolute()
    return path.relative_to(paths.ROOT) if path.is_relative_to(paths.ROOT) else path


def _keep(archive: Path, recipe: Recipe) -> None:
    """Refuse to write over another model or version.

    Raises:
        ValueError: the file is such an archive.
    """
    try:
        model, version = read_name(archive)
    except ArchiveError:
        return
    if (model, version) != (recipe.name, recipe.version):
        raise ValueError(
            f"{archive} is {model} {version}, and is not overwritten: "
            f"give {recipe.name} {recipe.version} another name by --file."
        )


def check_architecture(name: str) -> None:
    """Refuse a name that is not a key of `visionserve.models.MODELS`.

    Raises:
        UnknownModelError: the name is not a key; the message lists all keys.
    """
    from visionserve.models import MODELS

    if name not in MODELS:
        like = difflib.get_close_matches(name, MODELS, n=1)
        hint = f" (is it {like[0]}?)" if like else ""
        raise UnknownModelError(
            f"{name} is no model that can be built{hint}: {', '.join(MODELS)} are."
        )


def read_categories(recipe: Recipe, training: Training | None = None) -> tuple[str, ...]:
    """Read the labels of the network's classes, in class-index order.

    Args:
        recipe: gives the labels.
        training: what the weights were trained on, if that is known.

    Raises:
        ValueError: the labels do not have one of the expected forms, or are not the training's.
        OSError: they cannot be read.
    """
    from visionserve.models import IMAGENET_CATEGORIES

    known = tuple(training.photographs) if training else None
    if recipe.labels is None:
        return known or IMAGENET_CATEGORIES
    given = read_labels(recipe.labels)
    if known and given != known:
        raise ValueError(
            f"{recipe.labels}: the weights were trained on {', '.join(known[:MANY])}"
            f"{', ...' if len(known) > MANY else ''}, in this order: leave out --labels, and name "
            "classes for people by --label-map."
        )
    return given


def read_thresholds(recipe: Recipe, categories: Sequence[str]) -> tuple[float, ...]:
    """Read the thresholds of a multi-label model, in class-index order; empty if none are given.

    Raises:
        ValueError: the model is not multi-label, the file does not have the expected form, or a
            label could not be told from several in a column of `visionserve classify`.
        OSError: it cannot be read.
    """
    if recipe.activation == "sigmoid":
        if joined := [label for label in categories if ";" in label]:
            raise ValueError(f"{joined[0]}: a semicolon separates labels; rename it.")
    elif recipe.thresholds:
        raise ValueError(
            "--thresholds are those of a multi-label model: give --activation sigmoid."
        )
    return thresholds.read(recipe.thresholds, categories) if recipe.thresholds else ()


def read_names(
    recipe: Recipe,
    categories: Sequence[str],
    groups: Mapping[Language, Mapping[str, str]] | None = None,
) -> dict[Language, tuple[str, ...]]:
    """Return what people call the classes, in class-index order, in the languages that have names.

    The label map goes before the names of groups, or where there are none ImageNet's. A class
    without a name is called by its label.

    Raises:
        ValueError: the label map does not have the expected form.
        OSError: it cannot be read.
    """
    from visionserve.models import IMAGENET_CATEGORIES

    known = imagenet.names() if categories == IMAGENET_CATEGORIES and not recipe.labels else {}
    for language, texts in (groups or {}).items():
        known[language] = tuple(texts.get(label, label) for label in categories)
    own = read_map(recipe.label_map, categories) if recipe.label_map else {}
    return {
        language: tuple(
            own.get(language, {}).get(label, name)
            for label, name in zip(categories, known.get(language, categories), strict=True)
        )
        for language in {**known, **own}
    }


def fingerprint(recipe: Recipe, config: ModelConfig, half_range: bool | None = None) -> str:
    """Return the SHA-256 in hex over everything that goes into an archive.

    The official weights, ImageNet's labels and the packaged photographs need not be present: the
    pinned releases of the packages that they belong to are hashed in their place.

    Args:
        recipe: what the archive is made of.
        config: the configuration of the recipe.
        half_range: whether weights in INT8 use half their range; None for what suits this machine's
            processor (`visionserve.processor.overflows`).

    Raises:
        WeightsError, ValueError, OSError: as `hash_of`.
    """
    half = overflows() if half_range is None else half_range
    training = trained.read(recipe.weights)
    today = handler.files(config.handler.runtime)
    values = {
        # Only what files hold counts, not where they are.
        "recipe": TypeAdapter(Recipe).dump_python(recipe.at(lambda _: Path()), mode="json"),
        "files": {what: hash_of(what, path) for what, path in recipe.files().items()},
        "packages": environment.pinned("build"),
        "training": training and training.model_dump(mode="json"),
        "half range": config.handler.precision == "int8" and half,
        "handler": {name: sha256_of(path) for name, path in today.items()},
        "makers": [sha256_of(paths.SCRIPTS / name) for name in MAKERS],
        "names": sha256_of(imagenet.FILE),
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def hash_of(what: str, path: Path) -> str:
    """Return the SHA-256 in hex of a file of a recipe.

    Of a folder of labels, the names of its class folders count, of another folder its photographs,
    and of the owner's predictions also the photographs that they are of.

    Args:
        what: one of the names in `Recipe.files`.
        path: the file or folder.

    Raises:
        WeightsError: there is no such file.
        ValueError: a folder of labels holds no class folders, or the predictions are malformed.
        OSError: a file cannot be read, or a folder of photographs holds none.
    """
    if what == "labels" and path.is_dir():
        return hashlib.sha256("\0".join(class_folders.names(path)).encode()).hexdigest()
    if what == "calibration":
        files = photos.folder(path)
    elif path.is_file():
        files = [path, *(expected.read(path).photographs if what == "expect" else ())]
    else:
        raise WeightsError(f"{path}: no such file of {what.replace('_', ' ')}.")
    hashes = [sha256_of(file) for file in files]
    together = "".join(hashes).encode()
    return hashes[0] if len(hashes) == 1 else hashlib.sha256(together).hexdigest()


def _package(recipe: Recipe, content: Path, scratch: Path) -> Path:
    """Package the content with torch-model-archiver, and return the archive's path.

    The archiver uses `$TMPDIR/NAME` as its scratch folder, so it gets a new `TMPDIR`.
    """
    config = scratch / "model-config.yaml"
    shutil.copy(recipe.config, config)
    command = [
        *(str(Path(sys.executable).with_name("torch-model-archiver")),),
        *("--model-name", recipe.name, "--version", recipe.version),
        *("--handler", str(content / handler.ENTRY), "--extra-files", str(content)),
        *("--config-file", str(config), "--export-path", str(scratch)),
    ]
    subprocess.run(command, check=True, env={**os.environ, "TMPDIR": _folder(scratch / "tmp")})
    return scratch / f"{recipe.name}.mar"


def _folder(path: Path) -> str:
    path.mkdir()
    return str(path)
