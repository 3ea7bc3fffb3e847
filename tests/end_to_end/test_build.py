"""Weights that are checked, and archives that hold one package."""

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from tests.helpers import RANDOM, REAL, SERVER_CONFIG, SMALL, called, copy_sources, write_config
from visionserve.config import ModelConfig
from visionserve.metadata import Metadata
from visionserve.models import MODELS
from visionserve.processor import multiplies_bf16, overflows
from visionserve_tools import environment, paths, photos
from visionserve_tools.archive import converted
from visionserve_tools.archive.calibrated import Fitted, pack
from visionserve_tools.archive.classes import read_classes
from visionserve_tools.archive.declared import Declared
from visionserve_tools.archive.groups import find_groups
from visionserve_tools.archive.handler import files
from visionserve_tools.archive.hashes import HashError, read_record, record, sha256_of, write_record
from visionserve_tools.archive.manifest import ArchiveError
from visionserve_tools.archive.recipe import Recipe, build, fingerprint, made_of, served
from visionserve_tools.archive.store import adopt, choose
from visionserve_tools.archive.weights import WeightsError, WeightsUnavailableError, resolve
from visionserve_tools.server.plan import of_names
from visionserve_tools.server.ports import free_ports
from visionserve_tools.server.torchserve import TorchServe


def recipe(config: Path, weights: Path | None, architecture: str = SMALL, **more: object) -> Recipe:
    return Recipe(architecture, "random", "1.0", config, weights, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def small_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict of the smallest network, untrained."""
    path = tmp_path_factory.mktemp("weights") / "small.pt"
    torch.save(MODELS[SMALL].build(1000).state_dict(), path)
    return path


@pytest.mark.parametrize("profile", paths.profiles())
def test_every_profile_is_valid(profile: str) -> None:
    config = ModelConfig.load(paths.CONFIG / profile / "model-config.yaml")
    assert config.responseTimeout == 30
    assert config.minWorkers <= config.maxWorkers


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("handler", {"tta": "none"}),
        ("handler", {"defaults": {"topk": 3}}),
        ("handler", {"runtime": "onnx"}),
        ("handler", {"runtime": "openvino", "precision": "fp16"}),
        ("handler", {"runtime": "pytorch", "precision": "int8"}),
        ("minWorker", 1),
        ("minWorkers", 0),
    ],
)
def test_an_unknown_key_or_bad_value_is_named_and_nothing_is_built(
    tmp_path: Path, small_weights: Path, key: str, value: object
) -> None:
    config = tmp_path / "model-config.yaml"
    config.write_text(yaml.safe_dump({key: value}))
    with pytest.raises(ValueError, match=key):
        build(recipe(config, small_weights), tmp_path / "store")
    assert not any((tmp_path / "store").glob("*"))


def test_a_built_archive_needs_no_weights_any_more(
    tmp_path: Path, pytorch_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    official = Recipe("resnet18", "resnet18", "1.0", pytorch_config)
    archive = tmp_path / "resnet18.mar"
    archive.write_bytes(b"built before")
    ingredients = fingerprint(official, ModelConfig.load(pytorch_config))
    record(archive, ingredients)
    assert build(official, tmp_path) == archive
    assert archive.read_bytes() == b"built before" and not (tmp_path / "empty").exists()


@pytest.mark.parametrize(
    ("profile", "special"), [("local", overflows()), ("server", multiplies_bf16())]
)
def test_an_archive_for_other_processors_is_served_and_built_anew(
    tmp_path: Path, exact_config: Path, profile: str, special: bool
) -> None:
    """`build` makes one for this processor, as its worker's log advises, and `serve` needs none."""
    (tmp_path / "weights.pt").write_bytes(b"")
    path = paths.CONFIG / profile / "model-config.yaml"
    wanted, config = recipe(path, tmp_path / "weights.pt"), ModelConfig.load(path)
    by_kind = {kind: fingerprint(wanted, config, kind) for kind in (False, True)}
    assert fingerprint(wanted, config) == by_kind[special] != by_kind[not special]
    archive = tmp_path / "random.mar"
    archive.write_bytes(b"built before")
    record(archive, by_kind[not special])
    assert build(wanted, tmp_path, again=False) == archive
    with pytest.raises(WeightsError):
        build(wanted, tmp_path)
    record(archive, by_kind[special])
    assert build(wanted, tmp_path) == archive
    exact = ModelConfig.load(exact_config)
    assert fingerprint(wanted, exact, False) == fingerprint(wanted, exact, True)


def test_weights_of_another_number_of_classes_are_refused(
    tmp_path: Path, pytorch_config: Path
) -> None:
    file = tmp_path / "seven.pt"
    torch.save(MODELS["resnet18"].build(7).state_dict(), file)
    with pytest.raises(WeightsError, match=r"seven\.pt has 7 classes, but ImageNet .* 1000"):
        build(recipe(pytorch_config, file, "resnet18"), tmp_path / "store")
    assert not any((tmp_path / "store").glob("*"))


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", b"\x80\x02}."])
def test_corrupt_weights_are_refused(tmp_path: Path, pytorch_config: Path, content: bytes) -> None:
    file = tmp_path / "corrupt.pt"
    file.write_bytes(content)
    with pytest.raises(WeightsError, match=r"corrupt\.pt"):
        build(recipe(pytorch_config, file), tmp_path / "store")
    assert not any((tmp_path / "store").glob("*"))


def test_weights_that_hold_code_are_refused(tmp_path: Path, pytorch_config: Path) -> None:
    file = tmp_path / "code.pt"
    torch.save({"fc.bias": SimpleNamespace()}, file)
    with pytest.raises(WeightsError, match=r"SimpleNamespace as fc\.bias, not its weights"):
        build(recipe(pytorch_config, file), tmp_path / "store")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"absent\.pt: no such file"):
        resolve("resnet18", tmp_path / "absent.pt")


def test_official_weights_come_from_the_hub_cache_and_their_hash_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"another file")
    message = rf"expected SHA-256 f37072fd\.\.\., found {sha256_of(cached)}"
    with pytest.raises(WeightsError, match=message):
        resolve("resnet18")


def test_official_weights_that_cannot_be_had_are_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(WeightsUnavailableError, match=r"download\.pytorch\.org"):
        resolve("resnet18")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, pytorch_config: Path) -> tuple[Recipe, Path]:
    """The averaged weights of a training program's file, built with class folders and a map."""
    root = tmp_path_factory.mktemp("tuned")
    weights, names, folders = (root / name for name in ("tuned.ckpt", "map.json", "photos"))
    last, averaged = (MODELS[SMALL].build(2).state_dict() for _ in range(2))
    torch.save({"model": last, "model_ema": averaged, "args": Namespace(lr=0.1)}, weights)
    for label in ("valley", "alp"):
        (folders / label).mkdir(parents=True)
    names.write_text(json.dumps({"names": {"zh": {"alp": "高山雪景"}}}, ensure_ascii=False))
    more: dict[str, Any] = {"labels": folders, "label_map": names, "averaged": True}
    wanted = recipe(pytorch_config, weights, **more)
    return wanted, build(wanted, root / "store")


def test_a_checkpoint_with_class_folders_and_a_label_map(
    tuned: tuple[Recipe, Path], pytorch_config: Path
) -> None:
    """Of two sets of weights in a training program's file, the averaged one is packed."""
    wanted, archive = tuned
    assert wanted.weights and wanted.labels
    averaged = torch.load(wanted.weights, weights_only=False)["model_ema"]
    with zipfile.ZipFile(archive) as content:
        metadata = Metadata.model_validate_json(content.read("metadata.json"))
        packed = torch.load(io.BytesIO(content.read("model.pt")), weights_only=True)
    assert all(torch.equal(tensor, averaged[name]) for name, tensor in packed.items())
    assert metadata.categories == ("alp", "valley")
    assert metadata.names == {"zh": ("高山雪景", "valley")}
    assert metadata.weights_sha256 == sha256_of(wanted.weights)
    config = ModelConfig.load(pytorch_config)
    made = {fingerprint(one, config) for one in (wanted, replace(wanted, averaged=False))}
    (wanted.labels / "gorge").mkdir()
    made.add(fingerprint(wanted, config))
    (wanted.labels / "gorge").rmdir()
    assert len(made) == 3 and fingerprint(wanted, config) in made


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process."""

    def run(command: str, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [command, *map(str, arguments)])
        code = import_module(f"visionserve_tools.commands.{command}").main()
        return code, *capsys.readouterr()

    return run


def content_of(archive: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(archive) as packed:
        return {name: packed.read(name) for name in packed.namelist()}


def make_old(archive: Path, **others: bytes) -> dict[str, bytes]:
    """Give an archive the handler of another release, or other files, and return what it holds."""
    content = content_of(archive)
    content["visionserve/page.py"] += b"# as it was"
    content["visionserve/gone.py"] = b""
    del content["visionserve/web/main.js"]
    content |= others
    with zipfile.ZipFile(archive, "w") as packed:
        for name, data in content.items():
            packed.writestr(name, data)
    kept = read_record(archive)
    assert kept
    write_record(archive, kept | {"sha256": sha256_of(archive)})
    return content


def test_an_archive_gets_todays_handler_or_is_made_again(
    tuned: tuple[Recipe, Path], tmp_path: Path, run: Run
) -> None:
    """Both keep what calibrate packed; repack works without PyTorch, and without the weights."""
    wanted, built = tuned
    assert wanted.weights and wanted.labels
    store, weights, away = tmp_path / "store", wanted.weights, wanted.weights.with_name("away")
    shutil.copytree(built.parent, store)
    archive = store / built.name
    for mode, value in (("none", 0.7), ("dense", 0.9)):
        about = {"about": "", "weights_sha256": sha256_of(weights), "architecture": SMALL}
        pack(archive, Fitted.model_validate(about | {"temperatures": {mode: value}}))
    before = make_old(archive)
    weights.rename(away)
    no_torch = "import sys; sys.modules['torch'] = None; from visionserve_tools.commands import "
    command = f"{no_torch}repack; repack.main()"
    done = subprocess.run(
        [sys.executable, "-c", command, "random", "--store", store],
        cwd=paths.ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{archive}: 3 files of its handler are today's now.\n"
    after = content_of(archive)
    today = (paths.HANDLER / "visionserve" / "page.py").read_bytes()
    assert after.pop("visionserve/page.py") == today != before.pop("visionserve/page.py")
    assert before.pop("visionserve/gone.py") == b"" and after.pop("visionserve/web/main.js")
    assert after == before
    kept = read_record(archive)
    assert kept and kept["sha256"] == hashlib.sha256(archive.read_bytes()).hexdigest()
    whole = archive.read_bytes()
    said = (0, f"{archive}: its handler is today's already.\n", "")
    assert run("repack", "random", "--store", store) == said
    assert archive.read_bytes() == whole

    code, out, error = run("rebuild", "random", "--store", store, "--changed")
    assert (code, out) == (1, "")
    assert error == f"{archive} cannot be made again: {weights}: no such file of weights.\n"
    away.rename(weights)
    (wanted.labels / "alp").rename(wanted.labels / "peak")
    assert wanted.label_map
    names = wanted.label_map.read_text()
    wanted.label_map.write_text("{}")
    code, out, error = run("rebuild", "random", "--store", store)
    assert (code, out) == (1, "")
    assert error == (
        f"{archive}: since it was built, labels {wanted.labels} changed, label map "
        f"{wanted.label_map} changed. --changed builds it of what there is now.\n"
    )
    assert archive.read_bytes() == whole
    (wanted.labels / "peak").rename(wanted.labels / "alp")
    wanted.label_map.write_text(names)
    archive.unlink()
    code, out, error = run("rebuild", "random", "--store", store)
    assert (code, out.startswith(f"{archive} (")) == (0, True), error
    again = content_of(archive)
    metadata = json.loads(again["metadata.json"])
    assert metadata == json.loads(before["metadata.json"])
    assert metadata["temperatures"] == {"none": 0.7, "dense": 0.9}
    assert again["model.pt"] == before["model.pt"]
    assert again.keys() == before.keys() | {"visionserve/page.py", "visionserve/web/main.js"}
    whole = archive.read_bytes()
    assert run("rebuild", "random", "--store", store)[0] == 0 and archive.read_bytes() == whole


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_what_only_wraps_a_model_is_packed_around_it_without_pytorch(
    tuned: tuple[Recipe, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also from the archive alone; but other code of the builder converts the model anew."""
    wanted, built = tuned
    root = tmp_path / "clone"
    copy_sources(root)
    archive = shutil.copytree(built.parent, root / "store") / built.name
    before = content_of(archive)

    def rebuild() -> subprocess.CompletedProcess[str]:
        no_torch = (
            "import sys; sys.modules['torch'] = None; from visionserve_tools.commands import "
        )
        code = f"{no_torch}rebuild; rebuild.main()"
        return subprocess.run(
            [sys.executable, "-c", code, "random", "--store", archive.parent],
            cwd=root,
            env=os.environ
            | {
                "PYTHONPATH": f"{root / 'handler'}:{root / 'scripts'}",
                converted.PLACE: str(tmp_path / "none"),
            },
            capture_output=True,
            text=True,
        )

    style = root / "handler" / "visionserve" / "web" / "style.css"
    style.write_text(f"{style.read_text()}/* Other colours. */")
    for file in ("handler/visionserve/models.py", "scripts/visionserve_tools/archive/convert.py"):
        edit(root / file, '"""', '"""In other words: ')
    done = rebuild()
    around = f"{archive} is packed around the model that was converted before, as something that "
    assert (done.returncode, around in done.stderr) == (0, True), done.stderr
    after = content_of(archive)
    assert after.keys() == before.keys()
    changed = {name for name, data in after.items() if data != before[name]}
    assert changed == {"visionserve/web/style.css", "visionserve/models.py"}
    assert after["visionserve/web/style.css"] == style.read_bytes()
    edit(root / "scripts/visionserve_tools/archive/convert.py", "SAMPLES = 300", "SAMPLES = 301")
    done = rebuild()
    assert done.returncode and "import of torch halted" in done.stderr
    assert content_of(archive) == after

    (tmp_path / "labels.txt").write_text("peak\ngorge\n")
    other = replace(wanted, name="peaks", version="2.0", labels=tmp_path / "labels.txt")
    capsys.readouterr()
    content = content_of(build(replace(other, label_map=None), tmp_path / "others"))
    assert "packed around" in capsys.readouterr().err
    assert content["model.pt"] == before["model.pt"]
    metadata = Metadata.model_validate_json(content["metadata.json"])
    assert (metadata.categories, metadata.names) == (("peak", "gorge"), {})
    manifest, earlier = (json.loads(of["MAR-INF/MANIFEST.json"]) for of in (content, before))
    assert (manifest["model"]["modelName"], manifest["model"]["modelVersion"]) == ("peaks", "2.0")
    assert manifest["createdOn"] == earlier["createdOn"], "the model is as old"


def test_a_converted_model_is_known_by_what_made_it(
    tmp_path: Path, pytorch_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"one.pt": "1", "two.pt": "2", "a.txt": "a\nb", "b.txt": "c\nd", "c.txt": "a\nb\nc"}
    files |= {"map.json": '{"a": "A"}', "groups.json": '{"all": [0, 1]}'}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    figures = tmp_path / "own.csv"
    figures.write_text(f"path,a,b\n{photos.greeting()},0.5,0.5\n")
    (tmp_path / "photographs").mkdir()
    shutil.copy(photos.greeting(), tmp_path / "photographs")
    others = {}
    settings: dict[str, dict[str, Any]] = {
        "tta": {"runtime": "pytorch", "defaults": {"tta": "none"}},
        "openvino": {},
        "int8": {"precision": "int8"},
        "auto": {"precision": "auto"},
    }
    for name, handler in settings.items():
        (tmp_path / name).mkdir()
        others[name] = write_config(tmp_path / name, **handler)

    def key(recipe: Recipe, special: bool = False, /, **made: Any) -> str:
        recipe = replace(recipe, **made)
        config, classes = ModelConfig.load(recipe.config), read_classes(recipe)
        hashes = made_of(recipe)["files"]
        return converted.key_of(recipe, config, hashes, classes.labels, classes.members, special)

    plain = recipe(pytorch_config, tmp_path / "one.pt", labels=tmp_path / "a.txt")
    wrappers: list[dict[str, Any]] = [
        {"name": "other", "version": "2.0", "file": "x", "label_map": tmp_path / "map.json"},
        {"labels": tmp_path / "b.txt"},
        {"config": others["tta"]},
    ]
    for wrapper in wrappers:
        assert key(plain, **wrapper) == key(plain), wrapper
    int8, auto = (replace(plain, config=others[name]) for name in ("int8", "auto"))
    keys = [key(plain), *(key(one, kind) for one in (int8, auto) for kind in (False, True))] + [
        key(plain, **made)
        for made in (
            *({"weights": tmp_path / "two.pt"}, {"labels": tmp_path / "c.txt"}, {"averaged": True}),
            *({"architecture": "resnet34"}, {"activation": "sigmoid"}, {"expect": figures}),
            *({"declared": Declared("half")}, {"calibration": tmp_path / "photographs"}),
            *({"groups": tmp_path / "groups.json"}, {"config": others["openvino"]}),
        )
    ]
    assert len({*keys}) == len(keys)
    assert key(plain, True) == key(plain), "FP32 has no range"
    expecting = replace(plain, expect=figures)
    assert key(expecting, config=others["tta"]) != key(expecting), "it was compared so"
    monkeypatch.setattr(environment, "pinned", lambda extra: ["torch==0"])
    assert key(plain) not in keys


def test_models_that_were_not_used_for_long_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is damaged is not taken."""
    kept = tmp_path / "kept"
    monkeypatch.setenv(converted.PLACE, str(kept))
    made = []
    for age, name in enumerate("abc"):
        made.append(packed(tmp_path / f"{name}.mar", name, "1.0"))
        told = read_record(made[-1])
        assert told
        write_record(made[-1], told | {"made_of": {"model": name}})
        monkeypatch.setattr(converted, "MOST_BYTES", 2 * made[0].stat().st_size)
        converted.keep(made[-1], name)
        os.utime(kept / f"{name}.json", (age, age))
    assert {file.name for file in kept.iterdir()} == {"b.mar", "b.json", "c.mar", "c.json"}
    assert converted.find("a", made[0]) == made[0] and converted.find("a", made[1]) is None
    made[2].unlink()
    assert converted.find("c", made[2]) == kept / "c.mar"
    (kept / "c.mar").write_bytes((kept / "c.mar").read_bytes()[:-1])
    assert converted.find("c", made[2]) is None


def test_an_archive_is_what_torch_model_archiver_makes(
    tuned: tuple[Recipe, Path], tmp_path: Path
) -> None:
    content = tmp_path / "content"
    with zipfile.ZipFile(tuned[1]) as archive:
        archive.extractall(content)
    shutil.rmtree(content / "MAR-INF")
    command: list[str | Path] = [
        *(Path(sys.executable).with_name("torch-model-archiver"), "--version", "1.0"),
        *("--model-name", "random", "--handler", content / "visionserve_handler.py"),
        *("--extra-files", content, "--config-file", content / "model-config.yaml"),
        *("--export-path", tmp_path),
    ]
    subprocess.run(command, check=True, env={**os.environ, "TMPDIR": str(tmp_path)})
    wanted, found = content_of(tmp_path / "random.mar"), content_of(tuned[1])
    manifests = [json.loads(of.pop("MAR-INF/MANIFEST.json")) for of in (wanted, found)]
    assert found == wanted and {*map(len, {of.pop("createdOn") for of in manifests})} == {19}
    assert manifests[0] == manifests[1]
    today = {name: path.read_bytes() for name, path in files("pytorch").items()}
    assert today.items() <= found.items() and {"model.pt", "model-config.yaml"} <= found.keys()


def test_what_cannot_be_repacked_or_made_again_is_told(
    tuned: tuple[Recipe, Path], tmp_path: Path, run: Run
) -> None:
    _, built = tuned
    archive = shutil.copytree(built.parent, tmp_path / "store") / built.name
    described = json.loads(content_of(archive)["metadata.json"]) | {"later": 1}

    def refusal(command: str, name: str = "random") -> str:
        before = archive.read_bytes()
        code, out, error = run(command, name, "--store", archive.parent)
        assert (code, out) == (1, "") and archive.read_bytes() == before
        (line,) = error.splitlines()
        return line

    for command in ("repack", "rebuild"):
        line = refusal(command, "absent")
        assert line == f"{archive.parent}/absent.mar is not there; of archives there are: random."
    make_old(archive, **{"metadata.json": json.dumps(described).encode()})
    line = refusal("repack")
    assert "today's handler cannot read its metadata.json (later: " in line
    assert line.endswith("make it again: visionserve rebuild random")
    archive.write_bytes(archive.read_bytes() + b"x")
    assert refusal("repack") == f"{archive}: changed since it was built; build it again."
    told = f"{archive}: since it was built, the archive itself changed. --changed "
    assert refusal("rebuild").startswith(told)
    kept = read_record(archive)
    assert kept
    write_record(archive, kept | {"made_of": None})
    assert "an earlier release wrote it, without a recipe. " in refusal("rebuild")
    write_record(archive, kept | {"made_of": {"recipe": {"later": 1}}})
    assert "holds no recipe of this release (recipe" in refusal("rebuild")
    archive.with_suffix(".json").unlink()
    for command in ("repack", "rebuild"):
        line = (
            f"{archive.with_suffix('.json')} is missing: copy it from where random.mar was built."
        )
        assert refusal(command) == line


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights_sha256": "0" * 64}, rf"fitted for {SMALL} with weights 00000000\.\.\., not for"),
        ({"groups_sha256": "0" * 64}, r"fitted for other groups of classes, or for none; run"),
        ({"temperatures": {"none": 0}}, r"no file of temperatures: temperatures\.none"),
        ({"temperatures": {"six_crop": 1}}, r"no file of temperatures: temperatures\.six_crop"),
    ],
)
def test_temperatures_of_other_weights_or_out_of_range_are_refused(
    tmp_path: Path,
    pytorch_config: Path,
    small_weights: Path,
    change: dict[str, object],
    message: str,
) -> None:
    file = tmp_path / "temperatures.json"
    found = {"architecture": SMALL, "weights_sha256": sha256_of(small_weights), "about": ""}
    file.write_text(json.dumps({**found, "temperatures": {"none": 0.7}, **change}))
    wanted = recipe(pytorch_config, small_weights, temperatures=file)
    with pytest.raises(ValueError, match=message):
        build(wanted, tmp_path / "store")
    assert not any((tmp_path / "store").glob("*"))
    plain = recipe(pytorch_config, small_weights)
    config = ModelConfig.load(pytorch_config)
    assert fingerprint(wanted, config) != fingerprint(plain, config)


def test_a_label_map_with_an_unknown_label_is_refused(
    tmp_path: Path, pytorch_config: Path, small_weights: Path
) -> None:
    names = tmp_path / "map.json"
    names.write_text('{"alps": "x"}')
    with pytest.raises(ValueError, match="no such label: alps"):
        build(recipe(pytorch_config, small_weights, label_map=names), tmp_path / "store")


def test_a_second_build_does_nothing_and_a_changed_one_rebuilds(
    tuned: tuple[Recipe, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "labels.txt").write_text("alp\nvalley\n")
    wanted = replace(tuned[0], labels=tmp_path / "labels.txt", label_map=None)
    archive = build(wanted, tmp_path)
    said = capsys.readouterr().err
    assert re.match(rf"{archive} is (built|packed around .*), as there is none yet\.\n", said)
    first = archive.stat().st_mtime_ns
    record = json.loads(archive.with_suffix(".json").read_text())
    assert record["sha256"] == sha256_of(archive)
    assert build(wanted, tmp_path).stat().st_mtime_ns == first
    assert capsys.readouterr().err == ""

    whole = archive.read_bytes()
    archive.unlink()
    archive.write_bytes(whole + b"x")
    server = TorchServe("server", tmp_path / "state", tmp_path, free_ports())
    with pytest.raises(HashError, match=r"random\.mar: changed"):
        server.start(["random=random.mar"])
    snapshots = tmp_path / "state" / "logs" / "config"
    snapshots.mkdir(parents=True)
    models = r'{"models"\:{"random"\:{"1.0"\:{"marName"\:"random.mar","defaultVersion"\:true}}}}'
    (snapshots / "1-snapshot.cfg").write_text(f"model_snapshot={models}")
    with pytest.raises(HashError, match=r"random\.mar: changed"):
        server.restore()
    assert build(wanted, tmp_path).stat().st_mtime_ns != first
    around = f"{archive} is packed around the model that was converted before, as "
    why = "the one there was changed since it was built"
    assert capsys.readouterr().err == f"{around}{why}.\n"
    build(wanted, tmp_path, force=True)
    said = capsys.readouterr().err
    assert said.startswith(f"{archive} is built, as --force asks for it.\n")
    assert "same best class: 100.0%" in said
    second = archive.stat().st_mtime_ns
    newer = replace(wanted, version="2.0")
    assert build(newer, tmp_path) == tmp_path / "random-2.0.mar"
    assert archive.stat().st_mtime_ns == second and read_record(archive) is not None


def test_the_archive_imports_as_one_package_of_its_own(store: Path, tmp_path: Path) -> None:
    """And one of PyTorch without its compiler, which is there for whoever asks for it.

    `test_checkpoints` does, with `torch.export`, by what is checked here.
    """
    with zipfile.ZipFile(store / f"{RANDOM}.mar") as archive:
        archive.extractall(tmp_path)
    code = """
import sys
import visionserve_handler, visionserve.runtimes.pytorch
assert "torchvision" in sys.modules
assert not [name for name in sys.modules if name.startswith("torch._dynamo")]
assert sys.modules["torch"].compiler.disable.__module__ == "torch.compiler"
print(visionserve_handler.__file__, visionserve.runtimes.pytorch.__file__)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(str(tmp_path) in path for path in done.stdout.split())


def test_only_an_openvino_archive_stands_in_for_torch(store: Path) -> None:
    names = {name: zipfile.ZipFile(store / f"{name}.mar").namelist() for name in (REAL, RANDOM)}
    assert not any(
        name.endswith(("README.md", ".pyc")) or "egg-info" in name for name in names[REAL]
    )
    assert "torch.py" in names[REAL] and "torch.py" not in names[RANDOM]


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (
            ["--groups", "mine"],
            1,
            "mine: no such file of groups, nor one of config/groups: everyday.",
        ),
        (
            ["--groups", "everyday", "--activation", "sigmoid"],
            1,
            "--groups sums up a softmax: give it without --activation sigmoid.",
        ),
        (["--weights", "absent.pt"], 1, "absent.pt: no such file of weights."),
        (
            ["--profile", "gpu-t4", "--precision", "int8"],
            1,
            "gpu-t4/model-config.yaml: pytorch has no precision int8.",
        ),
        (["--use-ema"], 2, "--use-ema chooses among the weights of a checkpoint: give --weights"),
    ],
)
def test_the_builder_command_reports_an_error_without_a_traceback(
    tmp_path: Path, options: list[str], code: int, said: str
) -> None:
    done = called("build", *options, "--store", tmp_path)
    assert done.returncode == code
    assert done.stderr.endswith(f"{said}\n") and "Traceback" not in done.stderr


def test_the_server_profile_is_exact() -> None:
    config = ModelConfig.load(SERVER_CONFIG).handler
    assert (config.precision, config.decode, config.defaults.tta) == ("auto", "exact", "dense")


def test_a_profiles_precision_can_be_replaced_and_is_fp32_on_arm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    edge = Recipe("resnet18", "a", "1.0", paths.CONFIG / "edge" / "model-config.yaml")
    given = [replace(edge, precision=precision) for precision in (None, "fp32", "int8")]
    for machine, expected in (
        ("x86_64", ["int8", "fp32", "int8"]),
        ("aarch64", ["fp32", "fp32", "int8"]),
    ):
        monkeypatch.setattr("platform.machine", lambda machine=machine: machine)
        configs = [one.configuration for one in given]
        assert [config.handler.precision for config in configs] == expected
        assert len({fingerprint(given[0], config, False) for config in configs}) == 2
    assert configs[0].handler.model_copy(update={"precision": "int8"}) == configs[2].handler


@pytest.mark.parametrize("bad", ["", "a/b", "../a", "a b", "é", "-a", "a\n"])
def test_a_bad_name_is_refused_before_anything_is_read(bad: str) -> None:
    for field in ("name", "version", "file"):
        wanted = {"name": "a", "version": "1.0", "file": "a"} | {field: bad}
        with pytest.raises(ValueError, match=f"is no {field}: "):
            Recipe("resnet18", config=Path("absent"), **wanted)  # type: ignore[arg-type]


def test_serve_takes_the_users_own_archive_and_never_overwrites_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An archive with a registry's name, and one that was built elsewhere."""
    manifest = {"model": {"modelName": "resnet18", "modelVersion": "1.0"}}
    for name, own in (("resnet18", True), ("mountains", None)):
        with zipfile.ZipFile(tmp_path / f"{name}.mar", "w") as archive:
            archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        if own is not None:
            record(tmp_path / f"{name}.mar", "", own=own)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    chosen = choose(["resnet18", "mountains"], "server", tmp_path)
    assert [archive.file for archive in chosen] == ["resnet18.mar", "mountains.mar"]
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(ArchiveError, match=r"absent\.mar is not there, and absent is no model"):
        choose(["absent"], "server", tmp_path)


def packed(
    path: Path, model: str, version: str, own: bool = True, groups: Sequence[Sequence[int]] = ()
) -> Path:
    """Write an archive that holds a manifest and its groups alone, and its record."""
    manifest = {"model": {"modelName": model, "modelVersion": version}}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        archive.writestr("metadata.json", json.dumps({"groups": groups}))
    record(path, "", own=own)
    return path


@pytest.mark.parametrize(
    ("change", "there"),
    [
        ({"version": "2.0", "file": "random"}, ("random.mar", "random", "1.0")),
        ({"version": "2.0"}, ("random-2.0.mar", "random-2.0", "1.0")),
        ({"version": "1.0"}, ("random.mar", "random", "2.0")),
        ({"name": "other", "file": "random"}, ("random.mar", "random", "1.0")),
    ],
)
def test_a_build_overwrites_no_other_version_or_model(
    tmp_path: Path,
    pytorch_config: Path,
    small_weights: Path,
    change: dict[str, str],
    there: tuple[str, str, str],
) -> None:
    """The file of an older release may have the name that another version has today."""
    file, model, version = there
    archive = packed(tmp_path / file, model, version)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    wanted = replace(recipe(pytorch_config, small_weights), **change)  # type: ignore[arg-type]
    said = (
        f"{archive} is {model} {version}, and is not overwritten: "
        f"give {wanted.name} {wanted.version} another name by --file."
    )
    with pytest.raises(ValueError, match=re.escape(said)):
        build(wanted, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_is_there_is_served_where_weights_cannot_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The user's own archive of the fallback's name, and an archive of other ingredients."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    memory = tmp_path / "hub" / "checkpoints" / "resnet18.unavailable.json"
    memory.parent.mkdir(parents=True)
    memory.write_text(json.dumps({"mirror": None, "path": "absent", "message": "not to be had"}))
    store = tmp_path / "store"
    store.mkdir()
    server = TorchServe("local", tmp_path / "state", store)
    own = packed(store / f"{REAL}.mar", REAL, "1.0").read_bytes()
    plan = of_names(["resnet18"], server, None)
    assert (list(plan.models), plan.asked) == ([REAL], {f"{REAL}.mar": "resnet18"})
    assert capsys.readouterr().err == f"not to be had\nServing {REAL} in place of resnet18.\n"
    old = packed(store / "resnet18.mar", "resnet18", "1.0", own=False).read_bytes()
    plan = of_names(["resnet18"], server, None)
    assert (list(plan.models), plan.asked) == (["resnet18"], {})
    assert capsys.readouterr().err == "not to be had\n"
    assert ((store / f"{REAL}.mar").read_bytes(), (store / "resnet18.mar").read_bytes()) == (
        own,
        old,
    )


def test_serve_finds_the_only_version_of_a_model(tmp_path: Path) -> None:
    """Also where the model's name is the registry's; and not what begins alike."""
    packed(tmp_path / "mountains-2.0.mar", "mountains", "2.0")
    packed(tmp_path / "mountains-high.mar", "mountains-high", "1.0")
    packed(tmp_path / "resnet18-3.mar", "resnet18", "3")
    chosen = choose(["mountains", "resnet18"], "server", tmp_path)
    assert [archive.file for archive in chosen] == ["mountains-2.0.mar", "resnet18-3.mar"]
    packed(tmp_path / "mountains-3.0.mar", "mountains", "3.0")
    said = "mountains.mar is not there; name a version: mountains-2.0, mountains-3.0."
    with pytest.raises(ArchiveError, match=re.escape(said)):
        choose(["mountains"], "server", tmp_path)
    packed(tmp_path / "mountains.mar", "mountains", "1.0")
    (archive,) = choose(["mountains"], "server", tmp_path)
    assert archive.version == "1.0"


def test_groups_make_another_model(tmp_path: Path) -> None:
    """Served by its own name later; the archive of a user is neither grouped nor overwritten."""
    everyday = find_groups("everyday")
    kept = packed(tmp_path / "resnet18-everyday.mar", "resnet18-everyday", "1.0").read_bytes()
    (archive,) = choose(["resnet18"], "server", tmp_path, groups=everyday)
    assert archive.model == "resnet18-everyday"
    assert (tmp_path / archive.file).read_bytes() == kept
    packed(tmp_path / "resnet34-everyday.mar", "resnet34-everyday", "1.0", False, [[0, 1]])
    (archive,) = choose(["resnet34-everyday"], "server", tmp_path)
    assert archive.file == "resnet34-everyday.mar"
    packed(tmp_path / "mountains.mar", "mountains", "1.0")
    for name in ("mountains", "resnet34-everyday"):
        said = f"{name}.mar has its classes: give groups to visionserve build."
        with pytest.raises(ArchiveError, match=re.escape(said)):
            choose([name], "server", tmp_path, groups=everyday)
    grouped = served("resnet18", SERVER_CONFIG, everyday)
    assert (grouped.archive, grouped.is_own) == ("resnet18-everyday.mar", False)
    assert replace(grouped, name="mine").is_own
    config = ModelConfig.load(SERVER_CONFIG)
    edited = tmp_path / "everyday.json"
    edited.write_text(everyday.read_text() + " ")
    made = (grouped, replace(grouped, groups=None), replace(grouped, groups=edited))
    assert len({fingerprint(one, config) for one in made}) == 3


def test_an_archive_from_elsewhere_takes_no_other_versions_place(tmp_path: Path) -> None:
    store, elsewhere = tmp_path / "store", tmp_path / "elsewhere"
    for folder in (store, elsewhere):
        folder.mkdir()
    kept = packed(store / "mountains.mar", "mountains", "1.0").read_bytes()
    new = packed(elsewhere / "mountains.mar", "mountains", "2.0")
    said = (
        f"{store}/mountains.mar is mountains 1.0, and is not overwritten: rename {new} and its "
        ".json, such as to mountains-2.0."
    )
    with pytest.raises(ArchiveError, match=re.escape(said)):
        adopt(new, store)
    assert (store / "mountains.mar").read_bytes() == kept
    for suffix in (".mar", ".json"):
        (elsewhere / f"mountains{suffix}").rename(elsewhere / f"mountains-2.0{suffix}")
    assert adopt(elsewhere / "mountains-2.0.mar", store) == "mountains-2.0"
    same = packed(elsewhere / "mountains.mar", "mountains", "1.0")
    assert adopt(same, store) == "mountains"
