"""Ray Data gives the rows that the server gives."""

import subprocess
import sys
from pathlib import Path

import pytest

from scripts import paths, photos
from scripts.torchserve import TorchServe
from tests.conftest import REAL

pytest.importorskip("ray", reason="the `ray` extra is not installed")


def classify(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "scripts.classify", *map(str, arguments)],
        cwd=paths.ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_rows_equal_the_servers(server: TorchServe, store: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    empty = tmp_path / "empty.jpg"
    empty.touch()
    cat, cup, rocket = (
        next(photo for photo in photos.packaged() if photo.name == name)
        for name in ("chelsea.png", "coffee.png", "rocket.jpg")
    )
    images = [rocket, bad, cat, tmp_path / "missing.jpg", empty, cup, cat]
    options = ["--top-k", "2", "--threshold", "0.9"]
    key_file = server.state / "key_file.json"
    where = ["--server", server.client.inference, "--model", REAL, "--key-file", str(key_file)]
    expected = classify(*images, *options, *where)
    found = classify(*images, *options, "--engine", "ray", "--archive", store / f"{REAL}.mar")
    assert found.returncode == expected.returncode == 1, found.stderr
    assert len(expected.stdout.splitlines()) == 1 + len(images)
    assert found.stdout == expected.stdout


def test_an_invalid_option_stops_the_run(store: Path) -> None:
    archive = store / f"{REAL}.mar"
    done = classify(photos.greeting(), "--engine", "ray", "--archive", archive, "--tta", "many")
    assert (done.returncode, done.stdout) == (2, "")
    assert "invalid_option: tta: " in done.stderr


def test_a_file_that_is_no_archive() -> None:
    done = classify(photos.greeting(), "--engine", "ray", "--archive", photos.greeting())
    assert (done.returncode, done.stdout) == (2, "")
    assert "not an archive" in done.stderr
