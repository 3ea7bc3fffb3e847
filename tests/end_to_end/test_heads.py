"""Networks that say yes or no, or several things, against PyTorch's own sigmoid of the pictures."""

import base64
import csv
import json
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score
from torch import nn
from torchvision import models as tv
from torchvision import transforms as T  # noqa: N812

from tests.end_to_end.browser import Browser
from tests.end_to_end.test_own_model import (
    DRAWN,
    IMAGENET,
    LABELS,
    PICTURES,
    STEPS,
    TRAINED,
    Small,
    drawn,
    figures,
    network,
    predict,
    steps,
)
from tests.helpers import SMALL, called, write_config
from visionserve.classifier import Classifier
from visionserve.config import HandlerConfig, ModelConfig
from visionserve.metadata import FILE, Metadata, Transforms
from visionserve_tools import photos
from visionserve_tools.archive import alternatives, convert, expected
from visionserve_tools.archive.expected import ExpectationError
from visionserve_tools.archive.proof import LIMITS
from visionserve_tools.archive.recipe import Recipe, build
from visionserve_tools.archive.serving import answers
from visionserve_tools.archive.weights import Weights, WeightsError
from visionserve_tools.commands import calibrate, evaluate, robustness
from visionserve_tools.server.client import Client
from visionserve_tools.server.torchserve import TorchServe

THRESHOLDS = {label: round(0.3 + 0.05 * index, 2) for index, label in enumerate(LABELS)}
CROPS = T.Compose([T.Resize(256), T.FiveCrop(224)])
READY = T.Compose([T.ToTensor(), IMAGENET])


@cache
@torch.inference_mode()
def several(is_trained: bool = False) -> tv.ResNet | tv.ShuffleNetV2:
    """A network of nine labels, about half of which each picture gets."""
    net = network() if is_trained else drawn()
    logits = net(torch.stack([steps()(Image.open(path).convert("RGB")) for path in PICTURES]))
    # A drawn network's median would be a half to the last digit, which is a threshold.
    middle = logits.median(0).values - (0 if is_trained else 0.1)
    net.fc.bias = nn.Parameter(net.fc.bias - middle)
    return net


@cache
@torch.inference_mode()
def single() -> tv.ShuffleNetV2:
    """A network of one output, which is positive for about half of the pictures."""
    return drawn(1)


@torch.inference_mode()
def sigmoids(net: nn.Module, path: Path, five: bool = False) -> NDArray[Any]:
    """What PyTorch says of a picture's centre, or in the mean of five crops."""
    image = Image.open(path).convert("RGB")
    crops = [READY(crop) for crop in CROPS(image)] if five else [steps()(image)]
    found: NDArray[Any] = net(torch.stack(crops)).double().sigmoid().mean(0).numpy()
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the weights, labels and thresholds of these networks."""
    root = tmp_path_factory.mktemp("heads")
    torch.save(several().state_dict(), root / "several.pt")
    torch.save(single().state_dict(), root / "one.pt")
    (root / "pictures").mkdir()
    for path in PICTURES:
        shutil.copy(path, root / "pictures")
    (root / "nine.txt").write_text("\n".join(LABELS))
    (root / "defect.txt").write_text("defect\n")
    (root / "pair.txt").write_text("fine\ndefect\n")
    (root / "thresholds.json").write_text(json.dumps(THRESHOLDS))
    figures(root / "expected.csv", np.stack([sigmoids(several(), path) for path in PICTURES]))
    return root


def recipe(made: Path, name: str, weights: str, labels: str, **others: Any) -> Recipe:
    """A recipe of a folder of its own, so that configurations differ, proved on one photograph."""
    folder = made / name
    folder.mkdir(exist_ok=True)
    handler = others.pop("handler", {})
    config = write_config(folder, workers=1, **handler)
    architecture = "resnet18" if weights == "trained" else DRAWN
    return Recipe(
        *(architecture, name, "1.0", config, made / f"{weights}.pt", made / f"{labels}.txt"),
        **{"activation": "sigmoid", "calibration": photos.greeting().parent, **others},
    )


@pytest.fixture(scope="module")
def archives(made: Path, store: Path) -> dict[str, Path]:
    """Archives of several labels in FP32, and INT8 where weights are trained; and of one label."""
    limits = {"thresholds": made / "thresholds.json"}
    plain = {"expect": made / "expected.csv", "handler": {"defaults": {"tta": "none"}}}
    recipes = {
        "tags": recipe(made, "tags", "several", "nine", **limits, **plain),
        "defect": recipe(made, "defect", "one", "defect", handler={"runtime": "pytorch"}),
    }
    if TRAINED.exists():
        torch.save(several(is_trained=True).state_dict(), made / "trained.pt")
        int8 = {"handler": {"precision": "int8"}, "calibration": made / "pictures"}
        recipes["tags8"] = recipe(made, "tags8", "trained", "nine", **limits, **int8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert, "SAMPLES", 12)
        patch.setattr(convert, "CLOSE", 1)
        return {name: build(one, store) for name, one in recipes.items()}


@pytest.fixture(scope="module")
def served(archives: dict[str, Path], server: TorchServe, client: Client) -> Iterator[Client]:
    for archive in archives.values():
        server.register(archive.name)
    yield client
    for name in archives:
        client.unregister(name)


def by_label(answer: dict[str, Any]) -> dict[str, float]:
    return {one["label"]: one["probability"] for one in answer["predictions"]}


@pytest.mark.parametrize("name", ["tags", "tags8", "defect"])
def test_each_label_has_the_probability_that_pytorch_gives_it(
    name: str, served: Client, archives: dict[str, Path]
) -> None:
    """From the bytes of a picture, over HTTP: all probabilities, and the labels they make."""
    if name not in archives:
        pytest.skip(f"{TRAINED} is absent, and INT8 of drawn weights proves nothing")
    net: nn.Module = single() if name == "defect" else several(is_trained=name == "tags8")
    labels = ("defect",) if name == "defect" else LABELS
    limits = THRESHOLDS if name != "defect" else {"defect": 0.5}
    differences, seen = [], set()
    for path in PICTURES:
        for tta in ("none", "five_crop"):
            wanted = dict(zip(labels, sigmoids(net, path, tta == "five_crop"), strict=True))
            response = served.predict(name, path.read_bytes(), tta=tta, top_k=len(labels))
            answer = response.json()
            found = by_label(answer)
            assert list(found.values()) == sorted(found.values(), reverse=True)
            differences.append([found[label] - wanted[label] for label in labels])
            above = [label for label, p in found.items() if p >= limits[label]]
            assert answer["labels"] == above
            assert answer["confident"] is (bool(above) or name == "defect")
            seen |= {*above} if above else {""}
    means = np.abs(differences).mean(axis=0)
    print(name, "mean |Δp| of each label", means, "largest", np.abs(differences).max())
    if name == "tags8":
        assert means.max() < LIMITS["int8"].difference
    else:
        assert np.abs(differences).max() < 1e-4
    assert len(seen) > 1, "the pictures must differ"


def test_every_door_has_the_labels(served: Client) -> None:
    data, headers = PICTURES[0].read_bytes(), served.token("inference")
    text = base64.b64encode(data).decode()
    answer = served.predict("tags", data, tta="none").json()
    labels = answer["labels"]
    assert len(labels) > 1 and len(answer["predictions"]) == 3

    def post(path: str, **request: Any) -> Any:
        url = f"{served.inference}{path}"
        return requests.post(url, headers=headers, timeout=60, **request).json()

    form = {"files": {"data": data}, "data": {"tta": "none", "threshold": "1"}}
    strict = post("/predictions/tags", **form)
    assert (strict["labels"], strict["confident"]) == ([], False)
    assert strict["warning"].startswith("No label reaches its threshold")
    assert by_label(strict) == by_label(answer), "the threshold changes no probability"
    v1 = post("/v1/models/tags:predict", json={"instances": [{"b64": text}], "tta": "none"})
    assert v1["predictions"][0]["labels"] == labels
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [text]}
    v2 = post("/v2/models/tags/infer", json={"inputs": [tensor], "parameters": {"tta": "none"}})
    outputs = {one["name"]: one for one in v2["outputs"]}
    assert json.loads(outputs["labels"]["data"][0]) == labels
    explained = post("/explanations/tags", data=data)
    assert all(len(one["explanation"]["grid"]) > 1 for one in explained["predictions"])
    card = served.card("tags")
    assert (card["activation"], card["thresholds"]) == ("sigmoid", THRESHOLDS)
    refused = served.predict("tags", data, threshold="high").json()
    assert refused["error"]["code"] == "invalid_option"


def test_features_are_what_the_last_layer_of_pytorch_gets(served: Client) -> None:
    net = deepcopy(several())
    net.fc = nn.Identity()
    with torch.inference_mode():
        wanted = net(steps()(Image.open(PICTURES[0]).convert("RGB"))[None])[0].numpy()
    answer = served.predict("tags", PICTURES[0].read_bytes(), tta="none", features=True).json()
    found = np.array(answer["features"])
    assert found @ wanted / np.linalg.norm(found) / np.linalg.norm(wanted) > 0.9999
    assert answer["labels"] and "plausible" not in answer


def test_maps_are_of_the_logits(served: Client) -> None:
    """The mean of a label's grid over the crop, and the bias, are PyTorch's logit."""
    net = several()
    path = PICTURES[0]
    options: dict[str, Any] = {"tta": "none", "explain": "true", "top_k": 9}
    answer = served.predict("tags", path.read_bytes(), **options).json()
    with torch.inference_mode():
        logits = net(steps()(Image.open(path).convert("RGB"))[None])[0].numpy()
    for one in answer["predictions"]:
        grid, index = np.array(one["explanation"]["grid"]), one["class_id"]
        bias = float(net.fc.bias[index])
        assert grid.mean() + bias == pytest.approx(logits[index], abs=0.01)


def rectified() -> tv.SqueezeNet:
    """A network of one output behind a ReLU."""
    torch.manual_seed(0)
    net = tv.squeezenet1_1(num_classes=1).eval()
    net.classifier[1].weight.data *= 100
    return net


@pytest.mark.parametrize(("architecture", "owned"), [(DRAWN, single), (SMALL, rectified)])
def test_one_output_with_two_labels_has_a_complement(
    architecture: str, owned: Callable[[], nn.Module], tmp_path: Path
) -> None:
    """It sums to 1, and is answered like any other model of two classes."""
    net, config = owned(), ModelConfig.load(write_config(tmp_path))
    torch.save(net.state_dict(), tmp_path / "one.pt")
    source = Weights(tmp_path / "one.pt", "", "")
    metadata = convert.convert(
        *(architecture, source, ("fine", "defect"), config.handler, PICTURES[:1], tmp_path),
        activation="sigmoid",
    )
    (tmp_path / FILE).write_text(metadata.model_dump_json())
    assert (metadata.activation, metadata.thresholds) == ("softmax", ())
    classifier = Classifier.from_archive(tmp_path, config, None, "1.0")
    found = answers(classifier, PICTURES)
    wanted = np.concatenate([sigmoids(net, path) for path in PICTURES])
    assert np.ptp(wanted) > 0.1, "the pictures must differ"
    assert np.abs(found - np.stack([1 - wanted, wanted], 1)).max() < 1e-4
    with pytest.raises(ValueError, match="has no thresholds: the better one is the answer"):
        convert.convert(
            *(architecture, source, ("fine", "defect"), config.handler, PICTURES[:1], tmp_path),
            activation="sigmoid",
            thresholds=(0.5, 0.5),
        )


@pytest.mark.parametrize(
    ("weights", "labels", "others", "complaint"),
    [
        ("one", "defect", {"activation": "softmax"}, "softmax of one output is 1 for every pict"),
        ("one", "pair", {"activation": "softmax"}, "one.pt has one output, whose softmax is 1"),
        ("one", "nine", {}, r"one\.pt has 1 classes, but .*nine\.txt has 9 labels"),
        ("several", "pair", {}, r"several\.pt has 9 classes, but"),
        ("several", "nine", {"activation": "softmax", "thresholds": 1}, "those of a multi-label"),
        ("several", "defect", {"thresholds": 1}, "the archive has no label dog"),
        ("several", "joined", {}, "a;b: a semicolon separates labels; rename it"),
    ],
)
def test_a_head_that_does_not_fit_is_told_in_one_line(
    weights: str, labels: str, others: dict[str, Any], complaint: str, made: Path, tmp_path: Path
) -> None:
    """One output was served as 1.0 for every picture."""
    (made / "joined.txt").write_text("\n".join(["a;b", *LABELS[1:]]))
    others = others | ({"thresholds": made / "thresholds.json"} if "thresholds" in others else {})
    with pytest.raises((WeightsError, ValueError), match=complaint) as raised:
        build(recipe(made, "refused", weights, labels, **others), tmp_path)
    assert "\n" not in str(raised.value) and not any(tmp_path.glob("*.mar"))
    if others.get("activation") == "softmax" and weights == "one":
        assert "--activation sigmoid" in str(raised.value)


@pytest.mark.parametrize(
    ("owner", "activation", "advice"),
    [
        ("imagenet", "softmax", "--activation sigmoid"),
        ("half", "softmax", "--activation sigmoid. And they fit mean = std = 0.5: --mean 0.5"),
        ("imagenet", "sigmoid", "--activation softmax"),
        ("BGR", "sigmoid", "BGR: --channels bgr"),
    ],
)
def test_the_activation_that_would_fit_the_owners_figures_is_said(
    owner: str, activation: Any, advice: str, tmp_path: Path
) -> None:
    net, transform = Small().eval(), STEPS[owner]
    found = predict(net, transform)
    if advice != "--activation softmax":
        found = np.stack([sigmoid(net, transform, path) for path in PICTURES])
    wanted = expected.read(figures(tmp_path / "own.csv", found))
    own = (activation, (0.5,) * 9) if activation == "sigmoid" else ("softmax", ())
    with pytest.raises(ExpectationError) as raised:
        alternatives.check(net, Transforms(), LABELS, wanted, HandlerConfig(), *own)
    assert f". Your figures fit {advice}" in str(raised.value)
    if owner == "imagenet":
        right: Any = ("softmax", ()) if activation == "sigmoid" else ("sigmoid", (0.5,) * 9)
        alternatives.check(net, Transforms(), LABELS, wanted, HandlerConfig(), *right)


@torch.inference_mode()
def sigmoid(net: nn.Module, transform: Any, path: Path) -> NDArray[np.float32]:
    found: NDArray[np.float32] = (
        net(transform(Image.open(path).convert("RGB"))[None])[0].sigmoid().numpy()
    )
    return found


def test_figures_that_are_neither_are_told_by_their_sum(tmp_path: Path) -> None:
    net = Small().eval()
    odd: NDArray[np.float32] = predict(net, steps()) / np.float32(2)
    wanted = expected.read(figures(tmp_path / "own.csv", odd))
    with pytest.raises(ValueError, match=r"line 2: the probabilities sum to 0\.5, not 1"):
        alternatives.check(net, Transforms(), LABELS, wanted, HandlerConfig())


def run(module: Any, *arguments: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["visionserve", *map(str, arguments)])
        code: int = module.main()
        return code


def metadata_of(archive: Path) -> Metadata:
    with zipfile.ZipFile(archive) as packed:
        return Metadata.model_validate_json(packed.read(FILE))


def test_an_archive_is_measured_and_its_thresholds_are_fitted(
    archives: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By scikit-learn's figures of PyTorch's probabilities; the owner's figures vouch for it."""
    pictures = photos.packaged()
    stacked = np.stack([sigmoids(several(), path) for path in pictures])
    archive = Path(shutil.copy(archives["tags"], tmp_path))
    shutil.copy(archives["tags"].with_suffix(".json"), tmp_path)
    comparison = metadata_of(archive).comparison
    assert comparison and comparison.photographs == len(PICTURES)
    assert comparison.largest_difference < 1e-4 and comparison.agreement == 1

    dice = np.random.default_rng(1)
    truth = stacked + dice.normal(0, 0.2, stacked.shape) > 0.5
    columns, joined = tmp_path / "columns.csv", tmp_path / "joined.csv"
    with columns.open("w", newline="") as one, joined.open("w", newline="") as other:
        csv.writer(one).writerow(["path", *LABELS])
        csv.writer(other).writerow(["path", "labels"])
        for path, marks in zip(pictures, truth, strict=True):
            csv.writer(one).writerow([path, *map(int, marks)])
            labels = [label for label, is_shown in zip(LABELS, marks, strict=True) if is_shown]
            csv.writer(other).writerow([path, ";".join(labels)])

    def measured(labels: Path, probabilities: NDArray[np.float64]) -> float:
        folder = tmp_path / labels.stem
        assert run(evaluate, labels, "--archive", archive, "--output", folder) == 0
        (found,) = json.loads((folder / "evaluation.json").read_text())["figures"]
        given = probabilities >= np.array(metadata_of(archive).thresholds)
        judged = truth.any(axis=0)
        precise = average_precision_score(truth[:, judged], stacked[:, judged], average="macro")
        assert found["mAP"] == pytest.approx(precise)
        for name in ("micro", "macro"):
            score = f1_score(truth, given, average=name, zero_division=np.nan)
            assert found[f"f1 {name}"] == pytest.approx(score), name
        assert found["exact"] == pytest.approx((truth == given).all(axis=1).mean())
        classes = list(csv.DictReader((folder / "classes.csv").open(encoding="utf-8", newline="")))
        assert [one["label"] for one in classes] == list(LABELS)
        assert [int(one["support"]) for one in classes] == truth.sum(axis=0).tolist()
        return float(found["f1 macro"])

    before = measured(columns, stacked)
    assert run(calibrate, joined, "--archive", archive, "--modes", "none") == 0
    described = metadata_of(archive)
    fitted = described.temperatures["none"]
    assert described.plausible == {}
    kept = json.loads(archive.with_suffix(".json").read_text())["made_of"]
    assert kept["recipe"]["activation"] == "sigmoid"
    assert kept["fitted"]["thresholds"] == dict(zip(LABELS, described.thresholds, strict=True))

    def loss(temperature: float) -> float:
        logits = np.log(stacked / (1 - stacked)) / temperature
        return float(np.logaddexp(0, np.where(truth, -logits, logits)).mean())

    assert loss(fitted) <= min(loss(fitted * factor) for factor in (0.97, 1.03)) + 1e-6
    assert "| label | pictures | threshold | F1 |" in capsys.readouterr().out
    powers = stacked ** (1 / fitted), (1 - stacked) ** (1 / fitted)
    tempered = powers[0] / sum(powers)
    assert measured(joined, tempered) > before
    for index, threshold in enumerate(described.thresholds):
        shown, column = truth[:, index], tempered[:, index]
        best = max(f1_score(shown, column >= cut - 1e-5) for cut in column)
        assert f1_score(shown, column >= threshold) == pytest.approx(best), LABELS[index]
    assert run(robustness, columns, "--archive", archive, "--output", tmp_path / "r") == 1
    assert "is multi-label, and has no Top-1" in capsys.readouterr().err
    assert run(calibrate, columns, "--archive", archive, "--index-in-name") == 1
    assert "takes labels, not --index-in-name" in capsys.readouterr().err


def test_rows_of_a_folder_have_the_labels(served: Client, server: TorchServe) -> None:
    where = ("--server", served.inference, "--model", "tags", "--tta", "none")
    key = ("--key-file", server.state / "key_file.json")
    done = called("classify", *PICTURES, *where, *key)
    assert done.returncode == 0, done.stderr
    for row, path in zip(csv.DictReader(done.stdout.splitlines()), PICTURES, strict=True):
        answer = served.predict("tags", path.read_bytes(), tta="none").json()
        assert row["labels"] == ";".join(answer["labels"])


def test_the_page_shows_labels_and_bars_of_their_own(served: Client, tmp_path: Path) -> None:
    with closing(Browser(tmp_path)) as page:
        page.forget()
        page.send(served.token("inference"))
        page.driver.get(f"{served.inference}/predictions/tags")
        page.pick(*PICTURES[:2])
        page.settle(2)
        answers = [served.predict("tags", path.read_bytes()).json() for path in PICTURES[:2]]
        wanted = [f"Labels: {', '.join(answer['labels'])}." for answer in answers]
        assert page.texts("#cards .labels") == wanted
        said = "Each label has a probability of its own: they need not add up to 100%."
        assert page.texts(".independent") == [said] * 2
        found = [
            one["label"]
            for answer in answers
            for one in answer["predictions"]
            if one["label"] in answer["labels"]
        ]
        assert page.texts(".predictions .found .label") == found
        page.one("#counts").click()
        counted = sum(len(answer["labels"]) for answer in answers)
        assert sum(int(text.split()[-1]) for text in page.texts("#counts li")) == counted
        assert page.faults() == []
        rows = csv.DictReader(page.saved("csv").splitlines())
        assert [row["labels"] for row in rows] == [";".join(a["labels"]) for a in answers]
        page.one("#language").click()
        assert page.texts(".independent") == ["每个标签各有自己的概率，总和不必为 100%。"] * 2
        page.one("#clear").click()
        page.driver.get(f"{served.inference}/predictions/defect")
        page.pick(PICTURES[0])
        page.settle()
        answer = served.predict("defect", PICTURES[0].read_bytes()).json()
        assert page.texts("#cards .labels") == [
            "标签：defect。" if answer["labels"] else "没有标签。"
        ]
        assert page.texts(".warning") == [] and page.console() == []
