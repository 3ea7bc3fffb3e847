"""What a user declares of a model's preprocessing, and what is taken where they declare nothing.

A preset is a name, or the file in which timm or Hugging Face keep a model's preprocessing.
"""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from visionserve.metadata import Transforms

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
PLAIN = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
PRESETS = {"imagenet": IMAGENET | {"range": "0-1"}, "half": HALF | {"range": "0-1"}}
CHECK = "compare the archive with your own figures by --expect FILE"
# Pillow's numbers of its filters, which Hugging Face's files hold.
RESAMPLE = {2: "bilinear", 3: "bicubic"}
# Settings of Hugging Face's files that change no pixel of a picture in RGB.
HARMLESS = {
    *("image_processor_type", "feature_extractor_type", "processor_class", "_processor_class"),
    *("data_format", "input_data_format", "return_tensors", "device", "disable_grouping"),
    *("do_convert_rgb", "default_to_square"),
}


@dataclass(frozen=True)
class Declared:
    """What the user says of the preprocessing; None, or an empty preset, where they say nothing.

    Attributes:
        preset: `imagenet` or `half`, for their mean and std; a name of torchvision's weights; or
            the path of timm's `config.json` or Hugging Face's `preprocessor_config.json`.

    The others override it, and are as in `visionserve.metadata.Transforms`; a mean or std of one
    number counts for every channel.
    """

    preset: str = ""
    resize: int | tuple[int, int] | None = None
    crop: int | None = None
    interpolation: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    range: str | None = None
    channels: str | None = None

    @property
    def file(self) -> Path | None:
        """The preset's file, if it is one."""
        return Path(self.preset) if self.preset.endswith(".json") else None

    def options(self) -> dict[str, Any]:
        """Return what is declared beside the preset."""
        values = asdict(self)
        del values["preset"]
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Resolved:
    """A preprocessing of which every value is known.

    Attributes:
        transforms: the values.
        sources: where each came from, in the user's words.
    """

    transforms: Transforms
    sources: dict[str, str]

    def __str__(self) -> str:
        """Describe in one line what every picture goes through, and who says so."""
        transforms, sources = self.transforms, self.sources
        size = transforms.resize
        resize = (
            f"shorter side to {size}" if isinstance(size, int) else f"squashed to {by(size)} (h×w)"
        )
        steps = {
            "channels": "grey" if transforms.channels == "grey" else transforms.channels.upper(),
            "resize": resize,
            "interpolation": transforms.interpolation,
            "crop": f"centre crop {by((transforms.crop,) * 2)}",
            "range": f"values {transforms.range}",
            "mean": f"mean {numbers(transforms.mean)}",
            "std": f"std {numbers(transforms.std)}",
        }
        told = (
            f"{', '.join(steps[name] for name in names)} [{source}]"
            for source, names in itertools.groupby(steps, sources.__getitem__)
        )
        return f"Every picture: {', '.join(told)}."


def by(size: tuple[int, ...]) -> str:
    """Write a height and width."""
    return " × ".join(map(str, size))


def numbers(values: tuple[float, ...]) -> str:
    """Write numbers as the options take them."""
    return " ".join(f"{value:g}" for value in values)


def resolve_preprocessing(
    declared: Declared, architecture: str, trained: Transforms | None = None
) -> Resolved:
    """Find every value: an option's, else the preset's, else the training's or the registry's.

    A squashed picture that no crop is declared for is taken whole.

    Args:
        declared: the options and the preset.
        architecture: a key of `MODELS`.
        trained: what `visionserve train` prepared the weights' pictures with, if it made them.

    Raises:
        ValueError: there is no such preset, its file has a setting that an archive cannot follow,
            or the values do not fit each other; the message is one line.
        OSError: the preset's file cannot be read.
    """
    from visionserve.models import MODELS

    values = (trained or MODELS[architecture].transforms).model_dump()
    before = "as it was trained" if trained else f"{architecture}'s default"
    sources = dict.fromkeys(values, before)
    preset = _preset(declared)
    options = declared.options()
    for given, name in ((preset, declared.preset), (options, None)):
        for key, value in given.items():
            values[key], sources[key] = value, name or f"--{key}"
    _check(options, preset.get("range", (trained or Transforms()).range))
    said = preset | options
    if isinstance(said.get("resize"), tuple) and "crop" not in said:
        height, width = said["resize"]
        if height != width:
            raise ValueError(
                f"--resize {height}x{width}: a network here takes square pictures; give --crop."
            )
        values["crop"], sources["crop"] = height, "the squashed picture whole"
    for key in ("mean", "std"):
        if len(values[key]) == 1:
            values[key] = tuple(values[key]) * 3
    return Resolved(transforms_of(values), sources)


def transforms_of(values: dict[str, Any]) -> Transforms:
    """Check values, and say in one line what is wrong with them.

    Raises:
        ValueError: they do not fit each other, or are out of bounds.
    """
    try:
        return Transforms.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][:1])
        message = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"Preprocessing{where and f', {where}'}: {message}.") from None


def _check(options: dict[str, Any], scale: str) -> None:
    """Refuse a mean without its std, and another scale without the two that are on it.

    Raises:
        ValueError: so it is.
    """
    if ("mean" in options) != ("std" in options):
        raise ValueError("Give --mean and --std together.")
    if "mean" not in options and options.get("range", scale) != scale:
        raise ValueError(
            f"--range {options['range']}: give --mean and --std on the same scale; "
            "0 and 1 are no normalization."
        )


def one_channel(transforms: Transforms) -> Transforms | None:
    """Return the same preprocessing for a network that takes one channel; None without its mean."""
    if transforms.channels != "grey" or len({*transforms.mean}) > 1 or len({*transforms.std}) > 1:
        return None
    return transforms.model_copy(update={"mean": transforms.mean[:1], "std": transforms.std[:1]})


def assumed(architecture: str) -> str:
    """Say what is assumed of own weights of which nothing is declared, and how to check that."""
    from torchvision.models import WeightsEnum

    from visionserve.models import MODELS

    weights = MODELS[architecture].weights
    source, others = architecture, ""
    if isinstance(weights, WeightsEnum):
        source = str(weights)
        sizes = {str(other): _of_weights(other)["resize"] for other in type(weights)}
        differing = [
            f"{name} resizes to {size}" for name, size in sizes.items() if size != sizes[source]
        ]
        others = f" ({', '.join(differing)})" if differing else ""
    return (
        f"Nothing is declared of how the weights' pictures were prepared, so that of {source} is "
        f"assumed{others}. Declare it (--preset, --mean, ...), and {CHECK}."
    )


def _preset(declared: Declared) -> dict[str, Any]:
    """Return the values of a preset."""
    name = declared.preset
    if not name:
        return {}
    if declared.file:
        return _of_file(declared.file)
    if name in PRESETS:
        return dict(PRESETS[name])
    from torchvision.models import get_weight

    try:
        return _of_weights(get_weight(name))
    except (ValueError, KeyError, AttributeError):
        raise ValueError(
            f"--preset {name}: is neither {' nor '.join(PRESETS)}, nor weights of torchvision's "
            "classifiers (ResNet18_Weights.IMAGENET1K_V1), nor a .json of timm or Hugging Face."
        ) from None


def _of_weights(weights: Any) -> dict[str, Any]:
    """Return the preprocessing of torchvision's weights.

    Raises:
        ValueError: they are not a classifier's.
        AttributeError: the same.
    """
    preset = weights.transforms()
    (resize,), (crop,) = preset.resize_size, preset.crop_size
    return {
        "resize": resize,
        "crop": crop,
        "interpolation": preset.interpolation.value,
        "mean": tuple(preset.mean),
        "std": tuple(preset.std),
        "range": "0-1",
        "channels": "rgb",
    }


def _of_file(file: Path) -> dict[str, Any]:
    """Read timm's `config.json` or Hugging Face's `preprocessor_config.json`.

    Raises:
        ValueError: it is neither, or has a setting that an archive cannot follow.
        OSError: the file cannot be read.
    """
    try:
        given = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: is no JSON ({error}).") from None
    given = given.get("pretrained_cfg", given) if isinstance(given, dict) else {}
    try:
        if "input_size" in given:
            return _of_timm(given)
        if "image_mean" in given or "do_normalize" in given:
            return _of_hugging_face(given)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{file}: a setting is missing or malformed ({error}).") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    raise ValueError(
        f"{file}: has neither timm's input_size nor Hugging Face's do_normalize or image_mean."
    )


def _of_timm(given: dict[str, Any]) -> dict[str, Any]:
    """Return what `timm.data.create_transform` does when it evaluates.

    Source: https://github.com/huggingface/pytorch-image-models, timm/data/transforms_factory.py
    """
    channels, height, width = given["input_size"]
    if height != width or channels not in (1, 3):
        raise ValueError(
            f"input_size {given['input_size']}: square colour or grey is served alone."
        )
    mode = given.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        raise ValueError(f"crop_mode {mode}: center and squash are served alone.")
    resize = math.floor(height / (given.get("crop_pct") or 0.875))
    return {
        "resize": (resize, resize) if mode == "squash" else resize,
        "crop": height,
        "interpolation": _filter(given["interpolation"]),
        "mean": tuple(given["mean"]),
        "std": tuple(given["std"]),
        "range": "0-1",
        "channels": "grey" if channels == 1 else "rgb",
    }


def _of_hugging_face(given: dict[str, Any]) -> dict[str, Any]:
    """Return what an image processor of transformers does.

    Raises:
        ValueError: a setting is unknown, or asks for what an archive cannot do.
    """
    left = {key: value for key, value in given.items() if key not in HARMLESS}
    kind = str(given.get("image_processor_type") or given.get("feature_extractor_type") or "")
    if not left.pop("do_resize", True):
        raise ValueError("do_resize false: an archive resizes every picture.")
    values: dict[str, Any] = {"channels": "rgb"}
    values["interpolation"] = _filter(RESAMPLE.get(left.pop("resample"), given["resample"]))
    values["resize"], values["crop"] = _sizes(left, kind)
    factor = left.pop("rescale_factor", 1 / 255)
    values["range"] = "0-1" if left.pop("do_rescale", True) else "0-255"
    if values["range"] == "0-1" and not math.isclose(factor, 1 / 255, rel_tol=1e-4):
        raise ValueError(f"rescale_factor {factor}: 1/255 is served alone.")
    mean, std = left.pop("image_mean", None), left.pop("image_std", None)
    if left.pop("do_normalize", True):
        values |= {"mean": tuple(mean), "std": tuple(std)}
    else:
        values |= PLAIN
    if unknown := sorted(key for key, value in left.items() if value not in (None, False)):
        raise ValueError(f"{', '.join(unknown)}: an archive does not know such settings.")
    return values


def _sizes(left: dict[str, Any], kind: str) -> tuple[int | tuple[int, int], int]:
    """Take the resize and the crop from Hugging Face's settings.

    ConvNeXt's processor, which ResNet uses too, resizes by `crop_pct`, and squashes from 384 on.
    Older files have one number, which means both sides in ViT's processor.
    """
    size, percent = left.pop("size"), left.pop("crop_pct", None)
    crops, crop = left.pop("do_center_crop", None), left.pop("crop_size", None)
    if isinstance(size, int):
        squashed = kind.startswith(("ViT", "DeiT")) and percent is None
        if not squashed and percent is None and not kind.startswith(("Bit", "CLIP", "ConvNext")):
            raise ValueError(f"size {size}: give it as shortest_edge, or as height and width.")
        size = {"height": size, "width": size} if squashed else {"shortest_edge": size}
    sides = {key: value for key, value in size.items() if value is not None}
    if percent is not None or kind.startswith("ConvNext"):
        edge = sides["shortest_edge"]
        return ((edge, edge), edge) if edge >= 384 else (int(edge / (percent or 224 / 256)), edge)
    if sides.keys() not in ({"shortest_edge"}, {"height", "width"}):
        raise ValueError(f"size {size}: shortest_edge, or height and width, are served alone.")
    resize = sides.get("shortest_edge") or (sides["height"], sides["width"])
    if crops or (crops is None and crop is not None):
        height, width = (crop, crop) if isinstance(crop, int) else (crop["height"], crop["width"])
    elif isinstance(resize, int):
        raise ValueError("do_center_crop is not on, and pictures of any shape are not served.")
    else:
        height, width = resize
    if height != width:
        raise ValueError(f"{height} × {width}: a network here takes square pictures.")
    return resize, height


def _filter(name: Any) -> str:
    if name not in RESAMPLE.values():
        raise ValueError(f"interpolation {name}: bilinear and bicubic are served alone.")
    return str(name)
