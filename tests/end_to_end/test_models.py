"""Torchvision's classifiers, one of each family, on seeded weights."""

import re
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import openvino
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import models as tv
from torchvision.models import WeightsEnum

from tests.bench import families
from visionserve import tta
from visionserve.metadata import Proof
from visionserve.models import MODELS, FullyConvolutional
from visionserve_tools.archive import convert
from visionserve_tools.archive.weights import Weights, load_state_dict

FIXED = {"alexnet", "maxvit_t", "swin_t", "swin_v2_t", "vit_b_32"}
LAYERS_BEHIND_POOL = {"convnext_tiny", "mobilenet_v3_small", "squeezenet1_1"}
SMALL = sorted(
    FIXED
    | LAYERS_BEHIND_POOL
    | {"densenet121", "efficientnet_b0", "googlenet", "inception_v3", "mnasnet0_5"}
    | {"mobilenet_v2", "regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5"}
)
DRAWS = ("kaiming_normal_", "kaiming_uniform_", "normal_", "trunc_normal_", "uniform_")
OLD_NAMES = re.compile(r"(denselayer\d+\.(?:norm|conv))([12]\.)")


def seeded(name: str) -> tuple[FullyConvolutional, torch.Tensor]:
    """Return an untrained network and two images that it tells apart."""
    crop = MODELS[name].transforms.crop
    noise = torch.randint(0, 256, (crop, crop, 3), generator=torch.Generator().manual_seed(0))
    pixels = torch.stack([noise, noise // 8 + 100]).to(torch.uint8)
    return families.seeded(name, pixels), pixels


@pytest.mark.parametrize("name", SMALL)
def test_a_family_answers_as_torchvisions_own_module(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torchvision's builder reads the same weights from the hub's cache, by their official name."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    model = MODELS[name]
    weights = model.weights
    assert isinstance(weights, WeightsEnum)
    # What takes any size takes one that is computed in a third of the time. Inception's auxiliary
    # classifier, which sees the training that `seeded` does, takes no less than its own.
    if name not in FIXED | {"inception_v3"}:
        small = model.transforms.model_copy(update={"crop": 128, "resize": 128})
        monkeypatch.setitem(MODELS, name, model := replace(model, transforms=small))
    module, pixels = seeded(name)
    file = tmp_path / "hub" / "checkpoints" / weights.url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    state = module.network.state_dict()
    if name == "densenet121":  # Its official file is older than the counters and the names.
        plain = {key: value for key, value in state.items() if not key.endswith("_tracked")}
        state = OrderedDict((OLD_NAMES.sub(r"\1.\2", key), value) for key, value in plain.items())
    torch.save(state, file)
    for draw in DRAWS:  # What is read from the file needs no draw, which takes half of the time.
        monkeypatch.setattr(nn.init, draw, lambda tensor, *_, **__: tensor)
    official = tv.get_model(name, weights=weights).eval()
    for tensor in module.network.state_dict().values():
        tensor.zero_()
    module.network.load_state_dict(
        load_state_dict(Weights(file, "", ""), module.network.state_dict())
    )
    file.unlink()  # 2 GB of all of them would be written to the disk.
    preset = weights.transforms()
    preset.resize_size = preset.crop_size = [model.transforms.crop]
    images = torch.stack([preset(Image.fromarray(image)) for image in pixels.numpy()])
    with torch.inference_mode():
        expected = official(images).softmax(-1)
        found = module(pixels)
    assert 0.4 < expected.amax(1).mean() < 0.6 and expected[0].argmax() != expected[1].argmax()
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-6)
    assert module.dense == (name not in FIXED)
    assert (module.linear is not None) == (module.dense and name not in LAYERS_BEHIND_POOL)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1"])
def test_windows_survive_the_conversion(name: str) -> None:
    """Two images of several windows each keep their own answers."""
    module, _ = seeded(name)
    crop = MODELS[name].transforms.crop
    noise = np.random.default_rng(0).integers(0, 256, (2, crop + 50, crop + 120, 3), dtype=np.uint8)
    views = np.concatenate([tta.views(image, "dense", crop) for image in noise])
    assert views.shape == (2, crop + 32, crop + 96, 3)
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    converted = convert.to_openvino(module, crop)
    model = openvino.compile_model(converted, "CPU", exact)
    with torch.inference_mode():
        expected = module(torch.from_numpy(views)).numpy()
    assert np.abs(model(views)[0] - expected).max() < 1e-4
    assert convert.behind_linear(converted)


def test_the_table_of_families_has_what_was_measured() -> None:
    close = Proof(
        photographs=3,
        views=18,
        mean_difference=0.0001,
        largest_difference=0.0,
        agreement=1.0,
        largest_sum_error=0.0,
    )
    far = close.model_copy(update={"mean_difference": 0.34, "agreement": 0.22})
    exact = families.judged(30.04, 44.96, close, "fp32")
    quantized = families.judged(8.06, 11.24, far, "int8")
    half = families.judged(17.0, 44.96, close, "bf16")
    row = families.Row("resnet18", 224, True, False, exact, quantized, half, 1.02)
    cells = families.markdown([row]).splitlines()[2].strip("| ").split(" | ")
    assert cells[:4] == ["`resnet18`", "224", "yes", "no"]
    assert cells[4:9] == ["30.0", "17.0", "8.1", "45.0", "11.2"]
    assert cells[9:11] == ["passes: 0.0001, 100%"] * 2
    assert cells[11:] == ["refused: 0.34, 22%", "1.02"]


def test_every_classifier_of_torchvision_is_there_by_its_name() -> None:
    assert set(tv.list_models(module=tv)) < MODELS.keys()
    weights = MODELS["vit_h_14"]
    assert (weights.transforms.crop, weights.any_size) == (518, False)
