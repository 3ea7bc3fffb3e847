"""Networks that were trained in other ways, against their owner's own PyTorch."""

import csv
import json
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models as tv
from torchvision import transforms as T  # noqa: N812

from tests.helpers import called, write_config
from visionserve.card import card
from visionserve.classifier import Classifier
from visionserve.config import HandlerConfig, ModelConfig, Options
from visionserve.item import Item
from visionserve.metadata import FILE, Metadata, Transforms
from visionserve.processor import multiplies_bf16
from visionserve_tools import paths, photos
from visionserve_tools.archive import alternatives, expected
from visionserve_tools.archive.convert import convert
from visionserve_tools.archive.declared import Declared, one_channel, resolve_preprocessing
from visionserve_tools.archive.expected import ExpectationError
from visionserve_tools.archive.recipe import Recipe, build
from visionserve_tools.archive.serving import answers
from visionserve_tools.archive.weights import Weights, WeightsError
from visionserve_tools.server.client import Client
from visionserve_tools.server.torchserve import TorchServe

LABELS = ("dog", "cat", "bird", "sea life", "insect", "food", "vehicle", "home & music", "other")
DRAWN = "shufflenet_v2_x0_5"
TRAINED = Path(__file__).parents[3] / "shared/own-model/resnet18_nine_classes_fp16.pt"
NAMES = ("rocket.jpg", "china.jpg", "flower.jpg")
PICTURES = [*(path for path in photos.packaged() if path.name in NAMES), photos.greeting()]
MORE = [*PICTURES, *sorted(paths.PHOTOGRAPHS.glob("*.JPEG"))[::125]]
IMAGENET = T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
BICUBIC = T.InterpolationMode.BICUBIC


MEAN = torch.tensor([103.939, 116.779, 123.68])[:, None, None]


def network() -> tv.ResNet:
    """The owner's network: a trained ResNet-18, or a drawn one whose features differ by picture."""
    torch.manual_seed(0)
    net = tv.resnet18(num_classes=len(LABELS))
    if TRAINED.exists():
        net.load_state_dict(torch.load(TRAINED, weights_only=True))
    else:
        differ(net, steps())
    net.float().eval()
    return net


def drawn(
    classes: int = len(LABELS),
    transform: Callable[[Image.Image], Tensor] | None = None,
    channels: int = 3,
) -> tv.ShuffleNetV2:
    """A drawn network that is converted in half of a ResNet-18's time, and quick."""
    torch.manual_seed(0)
    net = tv.shufflenet_v2_x0_5(num_classes=classes)
    if channels == 1:
        net.conv1[0] = nn.Conv2d(1, 24, 3, stride=2, padding=1, bias=False)
    differ(net, transform or steps())
    return net


def differ(net: Any, transform: Callable[[Image.Image], Tensor]) -> None:
    """Give a drawn network the statistics and the last layer by which pictures differ."""
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    pictures = torch.stack([transform(Image.open(path).convert("RGB")) for path in PICTURES])
    with torch.inference_mode():
        net.train()(pictures)
        nn.init.normal_(net.fc.weight)
        logits = net.eval()(pictures)
        net.fc.weight *= 3 / logits.std(0, keepdim=True).T
        net.fc.bias = nn.Parameter(net.fc.bias - net(pictures).mean(0))


def steps(*others: Callable[[Any], Any], size: Any = 256, end: Any = IMAGENET) -> T.Compose:
    """The usual transforms, with others before or in place of them."""
    return T.Compose([*others, T.Resize(size), T.CenterCrop(224), T.ToTensor(), end])


class BlueFirst:
    """What cv2.imread gives, and then the usual mean and std in their usual order."""

    def __call__(self, tensor: Tensor) -> Tensor:
        normalized: Tensor = IMAGENET(torch.from_numpy(tensor.numpy()[::-1].copy()))
        return normalized


def levels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image, np.float32)).permute(2, 0, 1)


CAFFE = T.Compose([T.Resize(256), T.CenterCrop(224), levels, T.Lambda(lambda t: t.flip(0) - MEAN)])
SQUASHED = T.Compose([T.Resize((224, 224)), T.ToTensor(), IMAGENET])
SMOOTH = T.Compose([T.Grayscale(3), T.Resize((232, 264), BICUBIC), T.CenterCrop(192), T.ToTensor()])
HALF = T.Normalize(0.5, 0.5)

STEPS: dict[str, Callable[[Image.Image], Tensor]] = {
    "imagenet": steps(),
    "half": steps(end=HALF),
    "0 to 1": steps(end=T.Lambda(lambda t: t)),
    "grey": steps(T.Grayscale(3)),
    "BGR": steps(end=BlueFirst()),
}
# Each of what can be declared, some of it together, and what each owner declares. A network of the
# usual transforms is served with another head, in `test_heads`.
OWNERS: dict[str, tuple[Callable[[Image.Image], Tensor], dict[str, Any]]] = {
    "bicubic, grey, 0 to 1": (
        SMOOTH,
        {
            **{"resize": (232, 264), "crop": 192, "interpolation": "bicubic", "channels": "grey"},
            **{"mean": (0.0,), "std": (1.0,)},
        },
    ),
    "one grey channel, squashed": (
        T.Compose([T.Grayscale(), T.Resize((224, 224)), T.ToTensor(), HALF]),
        {"channels": "grey", "resize": (224, 224), "mean": (0.5,), "std": (0.5,)},
    ),
    "Caffe": (
        CAFFE,
        {
            **{"channels": "bgr", "range": "0-255", "mean": (103.939, 116.779, 123.68)},
            **{"std": (1.0,)},
        },
    ),
}
FAST = "Caffe"
ONE = "one grey channel, squashed"


def own(name: str, weights: Path) -> tuple[nn.Module, Callable[[Image.Image], Tensor], Declared]:
    """Save an owner's network, and return it with their transforms and what they declare."""
    transform, declared = OWNERS[name]
    net: Any
    if name == FAST:
        net = network()
        net.conv1.weight.data /= 57
    else:
        net = drawn(transform=transform, channels=1 if name == ONE else 3)
    torch.save(net.state_dict(), weights)
    return net, transform, Declared(**declared)


@torch.inference_mode()
def predict(
    net: nn.Module,
    transform: Callable[[Image.Image], Tensor],
    pictures: Sequence[Path] = PICTURES,
) -> NDArray[np.float32]:
    """What the owner's script says of pictures."""
    images = [transform(Image.open(path).convert("RGB")) for path in pictures]
    found: NDArray[np.float32] = net(torch.stack(images)).softmax(1).numpy()
    return found


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("labels") / "labels.txt"
    file.write_text("\n".join(LABELS))
    return file


def model_of(name: str) -> str:
    return name.replace(",", "").replace(" ", "-")


def architecture_of(name: str) -> str:
    return "resnet18" if name == FAST else DRAWN


@dataclass(frozen=True)
class Owners:
    """A server of FAST's network, exact in FP32, and what workers of all of them classify with.

    Attributes:
        client: of the server.
        networks: by the owners' names.
        exact: of the networks that the server does not have, by the owners' names.
        fast: of FAST's network, which decodes fast.
    """

    client: Client
    networks: dict[str, nn.Module]
    exact: dict[str, Classifier]
    fast: Classifier

    def answer(self, name: str, path: Path, **options: Any) -> tuple[NDArray[np.float64], Any]:
        """The probabilities that the bytes of a picture get, by class, and the whole answer."""
        data, asked = path.read_bytes(), {"top_k": len(LABELS), **options}
        answer: Any
        if name == FAST:
            answer = self.client.predict(model_of(name), data, **asked).json()
        else:
            (answer,) = self.exact[name].classify([Item(data, Options(**asked))])
        found = np.full(len(LABELS), np.nan)
        for one in answer["predictions"]:
            found[LABELS.index(one["label"])] = one["probability"]
        return found, answer


@pytest.fixture(scope="module")
def owners(
    tmp_path_factory: pytest.TempPathFactory,
    labels: Path,
    store: Path,
    server: TorchServe,
    client: Client,
) -> Iterator[Owners]:
    root = tmp_path_factory.mktemp("owners")
    configs = {}
    for decode in ("exact", "fast"):
        (root / decode).mkdir()
        configs[decode] = write_config(root / decode, workers=1, decode=decode)
    networks, exact = {}, {}
    for name in OWNERS:
        weights, folder = root / f"{model_of(name)}.pt", root / model_of(name)
        networks[name], _, declared = own(name, weights)
        recipe = Recipe(
            *(architecture_of(name), model_of(name), "1.0", configs["exact"], weights, labels),
            declared=declared,
            # The tests below prove more than the builder on one photograph.
            calibration=photos.greeting().parent,
        )
        with zipfile.ZipFile(build(recipe, store)) as packed:
            packed.extractall(folder)
        config = ModelConfig.load(configs["fast" if name == FAST else "exact"])
        exact[name] = Classifier.from_archive(folder, config, None, "1.0")
    server.register(f"{model_of(FAST)}.mar")
    try:
        yield Owners(client, networks, exact, exact.pop(FAST))
    finally:
        client.unregister(model_of(FAST))


def features(net: Any, image: Tensor) -> Tensor:
    """A network's last map of features: (1, channels, rows, columns)."""
    if isinstance(net, tv.ShuffleNetV2):
        layers = [net.conv1, net.maxpool, net.stage2, net.stage3, net.stage4, net.conv5]
    else:
        layers = [net.conv1, net.bn1, net.relu, net.maxpool]
        layers += [net.layer1, net.layer2, net.layer3, net.layer4]
    found: Tensor = nn.Sequential(*layers)(image[None])
    return found


def views(net: Any, image: Tensor, mode: str, crop: int) -> Tensor:
    """The mean of the probabilities of the views of a resized picture, by torchvision's crops.

    `dense` looks through a window of the crop's size at each place of the largest centred part of
    0, 1, 3, 7 or 13 strides of 32 pixels beyond it, 32 pixels apart.
    """
    if mode == "five_crop":
        five: Tensor = net(torch.stack(T.FiveCrop(crop)(image)))
        return five.softmax(1).mean(0)
    height, width = (
        max(crop + 32 * strides for strides in (0, 1, 3, 7, 13) if crop + 32 * strides <= side)
        for side in image.shape[1:]
    )
    top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
    found = features(net, image[:, top : top + height, left : left + width])
    pooled = functional.avg_pool2d(found, crop // 32, stride=1)[0].flatten(1).T
    windows: Tensor = net.fc(pooled)
    return windows.softmax(1).mean(0)


@pytest.mark.parametrize("name", OWNERS)
def test_an_archive_answers_as_its_owners_pytorch_does(name: str, owners: Owners) -> None:
    """From the bytes of a picture, one over HTTP, each class's probability and in every view."""
    transform: Any = OWNERS[name][0]
    net = owners.networks[name]
    wanted = predict(net, transform, MORE)
    assert np.ptp(wanted, axis=0).max() > 0.3, "the pictures must differ"
    for path, row in zip(MORE, wanted, strict=True):
        found, _ = owners.answer(name, path, tta="none")
        assert np.abs(found - row).max() < 1e-4, path
    steps = transform.transforms
    (crop,) = {int(one.size[0]) for one in steps if isinstance(one, T.CenterCrop)} or {224}
    whole = T.Compose([one for one in steps if not isinstance(one, T.CenterCrop)])
    for mode, path in (("five_crop", PICTURES[0]), ("dense", PICTURES[0]), ("dense", PICTURES[1])):
        with torch.inference_mode():
            image = whole(Image.open(path).convert("RGB"))
            row = views(net, image, mode, crop).numpy()
        found, answer = owners.answer(name, path, tta=mode)
        assert answer["tta"] == mode and np.abs(found - row).max() < 1e-4, (mode, path)


def test_an_explanation_is_of_the_squashed_picture(owners: Owners) -> None:
    """Its box is in pixels of the picture, of other proportions than the view."""
    for name, (height, width), crop in (
        (ONE, (224, 224), 224),
        ("bicubic, grey, 0 to 1", (232, 264), 192),
    ):
        for path in PICTURES[:2]:
            across, down = Image.open(path).size
            sides = [
                (width - crop) / 2,
                (height - crop) / 2,
                (width + crop) / 2,
                (height + crop) / 2,
            ]
            scales = (across / width, down / height) * 2
            _, answer = owners.answer(name, path, tta="none", explain=True)
            best = answer["predictions"][0]
            net: Any = owners.networks[name]
            with torch.inference_mode():
                found = features(net, OWNERS[name][0](Image.open(path).convert("RGB")))[0]
                grid = torch.einsum("chw,c->hw", found, net.fc.weight[best["class_id"]])
            explanation = best["explanation"]
            box = [side * scale for side, scale in zip(sides, scales, strict=True)]
            assert explanation["box"] == pytest.approx(box, abs=0.051)
            assert np.abs(np.array(explanation["grid"]) - grid.numpy()).max() < 1e-2


def test_a_network_is_served_fast_as_it_was_trained(owners: Owners) -> None:
    wanted = predict(owners.networks[FAST], OWNERS[FAST][0], MORE)
    found = answers(owners.fast, MORE)
    assert np.abs(found - wanted).mean() < 0.01 and np.abs(found - wanted).max() < 0.1
    assert not np.array_equal(found, wanted)


@pytest.mark.parametrize("name", [ONE, "Caffe"])
def test_a_worker_of_pytorch_answers_as_its_owners_does(name: str, tmp_path: Path) -> None:
    """From the owner's own file, which an archive of PyTorch holds as it is."""
    net, transform, declared = own(name, tmp_path / "own.pt")
    config = ModelConfig.load(write_config(tmp_path, runtime="pytorch"))
    transforms = resolve_preprocessing(declared, architecture_of(name)).transforms
    if name == ONE:
        transforms = one_channel(transforms) or transforms
    metadata = Metadata(
        architecture=architecture_of(name),
        weights="own.pt",
        weights_sha256="",
        artifact="own.pt",
        transforms=transforms,
        categories=LABELS,
    )
    (tmp_path / FILE).write_text(metadata.model_dump_json())
    classifier = Classifier.from_archive(tmp_path, config, None, "1.0")
    assert np.abs(answers(classifier, PICTURES) - predict(net, transform)).max() < 1e-4


@pytest.mark.parametrize(
    ("architecture", "size", "complaint"),
    [
        ("vit_b_16", 192, "vit_b_16 takes 224 × 224 pixels alone: give that --crop."),
        ("inception_v3", 32, "inception_v3 cannot take 32 × 32 pixels (Calculated padded input"),
        (DRAWN, 224, "own.pt: its network takes one channel, grey: give --channels grey, and"),
    ],
)
def test_what_a_network_cannot_take_is_told_in_one_line(
    architecture: str, size: int, complaint: str, tmp_path: Path
) -> None:
    own(ONE, tmp_path / "own.pt")
    source = Weights(tmp_path / "own.pt", "", "")
    with pytest.raises((ValueError, WeightsError)) as raised:
        convert(
            *(architecture, source, LABELS, HandlerConfig(), PICTURES, tmp_path),
            transforms=Transforms(resize=size, crop=size),
        )
    assert complaint in str(raised.value) and "\n" not in str(raised.value)


class Small(nn.Module):
    """A network that is quick, and whose answers differ from picture to picture."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.features = nn.Conv2d(channels, 64, 32, stride=32)
        self.last = nn.Linear(64 * 49, len(LABELS), bias=False)
        nn.init.normal_(self.last.weight, std=0.05)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(self.features(images).tanh().flatten(1))
        return logits


def figures(
    file: Path, found: NDArray[np.float32], labels: Sequence[str] = LABELS, top: bool = False
) -> Path:
    """Write an owner's figures of the pictures."""
    with file.open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["path", "label", "probability"] if top else ["path", *labels])
        for path, row in zip(PICTURES, found.tolist(), strict=True):
            best = int(np.argmax(row))
            rows.writerow([path, labels[best], row[best]] if top else [path, *row])
    return file


BOTH = steps(T.Grayscale(3), size=(224, 224), end=HALF)
FIT = {
    "half": (STEPS["half"], "mean = std = 0.5: --mean 0.5 0.5 0.5 --std 0.5 0.5 0.5"),
    "0 to 1": (STEPS["0 to 1"], "0-1 without normalization: --mean 0 0 0 --std 1 1 1"),
    "grey": (STEPS["grey"], "grey: --channels grey"),
    "BGR": (STEPS["BGR"], "BGR: --channels bgr"),
    "squashed": (SQUASHED, "squashed to 224 × 224: --resize 224x224 --crop 224"),
    "232": (steps(size=232), "resize 232: --resize 232 --crop 224"),
    "bicubic": (
        T.Compose([T.Resize(256, BICUBIC), T.CenterCrop(224), T.ToTensor(), IMAGENET]),
        "bicubic: --interpolation bicubic",
    ),
    "all at once": (
        BOTH,
        "mean = std = 0.5, grey, squashed to 224 × 224: --mean 0.5 0.5 0.5 --std 0.5 0.5 0.5 "
        "--channels grey --resize 224x224 --crop 224",
    ),
}


@pytest.mark.parametrize("name", FIT)
def test_what_would_fit_the_owners_figures_is_said(name: str, tmp_path: Path) -> None:
    """Half of the owners give all probabilities, and half the best class's alone."""
    transform, advice = FIT[name]
    top = list(FIT).index(name) % 2 == 1
    net = Small().eval()
    wanted = expected.read(figures(tmp_path / "own.csv", predict(net, transform), top=top))
    with pytest.raises(ExpectationError) as raised:
        alternatives.check(net, Transforms(), LABELS, wanted, HandlerConfig())
    assert str(raised.value).endswith(f"Your figures fit {advice}")
    assert f"{len(PICTURES)} photographs. Worst: /" in str(raised.value)


@pytest.mark.parametrize(
    ("order", "advice", "name"),
    [
        (sorted(LABELS), "sorted by name: ", "imagenet"),
        (LABELS[::-1], "reversed: ", "half"),
        ((*LABELS[1:], LABELS[0]), ", ".join((*LABELS[1:], LABELS[0])), "imagenet"),
    ],
)
def test_another_order_of_labels_is_found(
    order: Sequence[str], advice: str, name: str, tmp_path: Path
) -> None:
    net = Small().eval()
    found = predict(net, STEPS[name])
    wanted = expected.read(figures(tmp_path / "own.csv", found, order))
    with pytest.raises(ExpectationError, match="fit the labels in another order, ") as raised:
        alternatives.check(net, Transforms(), LABELS, wanted, HandlerConfig())
    assert advice in str(raised.value)
    assert ("And they fit mean = std = 0.5" in str(raised.value)) == (name == "half")


def test_figures_of_other_weights_fit_nothing(tmp_path: Path) -> None:
    net = Small().eval()
    other = predict(Small().eval(), steps())[::-1]
    wanted = expected.read(figures(tmp_path / "own.csv", other))
    with pytest.raises(ExpectationError, match=r"No preprocessing .* model\.eval\(\)"):
        alternatives.check(net, Transforms(), LABELS, wanted, HandlerConfig())


def odd(folder: Path) -> list[Path]:
    """A picture on its side, one with transparency, and one of 16 bits of grey."""
    cat = Image.open(photos.greeting()).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    cat.save(folder / "turned.jpg", exif=exif)
    transparent = cat.copy()
    transparent.putalpha(cat.convert("L").point(lambda level: 255 * (level > 99)))
    transparent.save(folder / "transparent.png")
    wide = np.asarray(cat.convert("L"), np.uint16) * 256
    Image.fromarray(wide).save(folder / "wide.png")
    return [folder / name for name in ("turned.jpg", "transparent.png", "wide.png")]


@pytest.mark.parametrize("others", [PICTURES, []], ids=["some", "all"])
def test_pictures_that_are_decoded_otherwise_are_told(others: list[Path], tmp_path: Path) -> None:
    """The owner's script takes them as Pillow gives them."""
    net, paths = Small().eval(), [*others, *odd(tmp_path)]
    found = predict(net, steps(), paths)
    lines = [
        json.dumps({"path": str(path), "probabilities": dict(zip(LABELS, row, strict=True))})
        for path, row in zip(paths, found.tolist(), strict=True)
    ]
    file = tmp_path / "own.jsonl"
    file.write_text("\n".join(lines))
    said = rf"turned\.jpg .* 3 of {len(paths)} pictures differ as PIL.*EXIF orientation"
    with pytest.raises(ExpectationError, match=said):
        alternatives.check(net, Transforms(), LABELS, expected.read(file), HandlerConfig())


def test_groups_of_an_own_model_answer_as_its_owner_says(tmp_path: Path) -> None:
    """By the owner's labels, with their names for the groups, and with their sums as figures."""
    net, transform = drawn(), STEPS["imagenet"]
    torch.save(net.state_dict(), tmp_path / "own.pt")
    members = {"animal": [0, 1, 2, 3, 4], "thing": [6, 7], "rest": [5, 8]}
    texts = {
        "labels.txt": "\n".join(LABELS),
        "groups.json": json.dumps(
            {
                "groups": {"animal": ["0-2", "sea life", "insect"], "thing": ["6-7"]},
                "other": "rest",
                "names": {"zh": {"animal": "动物", "thing": "东西"}},
            }
        ),
        "names.json": json.dumps({"names": {"zh": {"rest": "其余", "thing": "物品"}}}),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    plain = predict(net, transform)
    sums = np.stack([plain[:, of].sum(1) for of in members.values()], 1)
    recipe = Recipe(
        *(DRAWN, "groups", "1.0", write_config(tmp_path), tmp_path / "own.pt"),
        labels=tmp_path / "labels.txt",
        label_map=tmp_path / "names.json",
        expect=figures(tmp_path / "own.csv", sums, (*members,)),
        groups=tmp_path / "groups.json",
        calibration=photos.greeting().parent,
    )
    with zipfile.ZipFile(build(recipe, tmp_path / "store")) as archive:
        metadata = Metadata.model_validate_json(archive.read(FILE))
    assert metadata.categories == (*members,)
    assert metadata.groups == tuple(map(tuple, members.values()))
    assert metadata.names == {"zh": ("动物", "物品", "其余")}
    assert metadata.comparison is not None and metadata.comparison.largest_difference < 1e-4

    figures(tmp_path / "own.csv", plain)
    with pytest.raises(ValueError, match="dog"):
        build(replace(recipe, name="plain"), tmp_path / "store")


def unfiltered(size: Any) -> Callable[[Image.Image], Tensor]:
    """What cv2.resize, albumentations and tensors without antialiasing make of a picture."""
    resize = T.Resize(size, antialias=False)
    found: Callable[[Image.Image], Tensor] = T.Compose(
        [T.ToTensor(), resize, T.CenterCrop(224), IMAGENET]
    )
    return found


UNOWNERS = {
    "without antialiasing, as cv2's.*(resize 256)": unfiltered(256),
    "without antialiasing.*(squashed to 224 × 224)": unfiltered((224, 224)),
    "NEAREST": T.Compose([T.Resize(256, T.InterpolationMode.NEAREST), *steps().transforms[1:]]),
    "padded to a square (squashed to 224 × 224)": T.Compose(
        [
            T.Lambda(lambda image: ImageOps.pad(image, (224, 224), Image.Resampling.BILINEAR)),
            T.ToTensor(),
            IMAGENET,
        ]
    ),
}


@pytest.mark.parametrize("name", UNOWNERS)
def test_what_no_archive_does_is_named(name: str, tmp_path: Path) -> None:
    net = Small().eval()
    wanted = expected.read(figures(tmp_path / "own.csv", predict(net, UNOWNERS[name])))
    said = name.replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ExpectationError, match=f"fit .*{said}.* which no archive does"):
        alternatives.check(net, Transforms(), LABELS, wanted, HandlerConfig())


SNIPPET = re.search(
    r"^```python\n(import csv.*?)^```",
    (paths.ROOT / "scripts/README.md").read_text(encoding="utf-8"),
    re.DOTALL | re.MULTILINE,
)


def test_an_archive_is_built_when_it_answers_as_its_owner_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The README's script, then the command: refused, told what would fit, built, and described."""
    net, transform = drawn(), STEPS["half"]
    torch.save(net.state_dict(), tmp_path / "own.pt")
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    monkeypatch.chdir(tmp_path)
    assert SNIPPET is not None
    given = {"model": net, "transform": transform, "classes": LABELS, "paths": PICTURES[-3:]}
    exec(SNIPPET[1], given)
    files = ("--weights", tmp_path / "own.pt", "--labels", tmp_path / "labels.txt")
    command: list[str | Path] = [DRAWN, "--profile", "server", *files]
    command += ["--store", tmp_path / "store", "--calibration", tmp_path / "few"]
    (tmp_path / "few").mkdir()
    for path in PICTURES[:3]:
        shutil.copy(path, tmp_path / "few")

    silent = called("build", *command, "--expect", tmp_path / "expected.csv")
    assert silent.returncode == 1 and not any((tmp_path / "store").glob("*"))
    *_, refusal = silent.stderr.splitlines()
    assert "no archive is written" in refusal and str(PICTURES[-1]) in refusal
    advice = "mean = std = 0.5: --mean 0.5 0.5 0.5 --std 0.5 0.5 0.5"
    assert refusal.endswith(f"Your figures fit {advice}")

    declared = advice.partition(": ")[2].split()
    done = called("build", *command, *declared, "--expect", tmp_path / "expected.csv")
    assert done.returncode == 0, done.stderr
    assert "mean 0.5 0.5 0.5 [--mean], std 0.5 0.5 0.5 [--std]" in done.stderr
    with zipfile.ZipFile(tmp_path / "store" / f"{DRAWN}.mar") as archive:
        archive.extractall(tmp_path / "unpacked")
    metadata = Metadata.load(tmp_path / "unpacked")
    config = ModelConfig.load(tmp_path / "unpacked" / "model-config.yaml").handler
    described = card(DRAWN, "1.0", metadata, config)
    assert described["comparison"]["photographs"] == 3
    assert described["comparison"]["largest_difference"] < (0.05 if multiplies_bf16() else 1e-4)
    assert described["compared"].startswith("compared with its owner's figures on 3 photographs")
    assert described["transforms"] == Transforms(mean=(0.5,) * 3, std=(0.5,) * 3).model_dump()
