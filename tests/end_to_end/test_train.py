"""`visionserve train`, against scikit-learn, torchvision's transforms and plain PyTorch."""

import csv
import hashlib
import json
import math
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torchvision.transforms import InterpolationMode, v2

from tests.helpers import REAL, SERVER_CONFIG, called
from visionserve.models import MODELS
from visionserve_tools import paths, photos
from visionserve_tools.archive.recipe import Recipe, build
from visionserve_tools.archive.trained import read
from visionserve_tools.archive.weights import load_state_dict, resolve
from visionserve_tools.commands import train
from visionserve_tools.server.ports import free_ports
from visionserve_tools.server.torchserve import TorchServe
from visionserve_tools.training import folds, linear_probe, near_duplicates, network, reading, run

# Class indices of ImageNet, first and last.
RANGES = {
    "bird": [(7, 24), (80, 100)],
    "dog": [(151, 268)],
    "food": [(924, 969)],
    "insect": [(300, 326)],
    "mammal": [(330, 388)],
    "reptile": [(25, 68)],
    "sea life": [(0, 6), (107, 126), (389, 397)],
    "vehicle": [(403, 408), (436, 436), (466, 472), (554, 586), (654, 656), (814, 874)],
}
EACH = 8
DECLARED = ("--preset", "imagenet", "--channels", "grey", "--resize", "224x224")
VISIONSERVE = Path(sys.executable).with_name("visionserve")
pytestmark = pytest.mark.usefixtures("one_reader")


def painted(label: int, number: int) -> Image.Image:
    """A picture of clouds in the colour of its class, like no other one."""
    generator = np.random.default_rng(100 * label + number)
    clouds = generator.integers(0, 256, (9, 9, 3), dtype=np.uint8)
    tint = Image.new("HSV", (300, 260), (32 * label, 255, 200)).convert("RGB")
    return Image.blend(Image.fromarray(clouds).resize(tint.size), tint, 0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight class folders, of links to photographs where these are, else of painted pictures."""
    root = tmp_path_factory.mktemp("pictures")
    samples = sorted(paths.PHOTOGRAPHS.glob("*.JPEG"))
    for label, (name, ranges) in enumerate(RANGES.items()):
        (root / name).mkdir()
        chosen = [
            path
            for path in samples
            if any(first <= int(path.name[:3]) <= last for first, last in ranges)
        ]
        for number in range(EACH):
            if samples:
                (root / name / chosen[number].name).symlink_to(chosen[number])
            else:
                painted(label, number).save(root / name / f"{number} {name}.jpg")
    first, second, *_ = sorted((root / "bird").iterdir())
    Image.open(first).convert("RGB").save(root / "bird" / "again.jpg", quality=40)
    ImageOps.mirror(Image.open(second).convert("RGB")).save(root / "bird" / "mirrored.png")
    shutil.copy(first, root / "dog" / "no-dog.jpg")
    (root / "dog" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    (root / "dog" / "gone.jpg").symlink_to(root / "nowhere.jpg")
    (root / "dog" / "notes.txt").write_text("no picture")
    (root / "stray.jpg").symlink_to(first.resolve())
    (root / ".hidden").mkdir()
    return root


@dataclass(frozen=True)
class Trained:
    """What the command left."""

    folder: Path
    output: Path
    printed: str
    errors: str

    @property
    def report(self) -> Any:
        return json.loads((self.output / "report.json").read_text())

    @property
    def held_out(self) -> list[dict[str, str]]:
        return list(csv.DictReader((self.output / "held-out.csv").read_text().splitlines()))


@pytest.fixture
def refused(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run the command in this process, and return the one line with which it refuses."""

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["visionserve train", *map(str, arguments)])
        assert train.main() == 1
        *bars, line = capfd.readouterr().err.splitlines()
        assert all(re.match("photographs:|Under 20|Every picture|$", bar) for bar in bars)
        return line

    return run


@pytest.fixture(scope="module")
def trained(folder: Path, one_reader: None, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    output = tmp_path_factory.mktemp("trained") / "with space"
    options = ("--architecture", REAL, "--name", "eight", "--output", output, *DECLARED)
    done = called("train", folder, *options)
    assert done.returncode == 0, done.stderr
    return Trained(folder, output, done.stdout, done.stderr)


def plain(weights: Path, classes: int) -> torch.nn.Module:
    net = MODELS[REAL].build(classes)
    net.load_state_dict(torch.load(weights, weights_only=True))
    return net.eval()


def seen(paths: list[Path]) -> torch.Tensor:
    """Photographs by `DECLARED` in torchvision: float of shape (photographs, 3, 224, 224)."""
    steps = v2.Compose(
        [
            v2.Grayscale(3),
            v2.Resize((224, 224), InterpolationMode.BICUBIC),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    return torch.stack([steps(Image.open(path).convert("RGB")) for path in paths])


def answers(net: torch.nn.Module, images: torch.Tensor) -> NDArray[np.float32]:
    with torch.inference_mode():
        rows = [net(image[None]).softmax(1)[0].numpy() for image in images]
    return np.stack(rows)


def test_the_figures_are_those_of_the_written_weights(trained: Trained) -> None:
    """Top-1, its interval by Wilson's formula, and the confusion, on the photographs held out."""
    rows, report = trained.held_out, trained.report
    labels = (trained.output / "labels.txt").read_text().splitlines()
    assert labels == sorted(RANGES)
    found = answers(plain(trained.output / "weights.pt", 8), seen([Path(r["path"]) for r in rows]))
    told = [float(row["probability"]) for row in rows]
    assert np.abs(found.max(axis=1) - told).max() <= 1e-3
    right = [labels[row.argmax()] == one["label"] for row, one in zip(found, rows, strict=True)]
    p, n, z = float(np.mean(right)), len(rows), 1.959964
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    interval = [(middle + sign * half) / (1 + z * z / n) for sign in (-1, 1)]
    top1 = report["training"]["top1"]
    assert [top1["value"], top1["low"], top1["high"]] == pytest.approx([p, *interval], abs=1e-6)
    if paths.PHOTOGRAPHS.exists():
        assert p > 0.3, "of eight classes, and the pretrained features are of colours"
    confusion = list(csv.reader((trained.output / "confusion.csv").read_text().splitlines()))
    answered = Counter(
        (one["label"], labels[row.argmax()]) for row, one in zip(found, rows, strict=True)
    )
    assert confusion[0][1:] == [row[0] for row in confusion[1:]] == labels
    for name, *counts in confusion[1:]:
        assert [int(count) for count in counts] == [answered[name, other] for other in labels]
    damaged = report["training"]["top1_damaged"]
    assert 0 <= damaged["low"] <= damaged["value"] <= damaged["high"] <= 1
    assert f"{p:.1%} ({interval[0]:.1%} to {interval[1]:.1%})" in trained.printed


def test_the_last_layer_is_scikit_learns(trained: Trained) -> None:
    """A pipeline fitted on PyTorch's own features, which the standardization is a part of."""
    rows = trained.held_out
    held_out = {row["path"] for row in rows}
    refused = trained.report["left_out"].keys() | held_out
    used = [path for path in sorted(trained.folder.glob("*/*")) if str(path) not in refused]
    pretrained = MODELS[REAL].build(1000).eval()
    pretrained.load_state_dict(load_state_dict(resolve(REAL), pretrained.state_dict()))
    pretrained.set_submodule("_fc", torch.nn.Identity())
    with torch.inference_mode():
        features, others = (
            np.concatenate([pretrained(image[None]).numpy() for image in seen(chosen)])
            for chosen in (used, [Path(row["path"]) for row in rows])
        )
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=trained.report["details"]["C"], max_iter=2000)
    )
    model.fit(features.astype(float), [path.parent.name for path in used])
    expected = model.predict_proba(others.astype(float))
    found = answers(plain(trained.output / "weights.pt", 8), seen([Path(r["path"]) for r in rows]))
    assert np.abs(found - expected).max() <= 2e-3


def test_what_is_no_sound_photograph_is_told(trained: Trained) -> None:
    report = trained.report
    told = {Path(path).name: why for path, why in report["left_out"].items()}
    assert told.keys() == {"broken.jpg", "gone.jpg", "notes.txt", "stray.jpg"}
    assert "corrupt" in told["broken.jpg"] and "no class folder" in told["stray.jpg"]
    assert "4 files are left out" in trained.errors
    groups = [{Path(path).name for path in group} for group in report["near_duplicates"]]
    names = sorted(path.name for path in (trained.folder / "bird").iterdir())[:2]
    assert {names[0], "again.jpg"} in groups and {names[1], "mirrored.png"} in groups
    held_out = {Path(row["path"]).name for row in trained.held_out}
    assert all(group <= held_out or not group & held_out for group in groups)
    pairs = [{Path(path).name for path in pair} for pair in report["in_two_classes"]]
    assert {names[0], "no-dog.jpg"} in pairs
    training = report["training"]
    assert training["photographs"]["bird"] + training["held_out"]["bird"] == EACH + 2
    assert sum(training["held_out"].values()) == len(trained.held_out)
    used = [
        f"{path.parent.name}\t{hashlib.sha256(path.read_bytes()).hexdigest()}\n"
        for path in trained.folder.glob("*/*")
        if path.name not in told
    ]
    digest = hashlib.sha256("".join(sorted(used)).encode()).hexdigest()
    assert training["data_sha256"] == digest
    assert re.search(rf"Under 20 photographs of a class.*dog {EACH + 1}", trained.errors)


@pytest.fixture(scope="module")
def store(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the archive of the printed command, in FP32."""
    store = tmp_path_factory.mktemp("store")
    first, serve = trained.printed.splitlines()[-2:]
    program, *words = shlex.split(first)
    assert serve == f"{shlex.quote(program)} serve start --models eight"
    assert VISIONSERVE.samefile(program)
    done = called(*words, "--profile", "server", "--precision", "fp32", "--store", store)
    assert done.returncode == 0, done.stderr
    assert "Nothing is declared" not in done.stderr
    assert re.search(
        r"^Every picture: grey, squashed .* \[as it was trained\]\.$", done.stderr, re.M
    )
    return store


@pytest.fixture(scope="module")
def served(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    server = TorchServe("server", tmp_path_factory.mktemp("state"), store, free_ports())
    server.start(["eight=eight.mar"])
    try:
        yield server
    finally:
        server.stop()


def test_labels_in_another_order_than_the_trainings_are_refused(
    trained: Trained, tmp_path: Path
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(sorted(RANGES, reverse=True)))
    recipe = Recipe(REAL, "eight", "1.0", SERVER_CONFIG, trained.output / "weights.pt", labels)
    with pytest.raises(ValueError, match=r"were trained on bird, dog, .*: leave out --labels"):
        build(recipe, tmp_path / "store")


def test_the_archive_is_evaluated_on_what_was_held_out(
    trained: Trained, store: Path, tmp_path: Path
) -> None:
    given = [trained.output / "held-out.csv", "--archive", store / "eight.mar", "--modes", "none"]
    done = called("evaluate", *given, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    (figures,) = json.loads((tmp_path / "evaluation.json").read_text())["figures"]
    assert figures["top1"]["value"] == trained.report["training"]["top1"]["value"]


def test_the_served_answers_are_plain_pytorchs(trained: Trained, served: TorchServe) -> None:
    chosen = [Path(row["path"]) for row in trained.held_out][::4]
    labels = (trained.output / "labels.txt").read_text().splitlines()
    expected = answers(plain(trained.output / "weights.pt", 8), seen(chosen))
    for path, row in zip(chosen, expected, strict=True):
        response = served.client.predict("eight", path.read_bytes(), tta="none", top_k=8)
        found = {one["label"]: one["probability"] for one in response.json()["predictions"]}
        assert max(abs(found[name] - p) for name, p in zip(labels, row, strict=True)) <= 1e-3
    card = served.client.card("eight")
    assert card["training"] == trained.report["training"]
    assert card["transforms"] == trained.report["transforms"]
    assert str(trained.folder) not in json.dumps(card)


def test_a_finished_training_is_kept(trained: Trained, refused: Callable[..., str]) -> None:
    before = (trained.output / "weights.pt").read_bytes()
    line = refused(trained.folder, "--architecture", REAL, "--output", trained.output)
    assert re.search(r"report\.json: is of a finished training.*--overwrite", line)
    assert (trained.output / "weights.pt").read_bytes() == before


def test_a_pipe_is_refused_before_anything_is_read(
    trained: Trained, tmp_path: Path, refused: Callable[..., str]
) -> None:
    for name in ("labels.txt", "checkpoint.pt"):
        os.mkfifo(pipe := tmp_path / name)
        line = refused(trained.folder, "--architecture", REAL, "--output", tmp_path)
        assert line == f"{pipe}: is no regular file: remove it."
        pipe.unlink()


def test_a_report_is_of_the_weights_beside_it_alone(trained: Trained, tmp_path: Path) -> None:
    for name in ("weights.pt", "report.json"):
        shutil.copy(trained.output / name, tmp_path)
    weights = tmp_path / "weights.pt"
    assert read(weights) and not read(None) and not read(tmp_path / "labels.txt")
    weights.write_bytes(weights.read_bytes() + b" ")
    assert read(weights) is None
    (tmp_path / "report.json").write_text("[]")
    assert read(weights) is None


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """The arguments of a training of all layers, of two epochs on ten pictures."""
    root = tmp_path_factory.mktemp("tiny")
    for label in range(2):
        (root / "pictures" / str(label)).mkdir(parents=True)
        for number in range(5):
            painted(4 * label, number).save(root / "pictures" / str(label) / f"{number}.png")
    options = ("--fine-tune", "--epochs", 2, "--batch", 2, "--learning-rate", 0.002)
    return (root / "pictures", "--architecture", REAL, *options)


def _train(words: Sequence[str], errors: Path) -> None:
    """Be the command, on one core: one process decodes photographs."""
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    multiprocessing.set_start_method("fork", force=True)  # That of a process begun by a shell.
    with errors.open("w") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    sys.argv = ["visionserve train", *words]
    sys.exit(train.main())


def training(errors: Path, *arguments: object) -> ForkServerProcess:
    """Start the command in a process that has imported all already.

    And not in this one, as PyTorch's DataLoader leaves a handler of SIGCHLD behind. On the stack
    that pytest gives to handlers it ended some test, much later, by a SIGSEGV.
    """
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload([__name__, run.__name__, "torch._dynamo"])
    process = forks.Process(target=_train, args=([*map(str, arguments)], errors))
    process.start()
    return process


def until(file: Path, running: Callable[[], bool]) -> None:
    while not file.exists() and running():
        time.sleep(0.02)


def interrupted(file: Path, *arguments: object) -> tuple[int, str]:
    """Start the program, end it once a file is there, and return its code and its last line.

    As by a terminal, the signal reaches all processes.
    """
    command = [str(VISIONSERVE), "train", *map(str, arguments)]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        until(file, lambda: process.poll() is None)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate()
        assert "Traceback" not in errors
        return process.returncode, (errors.splitlines() or [""])[-1]


def test_every_pool_of_processes_starts_where_no_ctrl_c_comes_through() -> None:
    sources = (path.read_text() for path in paths.TOOLS.rglob("*.py"))
    before = [line for text in sources for line in re.findall(r"(\S.*)\n.*\.Pool\(", text)]
    assert before == ["with held_back():"] * 2


def test_processes_of_several_cores_see_what_one_does(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other tests read photographs on one core, in this process."""
    names = ("bird/again.jpg", "dog/broken.jpg", "bird/mirrored.png")
    tasks: list[reading.Task] = [(folder / name, None) for name in names]
    transforms = MODELS[REAL].transforms
    expected = reading.read(tasks, transforms, None, "here")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert reading.read(tasks, transforms, None, "there") == expected
    assert [isinstance(one, str) for one in expected] == [False, True, False]


def test_fine_tuning_goes_on_after_a_kill_to_the_same_weights(
    tiny: tuple[object, ...], tmp_path: Path, refused: Callable[..., str]
) -> None:
    whole, killed, errors = (tmp_path / name for name in ("whole", "killed", "errors"))
    process = training(errors, *tiny, "--output", whole)
    process.join()
    assert process.exitcode == 0, errors.read_text()
    process = training(errors, *tiny, "--output", killed)
    until(killed / "checkpoint.pt", process.is_alive)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL and not (killed / "report.json").exists()
    for other in (("--seed", "1"), ("--channels", "bgr")):
        line = refused(*tiny, "--output", killed, *other)
        assert "is of a training on other photographs or with other options" in line
    line = refused(*tiny, "--output", killed, "--crop", 300)
    assert "a crop of 300 is larger than the resized image" in line
    (killed / "labels.txt").unlink()
    code, line = interrupted(killed / "labels.txt", *tiny, "--output", killed)
    assert (code, line) == (
        130,
        "Interrupted; the same command goes on after its last whole epoch.",
    )
    process = training(errors, *tiny, "--output", killed)
    process.join()
    assert process.exitcode == 0 and "Going on after epoch 1 of 2." in errors.read_text()
    # If the first epoch is the best one, its weights say nothing of the second; its loss does.
    told = [json.loads((folder / "report.json").read_text()) for folder in (whole, killed)]
    losses = [report["details"]["losses"] for report in told]
    assert losses[0] == losses[1] and len(losses[0]) == 2
    first, second = (torch.load(folder / "weights.pt") for folder in (whole, killed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    began = torch.load(resolve(REAL).path)
    assert not torch.equal(second["_conv_stem.weight"], began["_conv_stem.weight"])
    plain(killed / "weights.pt", 2)
    assert told[0]["transforms"] == json.loads(MODELS[REAL].transforms.model_dump_json())
    assert not (killed / "checkpoint.pt").exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "holds no class folders"),
        (["dog/1.png"], "has only dog"),
        (["dog/1.png", "cat/note.txt"], r"cat: holds no photograph"),
        (["Dog/1.png", "dog/1.png"], "Dog and dog are the same name"),
        (["é/1.png", "e\u0301/1.png"], "are the same name"),
        (["dog/1.png", "cat\n/1.png"], "is no label"),
        (["train/dog/1.png", "val/dog/1.png"], "is split into train and val"),
        (["0 dog/1.png", "1 cat/1.png"], r"carries its number \(0 dog\), which would be"),
        ([f"dog/{n}.png" for n in range(5)] + ["cat/1.png"], "cat has 1"),
        ([f"{name}/{n}.png" for name in ("dog", "cat") for n in range(5)], r"cat has 1, dog has 1"),
    ],
    ids=[
        "empty",
        "one",
        "no picture",
        "case",
        "accent",
        "line feed",
        "parts",
        "numbers",
        "few",
        "alike",
    ],
)
def test_folders_that_teach_nothing_are_refused_in_a_line(
    files: list[str],
    message: str,
    tmp_path: Path,
    refused: Callable[..., str],
) -> None:
    for file in files:
        path = tmp_path / "pictures" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photos.greeting(), path)
    (tmp_path / "pictures").mkdir(exist_ok=True)
    output = tmp_path / "output"
    line = refused(tmp_path / "pictures", "--architecture", REAL, "--output", output)
    assert re.search(message, line)
    assert not (output / "weights.pt").exists()


def test_folds_keep_near_duplicates_together_and_no_class_goes_without() -> None:
    for seed in range(20):
        generator = np.random.default_rng(seed)
        groups = np.sort(generator.integers(0, 40, 150))
        labels = groups // 8
        found = folds.divide(labels, groups, seed)
        assert all(len(set(found[groups == group])) == 1 for group in set(groups))
        assert all(set(found[labels == label]) == set(range(folds.FOLDS)) for label in set(labels))
        assert np.array_equal(found, folds.divide(labels, groups, seed))


def test_photographs_of_different_things_are_no_near_duplicates(samples: list[Path]) -> None:
    shrunk = [np.asarray(Image.open(path).convert("RGB").resize((96, 96))) for path in samples]
    hashes = np.array([near_duplicates.perceptual_hashes(one) for one in shrunk], dtype=np.uint64)
    assert len(near_duplicates.pairs(hashes[:, 0], hashes[:, 1])) == 0


@pytest.mark.parametrize(("classes", "bias"), [(2, True), (3, True), (3, False)])
def test_the_layer_is_the_whole_pipeline(classes: int, bias: bool) -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(60) % classes
    features = generator.normal(labels[:, None], [1, 2, 5, 0.1], (60, 4)).astype(np.float32) + 3
    found = linear_probe.fit(features, labels, np.arange(60) // classes % 5, bias)
    logits = features @ found.weight.T + found.bias
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    model = make_pipeline(
        StandardScaler(with_mean=bias), LogisticRegression(C=found.strength, fit_intercept=bias)
    )
    expected = model.fit(features.astype(float), labels).predict_proba(features.astype(float))
    assert np.abs(probabilities - expected).max() < 1e-4
    assert bias or not found.bias.any()


@pytest.mark.parametrize("architecture", ["googlenet", "mnasnet0_5", "maxvit_t"])
def test_other_networks_get_a_new_last_layer(architecture: str, tmp_path: Path) -> None:
    file = tmp_path / "first.pt"
    torch.save(MODELS[architecture].build(7).state_dict(), file)
    net = network.start(architecture, 3, resolve(architecture, file), 0)
    name, layer = network.last_linear(net, architecture, 3)
    crop = MODELS[architecture].transforms.crop
    pixels = torch.randint(0, 256, (1, crop, crop, 3), dtype=torch.uint8)
    backbone = network.Backbone(architecture, net, name, MODELS[architecture].transforms)
    with torch.inference_mode():
        images = backbone.normalize(pixels)
        assert torch.equal(layer(backbone(pixels)), net(images)) and net(images).shape == (1, 3)
    torch.save(net.state_dict(), file)
    MODELS[architecture].build(3).load_state_dict(torch.load(file))


def test_a_network_that_ends_in_no_linear_layer_says_what_to_do() -> None:
    net = MODELS["squeezenet1_1"].build(3)
    with pytest.raises(network.HeadError, match="--fine-tune"):
        network.last_linear(net, "squeezenet1_1", 3)
