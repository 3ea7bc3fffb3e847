"""What is declared of a model's preprocessing, in options, by a preset or in a file."""

import json
from pathlib import Path
from typing import Any

import pytest
from torchvision.models import ResNet50_Weights

from visionserve.metadata import Metadata, Transforms
from visionserve_tools.archive.declared import Declared, assumed, resolve_preprocessing

HALF = [0.5, 0.5, 0.5]
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
VIT = {
    **{"do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": HALF},
    **{"image_processor_type": "ViTImageProcessor", "image_std": HALF, "resample": 2},
    **{"rescale_factor": 0.00392156862745098, "size": {"height": 224, "width": 224}},
}
CONVNEXT = {
    **{"crop_pct": 0.875, "do_normalize": True, "do_resize": True, "image_mean": MEAN},
    **{"feature_extractor_type": "ConvNextFeatureExtractor", "image_std": STD, "resample": 3},
    "size": 224,
}
BIT = {
    **{"do_center_crop": True, "do_normalize": True, "do_resize": True, "image_mean": MEAN},
    **{"image_processor_type": "BitImageProcessor", "image_std": STD, "resample": 3},
    **{"crop_size": {"height": 224, "width": 224}, "size": {"shortest_edge": 256}},
    **{"do_rescale": True, "do_convert_rgb": True, "rescale_factor": 1 / 255},
}
TIMM = {
    **{"input_size": [3, 224, 224], "interpolation": "bicubic", "crop_pct": 0.95},
    **{"crop_mode": "center", "mean": MEAN, "std": STD, "fixed_input_size": False},
}


def given(folder: Path, content: object) -> Transforms:
    file = folder / "config.json"
    file.write_text(json.dumps(content))
    return resolve_preprocessing(Declared(preset=str(file)), "resnet50").transforms


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (VIT, {"resize": (224, 224), "mean": HALF, "std": HALF}),
        (VIT | {"size": 224}, {"resize": (224, 224), "mean": HALF, "std": HALF}),
        (CONVNEXT, {"interpolation": "bicubic"}),
        (CONVNEXT | {"size": 384}, {"resize": (384, 384), "crop": 384, "interpolation": "bicubic"}),
        (BIT, {"interpolation": "bicubic"}),
        (
            BIT | {"do_normalize": False},
            {"interpolation": "bicubic", "mean": [0] * 3, "std": [1] * 3},
        ),
        (
            BIT | {"do_rescale": False, "image_mean": [124, 117, 104], "image_std": [1, 1, 1]},
            {"interpolation": "bicubic", "range": "0-255", "mean": (124, 117, 104), "std": [1] * 3},
        ),
        (
            {"architecture": "resnet50", "pretrained_cfg": TIMM},
            {"resize": 235, "interpolation": "bicubic"},
        ),
        (TIMM | {"crop_mode": "squash"}, {"resize": (235, 235), "interpolation": "bicubic"}),
        (
            TIMM | {"input_size": [1, 192, 192], "crop_pct": 1, "mean": [0.5], "std": [0.5]},
            {
                **{"channels": "grey", "resize": 192, "crop": 192, "interpolation": "bicubic"},
                **{"mean": HALF, "std": HALF},
            },
        ),
    ],
)
def test_files_of_timm_and_hugging_face_are_read(
    tmp_path: Path, content: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert given(tmp_path, content) == Transforms.model_validate(expected)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (VIT | {"resample": 1}, "interpolation 1: "),
        (VIT | {"do_resize": False}, "do_resize false"),
        (VIT | {"rescale_factor": 1 / 127.5}, "rescale_factor"),
        (VIT | {"rescale_offset": True}, "rescale_offset: an archive does not know"),
        (VIT | {"do_pad": True, "include_top": True}, "do_pad, include_top"),
        (VIT | {"size": {"height": 224, "width": 192}}, "224 × 192"),
        (BIT | {"do_center_crop": False}, "do_center_crop is not on"),
        (BIT | {"size": {"longest_edge": 256}}, "longest_edge"),
        (BIT | {"image_processor_type": "Own", "size": 256}, "size 256"),
        ({"do_normalize": True}, "missing or malformed"),
        (BIT | {"image_mean": None}, "missing or malformed"),
        (TIMM | {"crop_mode": "border"}, "crop_mode border"),
        (TIMM | {"interpolation": "lanczos"}, "interpolation lanczos"),
        (TIMM | {"input_size": [3, 224, 288]}, "input_size"),
        ([], "neither timm's input_size nor"),
        ({"architecture": "resnet50"}, "neither timm's input_size nor"),
    ],
)
def test_what_a_file_asks_for_in_vain_is_named(
    tmp_path: Path, content: Any, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint) as raised:
        given(tmp_path, content)
    assert str(raised.value).startswith(str(tmp_path / "config.json"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ({}, {"resize": 232}),
        ({"preset": "ResNet50_Weights.IMAGENET1K_V1"}, {"resize": 256}),
        ({"preset": "half"}, {"resize": 232, "mean": HALF, "std": HALF}),
        (
            {"preset": "half", "mean": (0.0,), "std": (1.0,)},
            {"resize": 232, "mean": [0] * 3, "std": [1] * 3},
        ),
        ({"resize": (192, 192)}, {"resize": (192, 192), "crop": 192}),
        ({"resize": (256, 320), "crop": 200}, {"resize": (256, 320), "crop": 200}),
    ],
)
def test_options_come_before_the_preset_and_the_registry(
    declared: dict[str, Any], expected: dict[str, Any]
) -> None:
    found = resolve_preprocessing(Declared(**declared), "resnet50")
    assert found.transforms == Transforms.model_validate(expected)


@pytest.mark.parametrize(
    ("declared", "complaint"),
    [
        ({"mean": (0.5,)}, "--mean and --std together"),
        ({"mean": (0.5, 0.5), "std": (1.0, 1.0)}, "a mean and a std for each channel"),
        ({"mean": (123.7,), "std": (58.4,)}, "on the scale of range, 0-1"),
        ({"mean": (0.5,), "std": (0.0,)}, "std: .* greater than 0"),
        ({"mean": (float("nan"),), "std": (1.0,)}, "mean: .* finite"),
        ({"range": "0-255"}, "--range 0-255: give --mean and --std"),
        ({"crop": 288}, "a crop of 288 is larger than the resized image .232"),
        ({"resize": 192}, "a crop of 224 is larger than the resized image .192"),
        ({"resize": (192, 224)}, "--resize 192x224: "),
        ({"resize": 5000}, "resize: .* 1024"),
        ({"preset": "imagenette"}, "--preset imagenette: is neither"),
        ({"preset": "FCN_ResNet50_Weights.DEFAULT"}, "is neither imagenet nor half"),
        ({"preset": "absent.json"}, "absent.json"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(declared: dict[str, Any], complaint: str) -> None:
    with pytest.raises((ValueError, OSError), match=complaint) as raised:
        resolve_preprocessing(Declared(**declared), "resnet50")
    assert "\n" not in str(raised.value)


def test_one_line_says_what_a_picture_goes_through_and_who_says_so() -> None:
    declared = Declared(preset="half", resize=(224, 224), channels="bgr")
    assert str(resolve_preprocessing(declared, "resnet50")) == (
        "Every picture: BGR [--channels], squashed to 224 × 224 (h×w) [--resize], bilinear "
        "[resnet50's default], centre crop 224 × 224 [the squashed picture whole], values 0-1, "
        "mean 0.5 0.5 0.5, std 0.5 0.5 0.5 [half]."
    )


def test_what_is_assumed_names_the_weights_and_those_that_differ() -> None:
    text = assumed("resnet50")
    assert f"that of {ResNet50_Weights.IMAGENET1K_V2} is assumed" in text
    assert "ResNet50_Weights.IMAGENET1K_V1 resizes to 256" in text and "--expect FILE" in text
    assert "resizes" not in assumed("resnet18") and "efficientnet_lite0" in assumed(
        "efficientnet_lite0"
    )


def test_an_archive_of_before_loads_with_torchvisions_way() -> None:
    old = {
        **{"resize": 232, "crop": 224, "interpolation": "bilinear", "mean": MEAN, "std": STD},
    }
    described = {
        **{"architecture": "resnet50", "weights": "", "weights_sha256": "", "artifact": ""},
        **{"transforms": old, "categories": ["a", "b"]},
    }
    found = Metadata.model_validate_json(json.dumps(described))
    assert found.transforms == Transforms(resize=232) and found.comparison is None
    assert (found.transforms.range, found.transforms.channels) == ("0-1", "rgb")


def test_a_mean_is_a_colour_whatever_its_scale_and_order() -> None:
    caffe = {"channels": "bgr", "range": "0-255", "mean": (104, 117, 124), "std": (1, 1, 1)}
    assert Transforms.model_validate(caffe).colour == (124, 117, 104)
    assert Transforms().colour == (124, 116, 104)
    grey = Transforms.model_validate({"channels": "grey", "mean": (0.5,), "std": (0.5,)})
    assert grey.colour == (128, 128, 128)
