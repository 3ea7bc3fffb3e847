"""Two commands at once on one output, server, archive or nginx."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from scripts import lock, paths, photos
from scripts.archive.hashes import read_record
from scripts.batch.rows import columns
from scripts.server.client import Client
from scripts.server.ports import free_ports
from scripts.server.torchserve import TorchServe
from tests.helpers import REAL

TIMEOUT = 60


def visionserve(*arguments: object, root: Path = paths.ROOT) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "scripts", *map(str, arguments)],
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def rows_of(output: Path) -> list[str]:
    """The paths of an output's rows, read by other programs than ours."""
    if output.suffix == ".parquet":
        from pyarrow import parquet

        return [str(path) for path in parquet.read_table(output)["path"].to_pylist()]
    lines = output.read_text().splitlines()
    if output.suffix == ".jsonl":
        return [json.loads(line)["path"] for line in lines]
    return [line.split(",")[0].strip('"') for line in lines[1:]]


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.parquet"])
def test_an_output_is_one_runs_alone(name: str, server: TorchServe, tmp_path: Path) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow", reason="the `batch` extra is not installed")
    images = [str(tmp_path / f"{number}.png") for number in range(3)]
    for image in images:
        shutil.copy(photos.greeting(), image)
    output = tmp_path / name
    key_file = server.state / "key_file.json"
    asked = ["--server", server.client.inference, "--model", REAL, "--key-file", key_file]
    command = ["classify", *asked, "--tta", "none", "--concurrency", 1, "--list", "-", "--output"]

    def begun() -> subprocess.Popen[str]:
        """A run that has its first nine images, and waits for the rest."""
        running = visionserve(*command, output)
        assert running.stdin
        running.stdin.write("\n".join(images * 3) + "\n")
        running.stdin.flush()
        until(lambda: f" {running.pid} " in Path("/proc/locks").read_text())
        return running

    with begun() as killed:
        for same in (output, f"{tmp_path}/../{tmp_path.name}/{name}"):
            _, error = visionserve(*command, same).communicate(timeout=TIMEOUT)
            (line,) = error.splitlines()
            assert str(killed.pid) in line and " classify " in line and "since 20" in line
        killed.kill()
    with begun() as running:
        for more in ([], ["--overwrite"]):
            second = visionserve(*command, output, *more)
            _, error = second.communicate(timeout=TIMEOUT)
            assert second.returncode == 2
            (line,) = error.splitlines()
            assert str(running.pid) in line
        _, error = running.communicate(timeout=TIMEOUT)
        assert error.splitlines()[-1] == "9 images, errors: 0."
    assert rows_of(output) == images * 3
    kept = {path.name for path in tmp_path.iterdir()} - {Path(image).name for image in images}
    assert kept == {name, f"{name}.run.json"}
