"""The commands that measure, on two photographs of PyPI packages."""

import csv
import html
import json
import math
import re
import shutil
import sys
import unicodedata
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import classification_report
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

from tests.bench import families
from tests.end_to_end.test_own_model import DRAWN, drawn
from tests.helpers import REAL, called, write_config
from visionserve import familiarity
from visionserve.familiarity import Neighbours
from visionserve.metadata import Proportion, Threshold
from visionserve.models import IMAGENET_CATEGORIES, MODELS
from visionserve_tools import paths, photos
from visionserve_tools.archive.calibrated import Fitted, pack
from visionserve_tools.archive.declared import Declared
from visionserve_tools.archive.hashes import read_record, sha256_of
from visionserve_tools.archive.recipe import Recipe, build
from visionserve_tools.archive.store import choose
from visionserve_tools.archive.weights import load_state_dict, resolve
from visionserve_tools.commands import calibrate, compare, evaluate, robustness
from visionserve_tools.quality import generated, labelled
from visionserve_tools.quality.corruptions import CORRUPTIONS, SIDE, MotionBlur, corrupt, scaled
from visionserve_tools.quality.models import opened
from visionserve_tools.quality.robustness import CONDITIONS, QUICK, Bench, Measured, record
from visionserve_tools.quality.unfamiliar import Pictures, Told
from visionserve_tools.server.client import Client
from visionserve_tools.server.torchserve import TorchServe


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("285/20240101_x.jpg", 285),
        ("285/3_x.jpg", 285),
        ("photos/285_n02124075_cat.JPEG", 285),
        ("12/285_n02124075_cat.JPEG", 285),
        ("285_cat/001.jpg", 285),
        ("285_n02124075_cat/ILSVRC2012_val_00000293.JPEG", 285),
        ("20240101/285_cat.jpg", 285),
        ("photos/285.jpg", 285),
        ("007/x.jpg", 7),
        ("4th of July/285-cat.jpg", 285),
    ],
)
def test_a_label_comes_from_folder_or_name(path: str, label: int) -> None:
    assert labelled.label_of(Path(path), 1000) == label


@pytest.mark.parametrize("path", ["photos/20240101_x.jpg", "photos/cat.jpg", "1000/x.jpg", "x.jpg"])
def test_a_number_that_is_no_class_is_no_label(path: str) -> None:
    with pytest.raises(ValueError, match="neither folder nor name begins with a class index"):
        labelled.label_of(Path(path), 1000)


def test_some_photographs_are_evenly_from_all(tmp_path: Path) -> None:
    for index in range(10):
        (tmp_path / f"{index}_x.png").touch()
    ten = tuple("abcdefghij")
    assert [label for _, label in labelled.read(tmp_path, ten, True, 3).photographs] == [0, 3, 6]
    assert len(labelled.read(tmp_path, ten, True, 20).photographs) == 10
    with pytest.raises(ValueError, match="9_x"):
        labelled.read(tmp_path, ten[:9], True)


def folders(root: Path, *files: str) -> Path:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


NINE = ("sea life", "dog", "cat", "bird", "insect", "food", "vehicle", "home & music", "café")


def test_a_class_is_the_label_that_a_folder_is_named_by(tmp_path: Path) -> None:
    """Not the folder's place among others, and not a number that stands in a name."""
    root = folders(
        tmp_path / "root",
        *("dog/3.jpg", "cat/285_n02124075_cat.JPEG", "sea life/2017/1/0.png", "dog/notes.txt"),
        *("home & music/8.webp", unicodedata.normalize("NFD", "café/1.jpg"), ".cache/1.jpg"),
    )
    elsewhere = folders(tmp_path / "elsewhere", "1.jpg", "2.jpg")
    (root / "bird").symlink_to(elsewhere)
    (root / "dog" / "link.jpg").symlink_to(elsewhere / "1.jpg")
    (root / "dog" / "up").symlink_to(root)
    (root / "insect").mkdir()
    found = labelled.read(root, NINE)
    names = [(str(path.relative_to(root)), label) for path, label in found.photographs]
    assert sorted(names, key=lambda one: (one[1], one[0])) == [
        *[("sea life/2017/1/0.png", 0), ("dog/3.jpg", 1), ("dog/link.jpg", 1)],
        *[("cat/285_n02124075_cat.JPEG", 2), ("bird/1.jpg", 3), ("bird/2.jpg", 3)],
        *[("home & music/8.webp", 7), (unicodedata.normalize("NFD", "café/1.jpg"), 8)],
    ]
    assert found.notes == [
        "Left out, no image by its name: dog/notes.txt.",
        "No picture in insect.",
        "No picture of 3 of 9 classes: insect, food, vehicle.",
    ]
    (indexed,) = labelled.read(folders(tmp_path / "x", "dog/3.jpg"), NINE, True).photographs
    assert indexed[1] == 3, "as the option says"


def test_a_csv_gives_labels(tmp_path: Path) -> None:
    folders(tmp_path, "a/1.jpg", "2.jpg")
    file = tmp_path / "labels.csv"
    wanted = [(tmp_path / "a" / "1.jpg", 1), (tmp_path / "2.jpg", 0)]
    for text in (
        "path,label\na/1.jpg,dog\n2.jpg,sea life\n\n",
        "\ufeffid;Label;Path\r\n1;dog;./a/1.jpg\r\n2;sea life;a/../2.jpg\r\n",
        f'a/1.jpg,"dog"\n"{tmp_path}/2.jpg", sea life',
    ):
        file.write_text(text, encoding="utf-8", newline="")
        assert labelled.read(file, NINE).photographs == wanted, text
    file.write_text("path,label\na/1.jpg,1\n2.jpg,0\n")
    assert labelled.read(file, NINE, indexed=True).photographs == wanted


@pytest.mark.parametrize(
    ("files", "categories", "message"),
    [
        (["Dog/1.jpg", "dog/1.jpg"], NINE, r"no class 'Dog' \(1 pictures; the closest is 'dog'\)"),
        (["birds/1.jpg", "birds/2.jpg"], NINE, r"'birds' \(2 pictures; the closest is 'bird'\)"),
        (["3/1.jpg"], NINE, "no class '3' .* Its classes are sea life, dog, .*--index-in-name"),
        (["dog/1.jpg", "3.jpg"], NINE, "3.jpg: lies in no class folder. Give FOLDER/class name"),
        (["000_n01440764_tench.JPEG"], NINE, "tench.JPEG: lies in no class folder"),
        (["a/1.jpg"], ("a", "b", "a"), "several classes a"),
        (["a/notes.txt"], ("a", "b"), "no images below it"),
        (["285_n01440764_tench.JPEG"], tuple(map(str, range(1000))), "lies in no class folder"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    tmp_path: Path, files: list[str], categories: tuple[str, ...], message: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        labelled.read(folders(tmp_path, *files), categories)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"path,label\n1.jpg,Dog\n", "no class 'Dog' .*closest is 'dog'"),
        (b"1.jpg,0\n", "no class '0'"),
        (b"path,label\n1.jpg,dog\nx/../1.jpg,cat\n", "line 3: x/../1.jpg stands in another line"),
        (b"path,label\n1.jpg\n", "line 2: has no path and label"),
        (b"path,label\n1.jpg,\n", "line 2: has no label"),
        (b"file,class,other\n1.jpg,dog,x\n", "line 1: has to name the columns path and label"),
        (b"path,label\n1.jpg,caf\xe9\n", "no UTF-8"),
        (b"path,label\n", "names no images"),
    ],
)
def test_a_csv_that_does_not_fit_is_refused(tmp_path: Path, text: bytes, message: str) -> None:
    file = tmp_path / "labels.csv"
    file.write_bytes(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        labelled.read(file, NINE)


def test_imagenets_own_names_give_classes(tmp_path: Path) -> None:
    """Those of its 1,000 classes alone."""
    flat = folders(tmp_path / "flat", "000_n01440764_tench.JPEG", "x/285_n02124075_cat.JPEG")
    assert [label for _, label in labelled.read(flat, IMAGENET_CATEGORIES).photographs] == [0, 285]
    by_id = folders(tmp_path / "by_id", "n02124075/1.JPEG", "tench/2.JPEG")
    assert [label for _, label in labelled.read(by_id, IMAGENET_CATEGORIES).photographs] == [285, 0]


def test_small_photographs_are_enlarged_and_large_ones_stay(tmp_path: Path) -> None:
    cat, motorcycle = photos.greeting(), photos.packaged()[5]
    enlarged = labelled.enlarge([(cat, 285), (motorcycle, 670)], 480, tmp_path)
    (path, label), large = enlarged
    assert (large, label) == ((motorcycle, 670), 285)
    with Image.open(path) as image, Image.open(cat) as small:
        assert image.format == "JPEG"
        assert image.size == (round(480 * small.width / small.height), 480)
        back = np.asarray(image.resize(small.size).convert("RGB"), float)
        assert np.abs(back - np.asarray(small.convert("RGB"), float)).mean() < 4


def test_corruptions_are_repeatable_and_the_severe_one_is_worse() -> None:
    image = scaled(Image.open(photos.greeting()).convert("RGB"))
    assert min(image.shape[1:]) == SIDE
    plain = image.permute(1, 2, 0).numpy().astype(float)
    for name, forms in CORRUPTIONS.items():
        first, again, other = (np.asarray(corrupt(image, forms[1], seed)) for seed in (1, 1, 2))
        assert np.array_equal(first, again), name
        if name in ("noise", "motion", "occlusion", "scale"):
            assert not np.array_equal(first, other), name
        size = (image.shape[2], image.shape[1])
        worse = [corrupt(image, form, 1).resize(size) for form in forms]
        mild, severe = (np.abs(np.asarray(one, dtype=float) - plain).mean() for one in worse)
        assert 0 < mild < severe, name


def test_motion_blurs_along_a_line() -> None:
    """A point becomes a line of the variance of a uniform distribution over its length."""
    image = torch.zeros(3, 61, 61, dtype=torch.uint8)
    assert torch.equal(MotionBlur(21)(image + 99), image + 99)
    image[:, 30, 30] = 255
    torch.manual_seed(3)
    weights = MotionBlur(21)(image)[0].double()
    place = torch.cartesian_prod(*[torch.arange(61.0).double() - 30] * 2).T
    variances = torch.linalg.eigvalsh((place * weights.flatten()) @ place.T / weights.sum())
    assert float(variances[1]) == pytest.approx((21**2 - 1) / 12, rel=0.1)
    assert float(variances[0]) < 0.5


def test_a_mode_is_summed_up_over_its_conditions() -> None:
    """Two photographs; one mode is wrong on the second one under severe noise."""
    right = np.ones((2, len(CONDITIONS)))
    wrong = right.copy()
    wrong[1, list(CONDITIONS).index(("noise", "severe"))] = 0
    seconds = np.full(right.shape, 0.01)
    found = record({"none": Measured(wrong, seconds), "five_crop": Measured(right, seconds)})
    none = found["none"]
    assert none["milliseconds"] == pytest.approx(10)
    assert none["clean"]["value"] == 1 and none["corrupted"]["value"] == pytest.approx(39 / 40)
    assert none["over"]["five_crop"]["value"] == pytest.approx(-1 / 40)
    assert none["conditions"]["noise severe"] == 0.5 and none["conditions"]["noise mild"] == 1
    assert found["five_crop"]["corrupted"] == {"value": 1, "low": 1, "high": 1}
    right[1, list(CONDITIONS).index(("noise", "mild"))] = np.nan
    found = record({"none": Measured(wrong, seconds), "five_crop": Measured(right, seconds)})
    assert found["five_crop"]["conditions"]["noise mild"] == 1, "of the one that was asked"
    assert found["none"]["over"]["five_crop"]["value"] == pytest.approx(-1 / 39)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cat with its label, and a cup of coffee with a wrong one."""
    folder = tmp_path_factory.mktemp("photographs")
    cat, coffee = photos.greeting(), photos.packaged()[2]
    shutil.copy(cat, folder / "285_cat.png")
    shutil.copy(coffee, folder / "0_coffee.png")
    return folder


def command(name: str, *arguments: object) -> str:
    done = called(name, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def expected(path: Path) -> Any:
    """Probabilities by torchvision's transforms and the network itself, in PyTorch."""
    transforms = MODELS[REAL].transforms
    network = MODELS[REAL].build(1000).eval()
    network.load_state_dict(load_state_dict(resolve(REAL), network.state_dict()))
    steps = v2.Compose(
        [
            v2.Resize(transforms.resize, InterpolationMode.BICUBIC),
            v2.CenterCrop(transforms.crop),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(transforms.mean, transforms.std),
        ]
    )
    with torch.inference_mode():
        return network(steps(Image.open(path).convert("RGB"))[None]).softmax(1)[0].numpy()


def test_evaluate_tells_what_pytorch_says(photographs: Path, tmp_path: Path) -> None:
    variants = ("openvino fp32", "openvino fp32, fast decode")
    options = ("--variants", *variants, "--modes", "none", "--output", tmp_path)
    cat = ("--calibration", photos.greeting().parent)
    printed = command("evaluate", photographs, "--index-in-name", "--quick", *options, *cat)
    record = json.loads((tmp_path / "evaluation.json").read_text())
    figures, fast = record["figures"]
    deleted = record["deletion"]["openvino fp32"]
    assert (
        deleted["photographs"] == 2
        and f"{deleted['ratio to random cells']['value']:.2f} (" in printed
    )
    cat, coffee = expected(photographs / "285_cat.png"), expected(photographs / "0_coffee.png")
    nll = -np.log([cat[285], max(coffee[0], 1.1920929e-07)]).mean()
    assert figures["nll"] == pytest.approx(nll, abs=2e-3)
    assert figures["top1"]["value"] == (cat.argmax() == 285) / 2
    assert figures["confident"]["value"] == ((cat.max() >= 0.5) + (coffee.max() >= 0.5)) / 2
    # Of another resize, it is small, and not nothing; the exact one's is of PyTorch's.
    assert 0 < fast["mean difference"] < fast["largest difference"] < 0.03
    assert fast["nll"] != figures["nll"] and fast["same top1"] == 1
    assert f"{figures['nll']:.3f}" in printed
    assert Image.open(tmp_path / "reliability.png").format == "PNG"


@pytest.mark.parametrize("command", [evaluate, robustness], ids=["evaluate", "robustness"])
def test_an_unlabelled_photograph_is_named(
    command: ModuleType,
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copy(photos.greeting(), tmp_path / "cat.png")
    archive = [] if command is evaluate else ["--archive", str(store / f"{REAL}.mar")]
    output = ["--output", str(tmp_path / "output")]
    monkeypatch.setattr(sys, "argv", ["visionserve", str(tmp_path), *archive, *output])
    assert command.main() == 1
    error = capsys.readouterr().err
    assert "cat.png: lies in no class folder" in error and "Traceback" not in error


OWN_LABELS = (
    "dog",
    "cat",
    "bird",
    "sea life",
    "insect",
    "food",
    "vehicle",
    "home & music",
    "other",
)
# ImageNet classes, of which every even one has a photograph, that the groups surely hold.
GROUPS = {
    "bird": (82, 84, 86),
    "cat": (282, 284, 288),
    "dog": (152, 154, 156),
    "food": (924, 928, 930),
    "insect": (300, 302, 306),
    "sea life": (0, 2, 6),
}
CROP = 112
ONCE = "a server has them once it loads it anew"
HOSTILE = """<b onclick=alert(1)>&"'.jpg"""


@dataclass(frozen=True)
class Own:
    """An archive of a user's own, the pictures to measure it on, and what PyTorch says of them.

    Attributes:
        archive: with the labels of `OWN_LABELS`; it looks at five crops by default, each of half
            the network's own size, so that a pass takes a quarter of the time.
        folder: of class folders, one of them linked, with pictures that cannot be read.
        probabilities: of each readable picture, by mode, from plain PyTorch and torchvision.
    """

    archive: Path
    folder: Path
    probabilities: dict[str, dict[Path, Any]]


def pictures(folder: Path) -> None:
    """Fill class folders with 18 photographs, or with the ten of PyPI packages."""
    by_class: dict[str, list[Path]] = {
        label: [found for index in classes for found in paths.PHOTOGRAPHS.glob(f"{index:03}_n*")]
        for label, classes in GROUPS.items()
    }
    if not any(by_class.values()):
        packaged = photos.packaged()
        by_class = {label: packaged[turn::6] for turn, label in enumerate(GROUPS)}
    for label, chosen in by_class.items():
        (folder / label).mkdir(parents=True)
        for picture in chosen:
            shutil.copy(picture, folder / label)
    first = next((folder / "food").iterdir())
    shutil.copy(first, folder / "insect" / HOSTILE)
    (folder / "bird").rename(folder.parent / "elsewhere")
    (folder / "bird").symlink_to(folder.parent / "elsewhere")
    (folder / "vehicle").mkdir()
    (folder / "dog" / "broken.jpg").write_bytes(photos.packaged()[2].read_bytes()[:1000])
    (folder / "dog" / "gone.jpg").symlink_to("absent.jpg")
    (folder / "cat" / "large.png").write_bytes(bytes(6_000_000))


def label_at(path: Path) -> int:
    return OWN_LABELS.index(path.parent.name)


def last_layer(features: Tensor, labels: list[int]) -> nn.Linear:
    """One of ridge regression: right about these pictures' centres, and wrong about some others."""
    mean, std = features.mean(0), features.std(0) + 1e-6
    scaled, wanted = (features - mean) / std, torch.eye(len(OWN_LABELS))[labels]
    shares = wanted.mean(0)
    squares = scaled.T @ scaled + 10 * torch.eye(len(mean))
    weights = 8 * torch.linalg.solve(squares, scaled.T @ (wanted - shares)) / std[:, None]
    layer = nn.Linear(*weights.shape)
    layer.load_state_dict({"weight": weights.T, "bias": 8 * shares - mean @ weights})
    return layer


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Own:
    root = tmp_path_factory.mktemp("own")
    pictures(root / "pictures")
    steps = v2.Compose([v2.Resize(128), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)])
    normalize = v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    pixels = {
        path: normalize(steps(Image.open(path).convert("RGB")))
        for path in sorted((root / "pictures").glob("*/*"))
        if path.name not in ("broken.jpg", "gone.jpg", "large.png")
    }
    network, weights = drawn(len(OWN_LABELS)), root / "own.pt"
    network.fc = nn.Identity()
    some = [path for turn, path in enumerate(pixels) if turn % 4 != 3 and path.name != HOSTILE]
    with torch.inference_mode():
        centres = torch.stack([v2.CenterCrop(CROP)(pixels[path]) for path in some])
        network.fc = last_layer(network(centres), [label_at(path) for path in some])
    torch.save(network.state_dict(), weights)
    (root / "labels.txt").write_text("\n".join(OWN_LABELS) + "\n")
    config = write_config(root, workers=1, defaults={"tta": "five_crop", "threshold": 0.4})
    recipe = Recipe(DRAWN, "own", "1.0", config, weights, root / "labels.txt")
    archive = build(replace(recipe, declared=Declared(resize=128, crop=CROP)), root / "store")

    said: dict[str, dict[Path, Any]] = {"none": {}, "five_crop": {}}
    for path, whole in pixels.items():
        views = {"none": (v2.CenterCrop(CROP)(whole),), "five_crop": v2.FiveCrop(CROP)(whole)}
        with torch.inference_mode():
            for mode, crops in views.items():
                said[mode][path] = network(torch.stack(crops)).double().softmax(1).mean(0).numpy()
    return Own(archive, root / "pictures", said)


@pytest.fixture(scope="module")
def calibrated(own: Own) -> dict[str, float]:
    """The temperatures that `calibrate` put into the archive."""
    before = sha256_of(own.archive)
    done = called("calibrate", own.folder, "--archive", own.archive, "--modes", "none", "five_crop")
    assert done.returncode == 0, done.stderr
    assert f"own 1.0 ({DRAWN}, openvino fp32, exact decode)" in done.stdout
    assert "Unfamiliar pictures will not be told: it takes 100 photographs" in done.stderr
    with zipfile.ZipFile(own.archive) as packed:
        described = json.loads(packed.read("metadata.json"))
        found: dict[str, float] = described["temperatures"]
        assert described["familiarity"] is None
        assert len(packed.namelist()) == len(set(packed.namelist())) and packed.testzip() is None
    assert found.keys() == {"none", "five_crop"}
    kept = read_record(own.archive)
    assert kept and kept["sha256"] == sha256_of(own.archive) != before
    assert [one.model for one in choose(["own"], "server", own.archive.parent)] == ["own"]
    written = json.loads(own.archive.with_name("own-temperatures.json").read_text())
    assert written["temperatures"] == found
    return found


@pytest.fixture(scope="module")
def neighbours(own: Own, calibrated: dict[str, float]) -> Any:
    """Have the archive tell unfamiliar pictures by neighbours; their features, and the threshold.

    By hand, as that takes more pictures; a third of them scores below the threshold.
    """
    with opened(own.archive) as archived:
        paths = [*own.probabilities["none"]]
        passed = [archived.passed(path.read_bytes(), "none") for path in paths]
        known = np.array([one.features for one in passed], np.float16)
        weights = archived.metadata.weights_sha256
    least = float(np.quantile([Neighbours(known)(row) for row in known], 0.33))
    share = Proportion(value=0, low=0, high=1)
    threshold = Threshold(score=least, false_alarms=share, caught=share)
    told = Told("neighbours", {}, Pictures("", [], [], []), known)
    familiarity = told.familiarity("float", "by hand").model_copy(
        update={"thresholds": {"five_crop": threshold}}
    )
    fitted = Fitted(
        architecture=DRAWN,
        weights_sha256=weights,
        about="",
        temperatures={},
        familiarity=familiarity,
        known=told.known(),
    )
    for _ in range(2):
        pack(own.archive, fitted)
    with zipfile.ZipFile(own.archive) as packed:
        assert packed.namelist().count("familiarity.npy") == 1
    return known, least


@pytest.fixture(scope="module")
def replies(
    own: Own, neighbours: Any, server: TorchServe, client: Client, store: Path
) -> dict[Path, Any]:
    """What the calibrated archive answers over HTTP, in the session's server."""
    for suffix in (".mar", ".json"):
        shutil.copy(own.archive.with_suffix(suffix), store)
    server.register("own.mar")
    try:
        return {
            path: client.predict("own", path.read_bytes(), top_k=9, features=True).json()
            for path in own.probabilities["five_crop"]
        }
    finally:
        client.unregister("own")


@pytest.fixture(scope="module")
def answers(replies: dict[Path, Any]) -> dict[Path, Any]:
    """Each picture's probabilities."""
    found = {}
    for path, answer in replies.items():
        assert answer["tta"] == "five_crop"
        found[path] = np.zeros(9)
        for one in answer["predictions"]:
            assert one["label"] == OWN_LABELS[one["class_id"]]
            found[path][one["class_id"]] = one["probability"]
    return found


def test_a_threshold_is_fitted_by_the_command(
    int8_archive: Path, samples: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On 100 photographs, at one false alarm in ten; judged on others, and on other pictures."""
    monkeypatch.setattr(generated, "pictures", partial(generated.pictures, each=5))
    archive, photographs = tmp_path / "fitted.mar", tmp_path / "photographs"
    photographs.mkdir()
    for path in samples[::5]:
        (photographs / path.name).symlink_to(path)
    for suffix in (".mar", ".json"):
        shutil.copy(int8_archive.with_suffix(suffix), archive.with_suffix(suffix))
    options = ("--archive", archive, "--modes", "none", "--false-alarms", "0.1")
    done = called("calibrate", photographs, *options)
    assert done.returncode == 0, done.stderr
    assert "With 100 photographs, fewer than 200, the rate" in done.stderr
    assert "| TTA | false alarms | caught | documents | text |" in done.stdout
    with opened(archive) as archived:
        known = archived.metadata.familiarity
        assert known and known.about.startswith("photographs, 100 photographs")
        (tells,) = familiarity.load(archived.directory, known, archived.runtime).values()

        def share(images: Iterable[bytes]) -> float:
            passed = [archived.passed(data, "none").features for data in images]
            return float(np.mean([tells(one) for one in passed if one is not None]))

        assert 0.02 <= share(path.read_bytes() for path in samples[1::10]) <= 0.2
        assert share(data for _, data in generated.pictures(each=3, seed=1)) >= 0.85


def test_a_picture_without_neighbours_is_unfamiliar(
    replies: dict[Path, Any], neighbours: Any
) -> None:
    """By scikit-learn's search among the features that the archive holds."""
    known, least = neighbours
    known = known.astype(float)
    mean = known.mean(axis=0)
    search = NearestNeighbors(n_neighbors=3, metric="cosine").fit(known - mean)
    told = []
    for path, answer in replies.items():
        score = 1 - search.kneighbors([np.array(answer["features"]) - mean])[0][0, 2]
        if abs(score - least) > 0.001:
            assert answer["unfamiliar"] == (score < least), path
            told.append(answer["unfamiliar"])
    assert {*told} == {True, False}


def test_temperatures_are_fitted_and_served(
    own: Own, calibrated: dict[str, float], answers: dict[Path, Any]
) -> None:
    """They minimize the loss of PyTorch's own probabilities, and are in the answers over HTTP."""
    said = own.probabilities["five_crop"]
    stacked, labels = np.stack([*said.values()]), [label_at(path) for path in said]

    def loss(temperature: float) -> float:
        powers = stacked ** (1 / temperature)
        tempered = powers / powers.sum(axis=1, keepdims=True)
        return float(-np.log(tempered[np.arange(len(labels)), labels]).mean())

    fitted = calibrated["five_crop"]
    assert fitted != 1
    assert loss(fitted) <= min(loss(fitted * factor) for factor in (0.97, 1.03)) + 1e-6
    right = []
    for path, probabilities in said.items():
        powers = probabilities ** (1 / fitted)
        tempered = powers / powers.sum()
        assert np.abs(answers[path] - tempered).max() < 1e-4, path
        right.append(tempered[label_at(path)])
    with zipfile.ZipFile(own.archive) as packed:
        least = json.loads(packed.read("metadata.json"))["plausible"]
    assert least.keys() == {"none", "five_crop"}
    kept = [np.mean(np.array(right) >= least["five_crop"] + away) for away in (-1e-4, 1e-4)]
    assert kept[0] >= 0.95 > kept[1], "the largest that 95 % of the true classes reach"


def test_an_own_archive_is_measured_as_it_is_served(
    own: Own, answers: dict[Path, Any], tmp_path: Path
) -> None:
    """By PyTorch's count, scikit-learn's figures of the answers over HTTP, and the pictures."""
    done = called("evaluate", own.folder, "--archive", own.archive, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "evaluation.json").read_text())
    (figures,) = record["figures"]
    labels = [label_at(path) for path in answers]
    best = [int(probabilities.argmax()) for probabilities in answers.values()]
    said = own.probabilities["five_crop"]
    right = np.mean([said[path].argmax() == label_at(path) for path in said])
    assert figures["tta"] == "five_crop" and figures["top1"]["value"] == pytest.approx(right)
    assert f"{right:.1%} (" in done.stdout
    sure = np.mean([probabilities.max() >= 0.4 for probabilities in answers.values()])
    assert figures["confident"]["value"] == pytest.approx(sure), "the archive's own threshold"
    nll = -np.log([answers[path][label_at(path)] for path in answers]).mean()
    assert figures["nll"] == pytest.approx(nll, abs=1e-3)

    expected = classification_report(
        labels, best, labels=range(9), target_names=OWN_LABELS, output_dict=True, zero_division=0
    )
    assert [one["label"] for one in record["classes"]] == list(OWN_LABELS)
    for one in record["classes"]:
        theirs = expected[one["label"]]
        assert one["support"] == theirs["support"]
        for ours, name in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
            assert (one[ours] or 0) == pytest.approx(theirs[name]), one
    vehicle = record["classes"][OWN_LABELS.index("vehicle")]
    assert vehicle["recall"] is None, "no picture, so no share of them"

    with (tmp_path / "confusion.csv").open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    assert head[1:] == [row[0] for row in rows] == list(OWN_LABELS)
    counts = np.zeros((9, 9), int)
    np.add.at(counts, (labels, best), 1)
    assert [[int(cell) for cell in row[1:]] for row in rows] == counts.tolist()
    assert Image.open(tmp_path / "confusion.png").format == "PNG"

    assert [Path(one["path"]).name for one in record["left out"]] == [
        *("large.png", "broken.jpg", "gone.jpg")
    ]
    for text in (
        "image_too_large: 1, such as",
        "broken.jpg: The image is truncated",
        "No such file",
    ):
        assert text in done.stderr
    assert "No picture of 3 of 9 classes: vehicle, home & music, other." in done.stderr

    page = (tmp_path / "worst.html").read_text(encoding="utf-8")
    wrong = [path for path in answers if answers[path].argmax() != label_at(path)]
    wrong.sort(key=lambda path: -answers[path].max())
    shown = [html.unescape(one) for one in re.findall("<b>(.*?)</b>", page)]
    assert shown == [str(path.relative_to(own.folder)) for path in wrong]
    assert any(HOSTILE in one for one in shown)
    assert "<b onclick" not in page and page.count("data:image/jpeg;base64,") == len(wrong)
    assert not re.search("https?://|<script|<link", page)


def test_an_archive_that_is_not_what_was_built_gets_no_temperatures(
    own: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "own.mar"
    shutil.copy(own.archive, copy)
    monkeypatch.setattr(sys, "argv", ["visionserve", str(own.folder), "--archive", str(copy)])
    before = sha256_of(copy)
    assert calibrate.main() == 1
    assert "own.json is missing" in capsys.readouterr().err
    copy.with_suffix(".json").write_text(json.dumps({"sha256": "0" * 64, "ingredients": ""}))
    assert calibrate.main() == 1
    assert "changed since it was built" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*sys.argv[:3], str(tmp_path / "absent.mar")])
    assert calibrate.main() == 1
    assert "absent.mar: no such archive" in capsys.readouterr().err
    assert sha256_of(copy) == before


def test_a_name_is_that_of_an_archive_in_the_store(
    own: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was declared of its preprocessing and its weights is in the archive."""
    (tmp_path / "edge").mkdir()
    for suffix in (".mar", ".json"):
        shutil.copy(own.archive.with_suffix(suffix), tmp_path / "edge")
    monkeypatch.setattr(paths, "MODEL_STORE", tmp_path)
    options = ["--profile", "edge", "--modes", "none", "--model"]
    monkeypatch.setattr(sys, "argv", ["visionserve", str(own.folder), *options, "own"])
    assert calibrate.main() == 0
    printed = capsys.readouterr().out
    assert f"own 1.0 ({DRAWN}, openvino fp32, exact decode)" in printed
    written = tmp_path / "edge" / "own-temperatures.json"
    assert printed.endswith(f"{tmp_path}/edge/own.mar has them; {ONCE}.\n{written}\n")
    with zipfile.ZipFile(tmp_path / "edge" / "own.mar") as packed:
        found = json.loads(packed.read("metadata.json"))["temperatures"]
    assert found["none"] == json.loads(written.read_text())["temperatures"]["none"]
    monkeypatch.setattr(sys, "argv", [*sys.argv[:-1], "absent"])
    for module in (calibrate, robustness):
        assert module.main() == 1
        said = f"{tmp_path}/edge/absent.mar is not there, and absent is no model that can be built"
        assert capsys.readouterr().err.startswith(said)


@pytest.mark.parametrize("module", [evaluate, robustness, calibrate, families])
def test_what_is_no_archive_is_refused(
    module: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = tmp_path / "other.mar"
    with zipfile.ZipFile(other, "w") as packed:
        packed.writestr("hello.txt", "hello")
    other.with_suffix(".json").write_text(
        json.dumps({"sha256": sha256_of(other), "ingredients": ""})
    )
    source = [] if module is families else [str(folders(tmp_path / "x", "a/1.jpg"))]
    monkeypatch.setattr(sys, "argv", ["visionserve", *source, "--archive", str(other)])
    assert module.main() == 1
    error = capsys.readouterr().err
    assert error.startswith(f"{other}: is no archive of this project") and error.count("\n") == 1


def test_labels_of_another_model_are_refused(
    own: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They got a Top-1 of 0.0 % and the exit code of success."""
    root = folders(tmp_path, "dogs/3.jpg", "bird/1.jpg")
    for module in (evaluate, robustness, calibrate):
        arguments = [str(root), "--archive", str(own.archive)]
        monkeypatch.setattr(sys, "argv", ["visionserve", *arguments])
        assert module.main() == 1
        error = capsys.readouterr().err
        assert "no class 'dogs' (1 pictures; the closest is 'dog')" in error
        assert "Traceback" not in error
    monkeypatch.setattr(sys, "argv", ["visionserve", *arguments, "--model", REAL])
    with pytest.raises(SystemExit) as ended:
        evaluate.main()
    assert ended.value.code == 2 and "leave out --model" in capsys.readouterr().err


@pytest.mark.usefixtures("one_reader")
def test_robustness_measures_every_condition(own: Own, tmp_path: Path) -> None:
    """Of two photographs from a CSV; `--quick` measures each one under a quarter of them."""
    said = own.probabilities["none"]
    files = [path for path in said if path.name != HOSTILE]
    lines = [f'"{path}","{path.parent.name}"' for path in files]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    options = ("--photographs", "2", "--modes", "none", "--output", tmp_path)
    printed = command("robustness", tmp_path / "labels.csv", "--archive", own.archive, *options)
    (none,) = json.loads((tmp_path / "robustness.json").read_text())["modes"].values()
    assert len(none["conditions"]) == 1 + 2 * len(CORRUPTIONS)
    chosen = [files[index * len(files) // 2] for index in range(2)]
    right = np.mean([said[path].argmax() == label_at(path) for path in chosen])
    assert none["clean"]["value"] == none["conditions"]["clean"] == pytest.approx(right)
    corrupted = np.mean([v for name, v in none["conditions"].items() if name != "clean"])
    assert none["corrupted"]["value"] == pytest.approx(corrupted) and corrupted <= 1
    assert f"2 photographs, {4 * len(CORRUPTIONS)} corrupted ones of them" in printed
    assert all(name in printed for name in CORRUPTIONS)
    assert Image.open(tmp_path / "robustness.png").format == "PNG"
    with opened(own.archive) as archived:
        bench = Bench(archived.directory, archived.config, ["none"])
        found = bench.measure(chosen[0], label_at(chosen[0]), 1, QUICK)
    assert found[0, 0, 0] == (said[chosen[0]].argmax() == label_at(chosen[0]))
    assert np.isfinite(found[0, 1:, 0]).sum() == 2 * len(CORRUPTIONS) / QUICK


def test_an_archive_is_a_row_of_the_families(own: Own) -> None:
    row = families.measure_archive(own.archive)
    with zipfile.ZipFile(own.archive) as packed:
        size = sum(one.compress_size for one in packed.infolist() if one.filename[:6] == "model.")
    assert (row.name, row.crop, row.dense, row.explains) == ("own", CROP, True, True)
    assert row.int8 is None and row.fp32 and row.fp32.megabytes == pytest.approx(size / 1e6)
    cells = families.markdown([row]).splitlines()[2].split(" | ")
    assert cells[6] == "–" and cells[9].startswith("passes: ") and cells[11] == "–"


def another(archive: Path, to: Path, metadata: dict[str, Any]) -> Path:
    """Version 2.0 of the same network, which looks at one view, with other metadata."""
    with zipfile.ZipFile(archive) as packed, zipfile.ZipFile(to, "w") as written:
        for name in packed.namelist():
            content = packed.read(name)
            if name == "metadata.json":
                content = json.dumps(json.loads(content) | metadata).encode()
            elif name == "MAR-INF/MANIFEST.json":
                content = content.replace(b'"1.0"', b'"2.0"')
            written.writestr(name, content.replace(b"tta: five_crop", b"tta: none"))
    return to


def test_two_archives_are_compared_as_pytorch_compares_them(
    own: Own,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each by its own views and temperature; then by label, where one has another name."""
    with zipfile.ZipFile(own.archive) as packed:
        temperatures = json.loads(packed.read("metadata.json"))["temperatures"]
    said = []
    for mode in ("five_crop", "none"):
        powers = np.stack([*own.probabilities[mode].values()]) ** (1 / temperatures.get(mode, 1))
        said.append(powers / powers.sum(axis=1, keepdims=True))
    files = [*own.probabilities["none"]]
    labels = np.array([label_at(path) for path in files])
    (first, second), best = said, [rows.argmax(axis=1) for rows in said]
    right = [found == labels for found in best]
    gained, lost = (int((right[a] & ~right[b]).sum()) for a, b in ((1, 0), (0, 1)))
    changes = gained + lost
    assert gained and (lost or not paths.PHOTOGRAPHS.exists())
    p = min(1, 2 * sum(math.comb(changes, k) for k in range(min(gained, lost) + 1)) / 2**changes)

    other = another(own.archive, tmp_path / "other.mar", {})
    folder = tmp_path / "comparison"
    pair = (own.archive, other, own.folder, "--output", folder)
    done = called("compare", *pair, "--at-least", "-99")
    assert done.returncode == 0, done.stderr
    assert "The bar is reached: " in done.stdout and "broken.jpg: The image" in done.stderr
    found = json.loads((folder / "comparison.json").read_text())
    assert [one["tta"] for one in found["archives"]] == ["five_crop", "none"]
    assert [one["version"] for one in found["archives"]] == ["1.0", "2.0"]
    rows = np.arange(len(labels))
    for one, probabilities, hits in zip(found["archives"], said, right, strict=True):
        assert one["top1"]["value"] == pytest.approx(hits.mean())
        nll = -np.log(probabilities[rows, labels]).mean()
        assert one["nll"] == pytest.approx(nll, abs=1e-3)
        assert one["milliseconds"] > 0 and 0 <= one["ece"] <= 1
    between = found["second to first"]
    assert (between["gained"], between["lost"]) == (gained, lost)
    assert between["mcnemar p"] == pytest.approx(p)
    assert between["top1"]["value"] == pytest.approx((gained - lost) / len(labels))
    assert between["changed"] == (best[0] != best[1]).sum()
    assert between["mean difference"] == pytest.approx(np.abs(second - first).mean(), abs=1e-5)
    assert {Path(one["path"]).name for one in found["left out"]} == {
        *("large.png", "broken.jpg", "gone.jpg")
    }

    moved = np.abs(second - first).sum(axis=1)
    order = sorted(rows, key=lambda row: (best[0][row] == best[1][row], -moved[row]))
    page = (folder / "changed.html").read_text(encoding="utf-8")
    shown = [html.unescape(one) for one in re.findall("<b>(.*?)</b>", page)]
    assert shown == [str(files[row].relative_to(own.folder)) for row in order]
    assert "default-src 'none'" in page and not re.search("https?://|<script|<link|<b ", page)
    assert page.count('src="data:image/jpeg;base64,') == page.count("<img ") == len(files)
    with (folder / "answers.csv").open(encoding="utf-8", newline="") as file:
        table = [*csv.DictReader(file)]
    assert [Path(row["path"]).name.lstrip("'") for row in table] == [
        files[row].name for row in order
    ]
    assert [row["B"] for row in table] == [OWN_LABELS[best[1][row]] for row in order]
    assert sum(row["changed"] == "true" for row in table) == between["changed"]

    def told(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["visionserve compare", *map(str, words)])
        code = compare.main()
        return code, *capsys.readouterr()

    few = tmp_path / "few"
    few.mkdir()
    (few / "cat").symlink_to(own.folder / "cat")
    code, out, _ = told(*pair[:2], few, "--output", folder, "--at-least", "99")
    assert code == 1 and "The bar is missed: " in out

    plain = tmp_path / "plain"
    plain.mkdir()
    some = slice(None, None, 4)
    for number, path in enumerate(files[some]):
        (plain / f"{number:03}{path.suffix}").symlink_to(path)
    renamed = [*OWN_LABELS[:-1], "anything else"]
    another(own.archive, other, {"categories": renamed})
    monkeypatch.setattr(paths, "MODEL_STORE", tmp_path)
    (tmp_path / "local").symlink_to(own.archive.parent)
    by_name = ("own", other, plain, "--output", folder)
    assert told(*by_name)[0] == 0
    found = json.loads((folder / "comparison.json").read_text())["second to first"]
    columns = [np.pad(first[some], ((0, 0), (0, 1))), np.insert(second[some], 8, 0, axis=1)]
    difference = np.abs(columns[1] - columns[0]).mean()
    assert found["mean difference"] == pytest.approx(difference, abs=1e-5)
    assert found["changed"] == (columns[0].argmax(1) != columns[1].argmax(1)).sum()
    assert "top1" not in found

    another(own.archive, other, {"categories": [f"class {number}" for number in range(9)]})
    several = {"activation": "sigmoid", "thresholds": [0.5] * 9}
    for words, said_ in (
        (by_name, "The archives have no label in common: 'dog' is one of own's"),
        ((own.archive, own.archive, plain, "--at-least", "0"), "--at-least takes labels. Give"),
        (("absent", *by_name[1:]), "absent.mar is not there; of archives there are: own"),
        ((own.archive, tmp_path / "absent.mar", plain), "absent.mar: no such archive"),
        ((another(own.archive, tmp_path / "s.mar", several), *pair[1:3]), "gives several labels"),
    ):
        code, _, error = told(*words, "--output", folder)
        assert code == 1 and said_ in error and "Traceback" not in error, error
