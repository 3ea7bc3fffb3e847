"""The one command, `visionserve`."""

import subprocess
import sys
from pathlib import Path

import pytest

from scripts import paths
from scripts.__main__ import modules

VISIONSERVE = Path(sys.executable).with_name("visionserve")


def visionserve(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([VISIONSERVE, *arguments], capture_output=True, text=True, cwd="/")


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_help_tells_each_command_in_a_line(arguments: tuple[str, ...]) -> None:
    done = visionserve(*arguments)
    assert done.returncode == 0
    lines = [line.split() for line in done.stdout.splitlines()[2:]]
    assert [name for name, *_ in lines] == list(modules())
    assert {"serve", "manage", "classify", "bench", "bench-page"} <= set(modules())
    assert all(len(about) > 3 for _, *about in lines)


@pytest.mark.parametrize("name", ["manage", "bench-device"])
def test_a_command_runs_by_its_name_from_any_folder(name: str) -> None:
    done = visionserve(name, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: visionserve {name} ")


def test_an_option_that_would_be_ignored_is_refused() -> None:
    done = visionserve("serve", "stop", "--models", "resnet18")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("unrecognized arguments: --models resnet18")


@pytest.mark.parametrize("name", [name for name in modules() if not name.startswith("bench-")])
def test_help_waits_for_no_heavy_import(name: str) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "scripts", name, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=paths.ROOT)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "argparse" in imported
    assert imported.isdisjoint({"torch", "numpy", "scipy", "PIL", "requests"})


def test_what_is_no_command_is_refused_in_a_line() -> None:
    done = visionserve("bench-", "--help")
    assert done.returncode == 2
    assert done.stderr == "bench- is no command; visionserve --help lists them.\n"
