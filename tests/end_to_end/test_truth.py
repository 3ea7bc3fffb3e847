"""Every figure of an answer, over HTTP, against torchvision's own transforms and PyTorch."""

import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, functional

from tests.end_to_end.test_own_model import DRAWN, drawn
from tests.helpers import REAL, write_config
from visionserve.classifier import Classifier
from visionserve.config import TTA, ModelConfig, Options
from visionserve.item import Item
from visionserve.models import IMAGENET_CATEGORIES, MODELS
from visionserve.processor import multiplies_bf16, overflows
from visionserve_tools import paths, photos
from visionserve_tools.archive import convert
from visionserve_tools.archive.groups import find_groups, read_groups
from visionserve_tools.archive.recipe import Recipe, build
from visionserve_tools.archive.weights import load_state_dict, resolve
from visionserve_tools.quality import generated
from visionserve_tools.server.client import Client
from visionserve_tools.server.torchserve import TorchServe

CLASSES = len(IMAGENET_CATEGORIES)
PHOTOGRAPHS = [path for path in photos.packaged() if path.name in ("coffee.png", "china.jpg")]
# Largest difference of any class's probability: by rounding, by a resize of the centre alone,
# by eight bits.
ODD = paths.PHOTOGRAPHS.parent / "odd-images"
ODD_ANSWERED = (
    *("01bmp24_os2v2short16.bmp", "01bmp32_v5_alphamask_alpha0.bmp", "02png_L4_trns_big.png"),
    *("05rgb16_planar_tif.tif", "06exif6_webp.webp", "06xmp6_only.jpg", "30dnl_height0.jpg"),
    *("30png_bad_crc_ancillary.png", "30png_big_ztxt_2mb.png", "31png_iccp_1.2mb.png"),
)
ODD_REFUSED = {
    "01bmp32_bitfields_101010.bmp": ("unsupported_pixels", "10, 10, 10 bits"),
    "05rgb32f_tif.tif": ("unsupported_pixels", "floats of 32 bits"),
    "10jpg_12bit.jpg": ("unsupported_pixels", "12 bits"),
    "10jpg_crlf_mangled.jpg": ("corrupt_image", "send it as binary"),
    "10jpg_no_eoi.jpg": ("truncated_image", "truncated"),
    "20cr2_header.cr2": ("unsupported_format", "export it as JPEG"),
    "20dng_cfa_first.dng": ("unsupported_format", "export it as JPEG"),
    "20jls.jls": ("unsupported_pixels", "JPEG-LS"),
}
PROFILES = {"server in FP32": 2e-5, "server": 2e-5, "gpu-t4": 0.02, "local": 0.2}
if multiplies_bf16():
    PROFILES["server"] = 0.08
# Smallest cosine of features, by rounding to four digits, by a resize of the centre, by eight bits.
COSINES = {"server in FP32": 0.99999, "server": 0.995, "gpu-t4": 0.99, "local": 0.9}
Figures = tuple[NDArray[np.float32], NDArray[np.float32]]


def crops(resized: Image.Image, mode: TTA) -> list[Image.Image]:
    """Cut as torchvision's transforms do."""
    match mode:
        case "none":
            return [functional.center_crop(resized, [224])]
        case "five_crop":
            return list(functional.five_crop(resized, [224]))
        case "ten_crop":
            return list(functional.ten_crop(resized, [224]))
    raise KeyError(mode)


def dense(
    network: Any, resized: Image.Image, tensor_of: Callable[[Image.Image], Tensor]
) -> tuple[Tensor, Tensor]:
    """Average the softmax over every 7 x 7 window of the features of the image's centre."""
    width, height = (
        max(one for one in (256, 320, 448, 640, 1024) if one <= side) for side in resized.size
    )
    left, top = (resized.width - width) // 2, (resized.height - height) // 2
    features = network.extract_features(
        tensor_of(functional.crop(resized, top, left, height, width))
    )
    windows = features.unfold(2, 7, 1).unfold(3, 7, 1).mean((-1, -2)).permute(0, 2, 3, 1)
    return network._fc(windows).softmax(-1).mean((1, 2))[0], windows.mean((1, 2))[0]


def cosine(one: NDArray[Any], other: NDArray[Any]) -> float:
    assert one.shape == other.shape
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def tensor_of(image: Image.Image) -> Tensor:
    normalized: Tensor = functional.normalize(functional.to_tensor(image), [0.5] * 3, [0.5] * 3)
    return normalized[None]


@pytest.fixture(scope="module")
def network() -> Any:
    network = MODELS[REAL].build(CLASSES).eval()
    network.load_state_dict(load_state_dict(resolve(REAL), network.state_dict()))
    return network


@pytest.fixture(scope="module")
def expected(network: Any) -> Callable[[Path, TTA], Figures]:
    """Probabilities of all classes by PyTorch in FP32, and what its last layer gets."""

    @cache
    @torch.inference_mode()
    def figures(path: Path, mode: TTA) -> Figures:
        image = Image.open(path).convert("RGB")
        resized = functional.resize(image, [256], InterpolationMode.BICUBIC)
        if mode == "dense":
            averaged, features = dense(network, resized, tensor_of)
        else:
            batch = torch.cat([tensor_of(crop) for crop in crops(resized, mode)])
            averaged = network(batch).softmax(-1).mean(0)
            features = network.extract_features(batch).mean((0, 2, 3))
        return averaged.numpy(), features.numpy()

    return figures


@pytest.fixture(scope="module")
def served(
    client: Client, server: TorchServe, store: Path, int8_archive: Path, tmp_path_factory: Any
) -> Iterator[dict[str, str]]:
    """Each profile's archive in the session's server; the server profile's in FP32 is there.

    Each has one worker, as it answers one request after the other.
    """
    names = {"server in FP32": REAL, "local": int8_archive.stem}
    archives = [int8_archive]
    for profile in ("server", "gpu-t4"):
        name = names[profile] = f"of_{profile}"
        config = tmp_path_factory.mktemp(profile) / "model-config.yaml"
        settings = yaml.safe_load((paths.CONFIG / profile / config.name).read_text())
        config.write_text(yaml.safe_dump(settings | {"minWorkers": 1}))
        recipe = Recipe(REAL, name, "1.0", config, calibration=photos.greeting().parent)
        archives.append(build(recipe, store))
    for archive in archives:
        server.admit(archive.name)
        client.register(archive.name, model_name=archive.stem)
    try:
        yield names
    finally:
        for archive in archives:
            client.unregister(archive.stem)


def test_the_edge_profile_answers_as_the_local_one() -> None:
    edge, local = (
        ModelConfig.load(paths.CONFIG / profile / "model-config.yaml").handler
        for profile in ("edge", "local")
    )
    assert edge.model_copy(update={"cache": local.cache}) == local
    assert {"edge", *PROFILES} == {"server in FP32", *paths.profiles()}


@pytest.mark.parametrize("mode", get_args(TTA))
@pytest.mark.parametrize("profile", PROFILES)
def test_the_whole_distribution_is_pytorchs(
    client: Client,
    served: dict[str, str],
    expected: Callable[[Path, TTA], Figures],
    profile: str,
    mode: TTA,
) -> None:
    """Sum, largest difference, order and features; and an answer from the cache says the same.

    Without VNNI, either of two classes may come first that differ by less than INT8 may be off.
    """
    tie = PROFILES[profile] if profile == "local" and overflows() else 0
    for path in PHOTOGRAPHS:
        (reference, features), data = expected(path, mode), path.read_bytes()
        asked: dict[str, Any] = {"top_k": CLASSES, "tta": mode, "features": True}
        fresh = client.predict(served[profile], data, **asked).json()
        assert "cached" not in fresh and fresh["tta"] == mode
        shown = [prediction["probability"] for prediction in fresh["predictions"]]
        order = [prediction["class_id"] for prediction in fresh["predictions"]]
        assert abs(sum(shown) - 1) < 1e-3
        assert shown == sorted(shown, reverse=True) and sorted(order) == list(range(CLASSES))
        assert np.abs(np.array(shown) - reference[order]).max() < PROFILES[profile]
        assert reference.max() - reference[order[0]] <= tie
        assert fresh["confident"] == (shown[0] >= 0.5)
        assert cosine(np.array(fresh["features"]), features) > COSINES[profile]
        labels = [prediction["label"] for prediction in fresh["predictions"]]
        assert labels == [IMAGENET_CATEGORIES[index] for index in order]
        if profile == "server in FP32":
            assert order[:5] == list((-reference).argsort()[:5])
        else:
            again = client.predict(served[profile], data, **asked).json()
            assert again == fresh | {"cached": True}


def test_the_server_profile_says_what_it_computes_in(
    client: Client, served: dict[str, str], server: TorchServe
) -> None:
    """In the card, and in the log where it is FP32; what the configuration names goes unsaid."""
    card, exact = (client.card(served[profile]) for profile in ("server", "server in FP32"))
    assert card["precision"] == ("bf16" if multiplies_bf16() else "fp32")
    assert card["proof"]["precision"] == card["precision"]
    assert "BF16" in card["computes"] and "computes" not in exact
    logged = (server.state / "logs" / "model_log.log").read_text()
    assert ("Precision auto: the model computes" in logged) != multiplies_bf16()


@pytest.mark.skipif(not ODD.exists(), reason=f"{ODD} is absent")
def test_odd_images_are_answered_like_what_they_show_or_named(
    client: Client, server: TorchServe, expected: Callable[[Path, TTA], Figures]
) -> None:
    """Through the whole chain, each against a plain PNG of its picture, or PyTorch."""

    def probabilities(data: bytes) -> list[float]:
        answer = client.predict(REAL, data, top_k=CLASSES, tta="none").json()
        ranked = {one["class_id"]: one["probability"] for one in answer["predictions"]}
        return [ranked[index] for index in range(CLASSES)]

    for name, (code, words) in ODD_REFUSED.items():
        response = client.predict(REAL, (ODD / name).read_bytes())
        error = response.json()["error"]
        assert response.status_code == (415 if "unsupported" in code else 422), name
        assert error["code"] == code and words in error["message"], name
    for name in ODD_ANSWERED:
        found = probabilities((ODD / name).read_bytes())
        theirs = probabilities((ODD / "expected" / name).with_suffix(".png").read_bytes())
        most = 0.02 if name.endswith(".jpg") else PROFILES["server in FP32"]  # A PNG has no loss.
        assert np.abs(np.subtract(found, theirs)).max() < most, name
    phone = ODD / "07iphone24mp_5712x4284.jpg"
    reference, _ = expected(phone, "none")
    assert np.abs(probabilities(phone.read_bytes()) - reference).max() < 0.02


@pytest.mark.parametrize("profile", ["server", "local"])
def test_what_is_unfamiliar_is_so_by_pytorch(
    client: Client,
    network: Any,
    expected: Callable[[Path, TTA], Figures],
    tmp_path: Path,
    profile: str,
    request: pytest.FixtureRequest,
) -> None:
    """ReAct, ASH-S and the energy of PyTorch's own features; of INT8, of those that it gives."""
    model = REAL if profile == "server" else request.getfixturevalue("served")[profile]
    known = client.card(model)["familiarity"]
    pictures = [*PHOTOGRAPHS, *sorted(paths.PHOTOGRAPHS.glob("*.JPEG"))[::100]]
    for kind, data in generated.pictures(1, seed=1):
        pictures.append(tmp_path / f"{kind}.png")
        pictures[-1].write_bytes(data)
    told = []
    for mode in ("none", "dense"):
        threshold = known["thresholds"][mode]
        for path in pictures:
            asked: dict[str, Any] = {"tta": mode, "features": True}
            answer = client.predict(model, path.read_bytes(), **asked).json()
            exact = expected(path, mode)[1] if profile == "server" else answer["features"]
            features = torch.tensor(exact, dtype=torch.float32)
            clipped, strongest = features.clip(max=threshold["clip"]), features.topk(448).indices
            left = torch.zeros_like(features)
            left[strongest] = clipped[strongest] * (clipped.sum() / clipped[strongest].sum()).exp()
            with torch.inference_mode():
                score = float(network._fc(left).logsumexp(0))
            off = score / threshold["score"] - 1
            if abs(off) > 0.002:
                assert answer["unfamiliar"] == (off < 0), (path, mode)
                told.append(off < 0)
            if answer["unfamiliar"]:
                assert answer["warning"].startswith("Probably none of the model's classes")
    assert sum(told) >= 8 and len(told) - sum(told) >= 3


def test_as_many_answers_are_confident_as_in_fp32(
    client: Client, served: dict[str, str], samples: list[Path]
) -> None:
    """Of 50 photographs, within four points; of more in INT8, `test_runtimes` says so."""

    def confident(model: str) -> int:
        answers = [client.predict(model, path.read_bytes(), tta="none") for path in samples[::10]]
        return sum(answer.json()["confident"] for answer in answers)

    exact = confident(served["server"])
    assert exact > 30
    assert abs(confident(served["gpu-t4"]) - exact) <= 2


# A plain model, and one of everyday groups of its classes.
PAIRS = {REAL: "grouped", "few": "few_grouped"}


@pytest.fixture(scope="module")
def ask(
    client: Client, server: TorchServe, store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Any]]:
    """Ask one of `PAIRS`: in FP32 the session's server, and in INT8 what its worker would ask.

    Those of INT8 are quantized on a few samples alone, which are the same for both. Their network
    is a small one, whose classes differ by a bias.
    """
    root = tmp_path_factory.mktemp("grouped")
    net = drawn(CLASSES)
    net.fc = nn.Linear(net.fc.in_features, CLASSES)
    nn.init.normal_(net.fc.weight, std=0.02)
    nn.init.normal_(net.fc.bias, std=2)
    torch.save(net.state_dict(), root / "few.pt")
    everyday, cat = find_groups("everyday"), photos.greeting().parent
    int8 = Recipe(
        *(DRAWN, "few", "1.0", write_config(root, precision="int8")),
        *(root / "few.pt",),
        calibration=cat,
    )
    few: dict[str, Classifier] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert, "SAMPLES", 4)
        patch.setattr(convert, "CLOSE", 1)
        for recipe in (int8, replace(int8, name="few_grouped", groups=everyday)):
            with zipfile.ZipFile(build(recipe, root / "store")) as packed:
                packed.extractall(root / recipe.name)
            config = ModelConfig.load(recipe.config)
            few[recipe.name] = Classifier.from_archive(root / recipe.name, config, None, "1.0")
    exact = write_config(root, workers=1)
    build(Recipe(REAL, "grouped", "1.0", exact, calibration=cat, groups=everyday), store)
    server.register("grouped.mar")

    def ask(model: str, path: Path, **options: Any) -> Any:
        if model not in few:
            return client.predict(model, path.read_bytes(), **options).json()
        (answer,) = few[model].classify([Item(path.read_bytes(), Options(**options))])
        return answer

    try:
        yield ask
    finally:
        client.unregister("grouped")


@pytest.mark.parametrize("mode", ["five_crop", "dense"])
def test_groups_are_sums_of_the_plain_models_classes(
    client: Client,
    ask: Callable[..., Any],
    expected: Callable[[Path, TTA], Figures],
    mode: TTA,
) -> None:
    """Of all groups, by the same precision and by PyTorch; in Chinese, and told by the card."""
    groups = read_groups(find_groups("everyday"), IMAGENET_CATEGORIES)
    described = client.card("grouped")["groups"]
    assert {name: tuple(indices) for name, indices in described.items()} == groups.members
    assert client.card(REAL).get("groups") is None
    for plain, model in PAIRS.items():
        for path in PHOTOGRAPHS:
            classes, answer = (
                ask(name, path, top_k=top_k, tta=mode, language="zh")
                for name, top_k in ((plain, CLASSES), (model, len(groups.members)))
            )
            shown = {one["class_id"]: one["probability"] for one in classes["predictions"]}
            sums = {
                name: sum(shown[index] for index in indices)
                for name, indices in groups.members.items()
            }
            found = {one["label"]: one["probability"] for one in answer["predictions"]}
            assert found == pytest.approx(sums, abs=5e-5)
            assert list(found.values()) == sorted(found.values(), reverse=True)
            names = {one["label"]: one["name"] for one in answer["predictions"]}
            assert names == groups.names["zh"]
            if model == "grouped":
                exact, _ = expected(path, mode)
                summed = {name: exact[list(of)].sum() for name, of in groups.members.items()}
                assert found == pytest.approx(summed, abs=2e-5)


def test_the_map_of_a_group_is_its_probabilitys_gradient_times_the_features(
    ask: Callable[..., Any], network: Any
) -> None:
    """By PyTorch's autograd, of the logarithm of the group's summed exponentials.

    In INT8, a mean of the plain model's maps, of which each counts by its class's probability.
    """
    groups = read_groups(find_groups("everyday"), IMAGENET_CATEGORIES).members
    for path in PHOTOGRAPHS:
        resized = functional.resize(
            Image.open(path).convert("RGB"), [256], InterpolationMode.BICUBIC
        )
        with torch.inference_mode():
            features = network.extract_features(tensor_of(functional.center_crop(resized, [224])))
        features = features.clone().requires_grad_()
        logits = network._fc(features.mean((2, 3)))[0]
        asked = {model: len(groups) for model in PAIRS.values()} | {"few": CLASSES}
        explained = {
            model: ask(model, path, tta="none", top_k=top_k, explain=True)
            for model, top_k in asked.items()
        }
        maps = {
            model: {
                one["label"]: (one["probability"], np.array(one["explanation"]["grid"]))
                for one in answer["predictions"]
            }
            for model, answer in explained.items()
        }
        grids = {label: grid for label, (_, grid) in maps["grouped"].items()}
        assert grids.keys() == groups.keys()
        for name, grid in grids.items():
            logit = logits[list(groups[name])].logsumexp(0)
            (gradient,) = torch.autograd.grad(logit, features, retain_graph=True)
            reference = 49 * (gradient * features).sum(1)[0].detach().numpy()
            assert np.abs(grid - reference).max() < 2e-3 * np.abs(reference).max(), name
        best, (_, found) = next(iter(maps["few_grouped"].items()))
        shares, plain = zip(
            *(maps["few"][IMAGENET_CATEGORIES[index]] for index in groups[best]), strict=True
        )
        mean = np.average(plain, axis=0, weights=shares)
        assert np.abs(found - mean).max() < 2e-3 * np.abs(mean).max()


def test_the_map_of_a_dense_view_weighs_classes_by_its_windows_mean(
    ask: Callable[..., Any],
    expected: Callable[[Path, TTA], Figures],
    network: Any,
) -> None:
    groups = read_groups(find_groups("everyday"), IMAGENET_CATEGORIES).members
    path = PHOTOGRAPHS[0]
    resized = functional.resize(Image.open(path).convert("RGB"), [256], InterpolationMode.BICUBIC)
    width, height = (
        max(one for one in (256, 320, 448, 640, 1024) if one <= side) for side in resized.size
    )
    corner = (resized.height - height) // 2, (resized.width - width) // 2
    with torch.inference_mode():
        features = network.extract_features(
            tensor_of(functional.crop(resized, *corner, height, width))
        )
        maps = torch.einsum("kc,crs->rsk", network._fc.weight, features[0]).numpy()
    probabilities, _ = expected(path, "dense")
    answer = ask("grouped", path, tta="dense", explain=True)
    for one in answer["predictions"]:
        members = list(groups[one["label"]])
        reference = np.average(maps[..., members], axis=-1, weights=probabilities[members])
        grid = np.array(one["explanation"]["grid"])
        assert grid.shape == reference.shape
        assert np.abs(grid - reference).max() < 2e-3 * np.abs(reference).max()
