"""The model card: a description of an archive for those who call it."""

from typing import Any, get_args

from visionserve import processor
from visionserve.config import HandlerConfig, Language, Options, Precision
from visionserve.metadata import Comparison, Familiarity, Metadata
from visionserve.self_check import Checked

LIMITS = ("max_", "deadline_")


def card(
    name: str,
    version: str,
    metadata: Metadata,
    config: HandlerConfig,
    precision: Precision = "fp32",
    checked: Checked | None = None,
) -> dict[str, Any]:
    """Describe a model.

    Args:
        name: the model's name in the server.
        version: the model's version.
        metadata: the archive's `metadata.json`.
        config: the `handler` section of its `model-config.yaml`.
        precision: what the model computes in on this machine.
        checked: what the model's self-check found on this machine.

    Returns:
        A JSON object. `precision` is what the model computes in on this machine; `computes` says
        that and why, where its configuration names something else. `formats` are those that are
        read. `groups` names the classes of the network, by index, that each class is the sum of;
        None where they are the network's own. `thresholds`
        are those of a multi-label model, by label, or None. `options` has a JSON schema for each
        option, with its default. `limits` are the limits of a request. `activation`,
        `temperatures`, `plausible`, `familiarity`, `proof`, `training` and `comparison` are as in
        `visionserve.metadata.Metadata`; `unfamiliar` and `compared` say the familiarity and the
        comparison in words.
        `self_check` is what `visionserve.self_check` found on this machine, or None.
    """
    classes = len(metadata.categories)
    options: dict[str, dict[str, Any]] = Options.model_json_schema()["properties"]
    defaults = metadata.suited(config.defaults).model_dump()
    options["top_k"]["maximum"] = classes
    options["tta"]["enum"] = metadata.modes(options["tta"]["enum"])
    if not metadata.explains:
        del options["explain"], options["features"]
    languages = [code for code in get_args(Language) if code == "en" or code in metadata.names]
    return {
        "model": name,
        "version": version,
        "architecture": metadata.architecture,
        "weights": {"source": metadata.weights, "sha256": metadata.weights_sha256},
        "runtime": config.runtime,
        "precision": precision,
        "computes": processor.reason(config.precision, precision, metadata.bf16),
        "decode": config.decode,
        "formats": config.formats,
        "transforms": metadata.transforms.model_dump(),
        "classes": classes,
        "groups": dict(zip(metadata.categories, metadata.groups, strict=False)) or None,
        "activation": metadata.activation,
        "thresholds": dict(zip(metadata.categories, metadata.thresholds, strict=False)) or None,
        "languages": languages,
        "options": {name: schema | {"default": defaults[name]} for name, schema in options.items()},
        "limits": {key: value for key, value in config if key.startswith(LIMITS)},
        "temperatures": metadata.temperatures,
        "plausible": metadata.plausible,
        "familiarity": metadata.familiarity and metadata.familiarity.model_dump(),
        "unfamiliar": _unfamiliar(metadata.familiarity),
        "proof": metadata.proof and metadata.proof.model_dump(),
        "training": metadata.training and metadata.training.model_dump(),
        "comparison": metadata.comparison and metadata.comparison.model_dump(),
        "compared": _compared(metadata.comparison),
        "self_check": checked and checked.model_dump(),
    }


def classes(metadata: Metadata) -> list[dict[str, Any]]:
    """Describe a model's classes, in class-index order.

    Returns:
        For each its `label` and `names`, by language, as far as it has any; `wordnet_id`, if it is
        a class of ImageNet; and `sums`, how many classes of the network it is the sum of, if it is
        a group.
    """
    described: list[dict[str, Any]] = [
        {"label": label, "names": {code: names[index] for code, names in metadata.names.items()}}
        for index, label in enumerate(metadata.categories)
    ]
    for one, wordnet_id in zip(described, metadata.wordnet_ids, strict=False):
        one["wordnet_id"] = wordnet_id
    for one, members in zip(described, metadata.groups, strict=False):
        one["sums"] = len(members)
    return described


def _unfamiliar(familiarity: Familiarity | None) -> str:
    """Say whether the model tells unfamiliar pictures, and what that is worth."""
    if familiarity is None:
        return "nobody calibrated the model: its answers do not say whether a picture is unfamiliar"
    shares = ", ".join(
        f"{one.caught.value:.0%} with {mode} at {one.false_alarms.value:.1%} false alarms"
        for mode, one in familiarity.thresholds.items()
    )
    return f"unfamiliar pictures are told by {familiarity.method}: {shares}; {familiarity.about}"


def _compared(comparison: Comparison | None) -> str:
    """Say whether the model's owner vouches for its answers."""
    if comparison is None:
        return "nobody compared it with its owner's figures"
    return (
        f"compared with its owner's figures on {comparison.photographs} photographs; no "
        f"probability differs by more than {comparison.largest_difference:.6f}"
    )
