"""Ray Data gives the rows that the server gives."""

import csv
import json
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from tests.helpers import REAL
from visionserve_tools import paths, photos
from visionserve_tools.batch import listing
from visionserve_tools.batch.formats import CSV
from visionserve_tools.batch.sinks import File
from visionserve_tools.server.torchserve import TorchServe

pytest.importorskip("ray", reason="the `ray` extra is not installed")


def classify(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "visionserve_tools", "classify", *map(str, arguments)],
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
    dark = tmp_path / "dark.png"
    with Image.open(cup) as image:
        image.convert("RGB").point(lambda level: level // 5).save(dark)
    images = [rocket, bad, cat, tmp_path / "missing.jpg", empty, cup, cat, dark]
    options = ["--top-k", "2", "--threshold", "1"]
    key_file = server.state / "key_file.json"
    where = ["--server", server.client.inference, "--model", REAL, "--key-file", str(key_file)]
    arrays = [tmp_path / name for name in ("server.npy", "ray.npy")]
    ray: list[str | Path] = ["--engine", "ray", "--archive", store / f"{REAL}.mar"]
    expected = classify(*images, *options, *where, "--features", arrays[0])
    found = classify(*images, *options, *ray, "--features", arrays[1])
    assert found.returncode == expected.returncode == 1, found.stderr
    assert len(expected.stdout.splitlines()) == 1 + len(images)
    assert found.stdout == expected.stdout
    hints = [row["hints"] for row in csv.DictReader(found.stdout.splitlines())]
    assert hints[-4:] == ["", "", "", "dark"]
    served, read = map(np.load, arrays)
    assert served.shape == (len(images), 1280) and np.isnan(served[1]).all()
    assert np.array_equal(served, read, equal_nan=True)
    assert found.stderr.splitlines() == [
        "Starting Ray; the first answers take some seconds.",
        f"{len(images)} images, errors: 3.",
    ]


def test_sigterm_ends_a_run_that_can_be_gone_on_with(store: Path, tmp_path: Path) -> None:
    output = tmp_path / "rows.csv"
    images = tmp_path / "list.txt"
    images.write_text(f"{photos.greeting()}\n" * 600)
    command = ["--list", str(images), "--output", str(output), "--tta", "ten_crop"]
    command += ["--engine", "ray", "--archive", str(store / f"{REAL}.mar"), "--concurrency", "1"]
    with subprocess.Popen(
        [sys.executable, "-m", "visionserve_tools", "classify", *command],
        cwd=paths.ROOT,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        deadline = time.monotonic() + 100
        while not output.exists() or output.stat().st_size < 1000:
            assert running.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        children = psutil.Process(running.pid).children(recursive=True)
        running.terminate()
        _, said = running.communicate(timeout=60)
    assert running.returncode == 128 + signal.SIGTERM
    assert said.splitlines() == ["Starting Ray; the first answers take some seconds."]
    gone, alive = psutil.wait_procs(children, timeout=20)
    assert len(gone) > 3 and alive == []
    with closing(File(output, CSV(3), json.loads(Path(f"{output}.run.json").read_text()))) as sink:
        kept = sink.resume(listing.read_list(str(images)))
    assert 0 < kept.rows < 600 and kept.errors == 0


def test_an_invalid_option_stops_the_run(store: Path) -> None:
    archive = store / f"{REAL}.mar"
    done = classify(photos.greeting(), "--engine", "ray", "--archive", archive, "--tta", "many")
    assert (done.returncode, done.stdout) == (2, "")
    assert "invalid_option: tta: " in done.stderr


def test_a_file_that_is_no_archive() -> None:
    done = classify(photos.greeting(), "--engine", "ray", "--archive", photos.greeting())
    assert (done.returncode, done.stdout) == (2, "")
    assert "not an archive" in done.stderr
