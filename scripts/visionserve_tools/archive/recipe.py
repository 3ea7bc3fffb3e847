"""Define what an archive is made of, and build it."""

import hashlib
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import TypeAdapter

from visionserve import metadata, processor
from visionserve.config import PRECISIONS, Activation, ModelConfig, Wanted
from visionserve.metadata import Metadata
from visionserve_tools import class_folders, environment, lock, paths, photos
from visionserve_tools.archive import (
    calibrated,
    converted,
    expected,
    handler,
    imagenet,
    package,
    thresholds,
    trained,
)
from visionserve_tools.archive.calibrated import Fitted, with_fitted
from visionserve_tools.archive.classes import Classes, read_classes
from visionserve_tools.archive.declared import Declared, assumed, resolve_preprocessing
from visionserve_tools.archive.expected import Expected
from visionserve_tools.archive.hashes import HashError, is_recorded, read_record, record, sha256_of
from visionserve_tools.archive.manifest import ArchiveError, read_name
from visionserve_tools.archive.weights import (
    ClassCountError,
    Weights,
    WeightsError,
    WeightsUnavailableError,
    remembered,
    resolve,
)
from visionserve_tools.errors import closest

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
FIRST = "1.0"
ENOUGH = 50
# What a change of, beside the code that makes a model, changes an archive.
WRAPPERS = ("archive/familiarity.json", "archive/groups.py", "archive/package.py")


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
        weights: a file of the user's own, see `archive.weights.load`; None for the official
            one.
        labels: labels in class-index order, see `archive.categories.read_labels`; None for
            those that `visionserve train` trained the weights on, or ImageNet's.
        label_map: a JSON file that maps labels to the names shown beside them.
        calibration: a folder of photographs for INT8; None for the photographs in PyPI packages.
        temperatures: a file that `visionserve calibrate` wrote; None for no temperatures.
        declared: what the user says of the preprocessing.
        expect: a file of the owner's own predictions; see `archive.expected`.
        file: the archive's file name without `.mar`; None for NAME, or NAME-VERSION for another
            version than 1.0.
        averaged: whether the averaged weights (EMA) in the user's file are meant.
        groups: a file of groups of classes, see `archive.groups.read_groups`; None for the
            network's own classes.
        activation: what follows the network; see `visionserve.metadata.Metadata`.
        thresholds: a file of a multi-label model's thresholds; see `archive.thresholds`.
        precision: in place of the configuration's; see `configuration`.

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
    precision: Wanted | None = None

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
    def configuration(self) -> ModelConfig:
        """The archive's configuration, with its precision; FP32 where INT8 suits no processor.

        Raises:
            OSError, ValueError: as `visionserve.config.ModelConfig.load`; or the runtime has no
                such precision.
        """
        config = ModelConfig.load(self.config)
        handler = config.handler
        suited = (
            "fp32"
            if handler.precision == "int8" and not processor.suits_int8()
            else handler.precision
        )
        precision = self.precision or suited
        if precision not in PRECISIONS[handler.runtime]:
            raise ValueError(f"{self.config}: {handler.runtime} has no precision {precision}.")
        handler = handler.model_copy(update={"precision": precision})
        return config.model_copy(update={"handler": handler})

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
    force: bool = False,
) -> Path:
    """Build an archive, unless the store has one with the same ingredients.

    A model that was converted before is packed into it in seconds, without PyTorch and its weights;
    PyTorch is installed only if there is something to convert. One build at a time writes to a
    store; another one waits for it. The SHA-256 of the archive and of its ingredients, and the
    recipe, are recorded beside it, in `NAME.json`.

    Args:
        recipe: what to build.
        store: where to write.
        mirror: see `archive.weights.resolve`.
        again: whether to retry a download that failed within the last day, and to build an INT8
            or BF16 archive anew that was built on another kind of processor; `serve` does neither.
        carried: what was fitted for the same weights after an earlier build of the archive.
        force: whether to convert the model and build the archive anew in any case.

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
    config = recipe.configuration
    archive = store / recipe.archive
    figures = expected.read(recipe.expect) if recipe.expect else None
    # `serve` takes INT8 of the other range, or what was proved in the other one of FP32 and BF16,
    # but not in place of this processor's.
    special = processor.is_special(config.handler.precision)
    kinds = [special]
    kinds += [not special] if config.handler.precision in processor.DEPEND and not again else []
    made = {kind: with_fitted(fingerprint(recipe, config, kind), carried) for kind in kinds}
    if not force and any(is_recorded(archive, one) for one in made.values()):
        return archive
    _keep(archive, recipe)
    classes = read_classes(recipe)
    if figures:
        figures.arranged(classes.categories)
    kept = made_of(recipe, carried)
    keys = {
        kind: converted.key_of(recipe, config, kept["files"], classes.labels, classes.members, kind)
        for kind in kinds
    }
    store.mkdir(parents=True, exist_ok=True)
    with lock.alone(store), tempfile.TemporaryDirectory() as scratch:
        if not force and any(is_recorded(archive, one) for one in made.values()):
            return archive
        _keep(archive, recipe)
        there = {kind: converted.find(key, archive) for kind, key in keys.items() if not force}
        kind = next((kind for kind, found in there.items() if found), special)
        found = there.get(kind)
        if found is None:
            if not (again or recipe.weights) and (told := remembered(recipe.architecture, mirror)):
                raise WeightsUnavailableError(told)
            environment.require("build", f"{archive} has to be built")
            check_architecture(recipe.architecture)
            weights = resolve(recipe.architecture, recipe.weights, mirror, recipe.averaged)
            _read_fitted(recipe, weights.sha256, classes)
        how = "packed around the model that was converted before" if found else "built"
        reason = "--force asks for it" if force else _reason(archive, made[kind])
        print(f"{archive} is {how}, as {reason}.", file=sys.stderr)
        content = Path(scratch) / "content"
        content.mkdir()
        model = (
            converted.unpack(found, content)
            if found
            else _convert(recipe, config, classes, weights, figures, content)
        )
        described = _describe(recipe, classes, model)
        described = _put_fitted(recipe, config, classes, described, carried, content)
        (content / metadata.FILE).write_text(described.model_dump_json(), encoding="utf-8")
        handler.copy(config.handler.runtime, content)
        _write_config(recipe, config, content / package.CONFIG)
        built = Path(scratch) / archive.name
        if found:
            package.package_around(found, content, built, recipe.name, recipe.version)
        else:
            package.package(content, built, recipe.name, recipe.version)
        own = recipe.is_own or carried is not None
        record(archive, made[kind], own, built, kept | {"model": keys[kind]})
        if not found:
            converted.keep(archive, keys[kind])
    return archive


def _write_config(recipe: Recipe, config: ModelConfig, file: Path) -> None:
    """Write an archive's configuration: the recipe's file, or with another precision its values."""
    if config == ModelConfig.load(recipe.config):
        shutil.copy(recipe.config, file)
        return
    values = config.model_dump(mode="json", exclude_unset=True)
    file.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def _convert(
    recipe: Recipe,
    config: ModelConfig,
    classes: Classes,
    weights: Weights,
    figures: Expected | None,
    content: Path,
) -> Metadata:
    """Convert a recipe's model, and print how its pictures are prepared and how close it is.

    Raises:
        WeightsError, ProofError, ExpectationError, ValueError, OSError: as `build`.
    """
    from visionserve_tools.archive import convert, proof

    report = trained.read(recipe.weights)
    preprocessing = resolve_preprocessing(
        recipe.declared, recipe.architecture, report.transforms if report else None
    )
    print(preprocessing, file=sys.stderr)
    if recipe.weights and recipe.declared == Declared() and not (figures or report):
        print(assumed(recipe.architecture), file=sys.stderr)
    photographs = recipe.photographs()
    if recipe.calibration and config.handler.precision == "int8" and len(photographs) < ENOUGH:
        print(
            f"{recipe.calibration}: {len(photographs)} photographs; INT8 is closer to FP32 with "
            f"{ENOUGH} and more.",
            file=sys.stderr,
        )
    try:
        described = convert.convert(
            recipe.architecture,
            weights,
            classes.categories,
            config.handler,
            photographs,
            content,
            preprocessing.transforms,
            figures,
            classes.members,
            recipe.activation,
            classes.thresholds,
        )
    except ClassCountError as error:
        source = recipe.labels or "ImageNet (give --labels FILE)"
        raise WeightsError(f"{error}, but {source} has {len(classes.labels)} labels.") from None
    if described.proof:
        proved = proof.describe(described.proof, described.activation)
        print(f"{recipe.archive}: {proved}.", file=sys.stderr)
    if described.comparison:
        compared = expected.describe(described.comparison, described.activation)
        print(f"{recipe.archive}: {compared}.", file=sys.stderr)
    return described


def _describe(recipe: Recipe, classes: Classes, model: Metadata) -> Metadata:
    """Return what an archive says of a model, which may have been converted for another archive.

    Raises:
        ValueError: thresholds are given for a model that is not multi-label.
    """
    count = len(classes.categories)
    return model.model_copy(
        update={
            "weights": recipe.weights.name if recipe.weights else model.weights,
            "categories": classes.categories,
            "names": classes.names,
            "wordnet_ids": classes.wordnet_ids,
            "thresholds": thresholds.of(model.activation, classes.thresholds, count),
            "training": classes.training,
            # What was fitted for the other archive.
            **{"temperatures": {}, "plausible": {}, "familiarity": None},
        }
    )


def _read_fitted(recipe: Recipe, weights_sha256: str, classes: Classes) -> Fitted | None:
    """Return what a recipe's file has fitted for its weights; None if it names none.

    Raises:
        ValueError, OSError: as `archive.calibrated.read`.
    """
    if recipe.temperatures is None:
        return None
    return calibrated.read(
        recipe.temperatures, recipe.architecture, weights_sha256, classes.members
    )


def _put_fitted(
    recipe: Recipe,
    config: ModelConfig,
    classes: Classes,
    described: Metadata,
    carried: Fitted | None,
    content: Path,
) -> Metadata:
    """Return what an archive says of its model, with what was fitted for it.

    That is what this project has fitted, or the recipe's file before it, or an earlier archive
    before both. The files that belong to it are written to `content`.
    """
    digest, half_range = described.weights_sha256, described.half_range
    numbers = calibrated.numbers(config.handler.precision, half_range)
    fitted = _read_fitted(recipe, digest, classes)
    known = (
        calibrated.registered(recipe.architecture, digest, numbers)
        if recipe.declared == Declared()
        else None
    )
    for found in (known, fitted, carried):
        if found:
            put = found.suited(numbers).put_into(described.model_dump())
            if classes.thresholds and found is not carried:  # Those that are given go before.
                put["thresholds"] = classes.thresholds
            described = Metadata.model_validate(put)
            for name, data in found.suited(numbers).files().items():
                (content / name).write_bytes(data)
    if fitted and fitted.familiarity and fitted.familiarity.numbers != numbers:
        print(
            f"{recipe.temperatures}: its threshold of unfamiliar pictures is of "
            f"{fitted.familiarity.numbers}, not of {numbers}: calibrate {recipe.archive} itself.",
            file=sys.stderr,
        )
    return described


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
        UnknownModelError: the name is not a key; the message has the one most like it, or else all.
    """
    from visionserve.models import MODELS

    if name not in MODELS:
        hint = closest(name, MODELS) or f": {', '.join(MODELS)} are"
        raise UnknownModelError(f"{name} is no model that can be built{hint}.")


def fingerprint(recipe: Recipe, config: ModelConfig, special: bool | None = None) -> str:
    """Return the SHA-256 in hex over everything that goes into an archive.

    The official weights, ImageNet's labels and the packaged photographs need not be present: the
    pinned releases of the packages that they belong to are hashed in their place.

    Args:
        recipe: what the archive is made of.
        config: the configuration of the recipe.
        special: whether weights in INT8 use half their range, or a model is proved in BF16; None
            for what suits this machine's processor (`visionserve.processor.is_special`).

    Raises:
        WeightsError, ValueError, OSError: as `hash_of`.
    """
    wanted = config.handler.precision
    special = processor.is_special(wanted) if special is None else special
    training = trained.read(recipe.weights)
    today = handler.files(config.handler.runtime)
    values = {
        "precision": config.handler.precision,
        # Only what files hold counts, not where they are.
        "recipe": TypeAdapter(Recipe).dump_python(recipe.at(lambda _: Path()), mode="json"),
        "files": {what: hash_of(what, path) for what, path in recipe.files().items()},
        "packages": converted.packages(),
        "training": training and training.model_dump(mode="json"),
        "special": wanted in processor.DEPEND and special,
        "handler": {name: sha256_of(path) for name, path in today.items()},
        "makers": [sha256_of(paths.TOOLS / name) for name in (*converted.MAKERS, *WRAPPERS)],
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
