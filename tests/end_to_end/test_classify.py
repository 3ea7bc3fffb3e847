"""The batch command against the real server."""

import argparse
import ast
import codecs
import csv
import fcntl
import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from itertools import chain, count
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import psutil
import pytest
from tqdm.utils import disp_len

from tests.end_to_end.test_readmes import blocks
from tests.helpers import RANDOM, REAL, called
from visionserve_tools import paths, photos
from visionserve_tools.batch import listing, server_engine
from visionserve_tools.batch.classify import connect
from visionserve_tools.batch.classify import count as images_of
from visionserve_tools.batch.formats import CSV, NAME_WIDTH, JSONLines, Table
from visionserve_tools.batch.rows import (
    SERVER_FAULTS,
    Row,
    RunError,
    columns,
    fault,
    is_server_fault,
    row,
)
from visionserve_tools.batch.server_engine import LARGEST, delay, windowed
from visionserve_tools.batch.sinks import File, Kept, open_sink
from visionserve_tools.server.client import Client
from visionserve_tools.server.ports import free_port
from visionserve_tools.server.torchserve import TorchServe

COMMAND = [sys.executable, "-m", "visionserve_tools", "classify"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images, one of them no image, some below a folder whose name sorts between them."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "b").mkdir()
    by_name = {photo.name: photo for photo in photos.packaged()}
    for source, target in (
        ("coffee.png", "z.png"),
        ("chelsea.png", "b/cat.PNG"),
        ("rocket.jpg", "a.jpg"),
    ):
        (folder / target).write_bytes(by_name[source].read_bytes())
    (folder / "b" / "broken.jpg").write_bytes(b"no image")
    (folder / "notes.txt").write_text("not an image by its suffix")
    return folder


@pytest.fixture
def target(server: TorchServe) -> list[str]:
    key_file = str(server.state / "key_file.json")
    return ["--server", server.client.inference, "--model", REAL, "--key-file", key_file]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return called("classify", *arguments)


def run_alone(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=paths.ROOT,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
    )


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.removeprefix("\ufeff").splitlines()))


def test_folder_to_csv(folder: Path, target: list[str], client: Client) -> None:
    done = run_alone(folder, *target, "--tta", "none", "--top-k", "2")
    assert done.returncode == 1
    assert done.stderr.endswith("4 images, errors: 1.\n")
    rows = read_csv(done.stdout)
    assert list(rows[0]) == list(columns(2))
    names = ["a.jpg", "b/broken.jpg", "b/cat.PNG", "z.png"]
    assert [row["path"] for row in rows] == [str(folder / name) for name in names]
    _, broken, cat, cup = rows
    assert broken["error"].startswith("unsupported_format: ")
    assert broken["label_1"] == broken["model"] == broken["confident"] == ""
    assert (cat["label_1"], cat["class_id_1"]) == ("tiger cat", "282")
    assert float(cat["probability_1"]) > float(cat["probability_2"])
    assert (cat["model"], cat["version"], cat["tta"], cat["error"]) == (REAL, "1.0", "none", "")
    assert (cup["label_1"], cup["confident"]) == ("espresso", "true")
    for line in (rows[0], cat, cup):
        answer = client.predict(REAL, Path(line["path"]).read_bytes(), tta="none", top_k=2).json()
        for rank, prediction in enumerate(answer["predictions"], 1):
            assert line[f"label_{rank}"] == prediction["label"]
            assert int(line[f"class_id_{rank}"]) == prediction["class_id"]
            assert float(line[f"probability_{rank}"]) == prediction["probability"]
        assert line["confident"] == str(answer["confident"]).lower()
        assert line["hints"] == " ".join(answer.get("hints", []))
        assert line["unfamiliar"] == str(answer["unfamiliar"]).lower()
    assert [row["hints"] for row in rows] == ["dark", "", "", ""], "a rocket at night"


def test_files_glob_and_list_in_the_order_given(
    folder: Path, target: list[str], tmp_path: Path
) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text(f"{folder}/z.png\n\n{folder}/missing.png\r\n")
    done = run(folder / "z.png", folder / "**/*.[jP]*", "--list", listed, *target)
    names = ["z.png", "a.jpg", "b/broken.jpg", "b/cat.PNG", "z.png", "missing.png"]
    rows = read_csv(done.stdout)
    assert [row["path"] for row in rows] == [str(folder / name) for name in names]
    assert rows[-1]["error"] == "unreadable_file: No such file or directory"


def test_list_on_standard_input(folder: Path, target: list[str]) -> None:
    done = run_alone("--list", "-", *target, "--threshold", "1", stdin=f"{folder}/z.png\n")
    assert done.returncode == 0
    assert [row["confident"] for row in read_csv(done.stdout)] == ["false"]


def test_a_list_that_can_be_read_only_once(folder: Path, target: list[str]) -> None:
    command = shlex.join([*COMMAND, f"{folder}/a.jpg", *target])
    listed = f"<(echo {shlex.quote(f'{folder}/z.png')})"
    done = subprocess.run(
        ["bash", "-c", f"{command} --list {listed}"], cwd=paths.ROOT, capture_output=True, text=True
    )
    assert [row["path"] for row in read_csv(done.stdout)] == [f"{folder}/a.jpg", f"{folder}/z.png"]


def test_a_file_called_as_standard_input_is_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("-").write_text("a.png\n")
    assert images_of(argparse.Namespace(list="-", paths=["b.png"])) is None
    assert images_of(argparse.Namespace(list="./-", paths=["b.png"])) == 2


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_cut_file_is_gone_on_with(
    folder: Path, target: list[str], tmp_path: Path, suffix: str
) -> None:
    output = tmp_path / f"rows{suffix}"
    assert run(folder, *target, "--output", output).returncode == 1
    whole = output.read_bytes()
    assert whole.startswith(codecs.BOM_UTF8) == (suffix == ".csv"), "Excel knows UTF-8 by it."
    if suffix == ".csv":
        whole = whole.removeprefix(codecs.BOM_UTF8)
        output.write_bytes(whole)
        assert run(folder, *target, "--output", output).returncode == 1
        assert output.read_bytes() == whole, "an older file has no byte order mark"
        whole = codecs.BOM_UTF8 + whole
    lines = whole.splitlines(keepends=True)
    output.write_bytes(b"".join(lines[:-2]) + lines[-2][:20])
    again = run(folder, *target, "--output", output)
    assert again.returncode == 1, "an error of the first run still counts"
    assert output.read_bytes() == whole

    kept = re.sub(rb"0[.][0-9]+", b"0.125", b"".join(lines[:-1]))
    assert kept.count(b"0.125") >= 6
    output.write_bytes(kept)
    assert run(folder, *target, "--output", output).returncode == 1
    assert output.read_bytes().startswith(kept), "complete rows are not asked for again"


def test_rows_of_other_images_are_left_alone(
    folder: Path, target: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "rows.csv"
    run(folder / "a.jpg", *target, "--output", output)
    before = output.read_bytes()
    other = run(folder / "z.png", *target, "--output", output)
    assert other.returncode == 2
    assert "row 1 is of" in other.stderr
    assert "holds other columns" in run(folder, *target, "--output", output, "--top-k", "9").stderr
    assert output.read_bytes() == before
    older = before.replace(b'"plausible","hints",', b"").replace(b',"","",""', b',""')
    output.write_bytes(older)
    assert "holds other columns" in run(folder / "a.jpg", *target, "--output", output).stderr
    assert output.read_bytes() == older != before


def test_labels_in_another_language(folder: Path, target: list[str]) -> None:
    cat, cup = (folder / "b" / "cat.PNG", folder / "z.png")
    done = run(cat, cup, *target, "--tta", "none", "--language", "zh")
    assert [row["label_1"] for row in read_csv(done.stdout)] == ["虎纹猫", "意式浓缩咖啡"]


def test_a_name_takes_a_labels_place_only_where_a_language_was_asked_for() -> None:
    best = {"label": "alp", "name": "meadow", "class_id": 0, "probability": 1.0}
    body = {"predictions": [best], "model": "", "version": "", "tta": "", "confident": True}
    assert row(Path("a"), body, 1)["label_1"] == "alp"
    assert row(Path("a"), body, 1, named=True)["label_1"] == "meadow"


def test_json_lines(folder: Path, target: list[str], tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    run(folder, *target, "--output", output)
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [list(row) for row in rows] == [list(columns(3))] * 4
    assert rows[1]["label_1"] is None
    assert rows[2]["class_id_1"] == 285
    assert rows[3]["confident"] is True


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_the_truth_stands_beside_the_predictions(
    folder: Path, target: list[str], tmp_path: Path, suffix: str
) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="the `batch` extra is not installed")
    output, labels = tmp_path / f"rows{suffix}", tmp_path / "labels.csv"
    lines = ["path,label", f"{folder}/a.jpg,rocket", f"{folder}/b/cat.PNG,=cat", "x.png,x"]
    labels.write_text("\n".join(lines))
    wanted: tuple[str | Path, ...] = (folder, *target, "--output", output, "--labels")
    done = run(*wanted, labels)
    assert done.returncode == 1
    assert f"{labels} has no label for 2 of them.\n" in done.stderr

    def truths() -> list[str | None]:
        rows: list[dict[str, Any]]
        if suffix == ".csv":
            rows = [*read_csv(output.read_text())]
        elif suffix == ".jsonl":
            rows = [json.loads(line) for line in output.read_text().splitlines()]
        else:
            from pyarrow import parquet

            rows = parquet.read_table(output).to_pylist()
        assert list(rows[0]) == ["path", "truth", *[*columns(3)][1:]]
        assert [Path(str(row["path"])).name for row in rows] == ALL
        return [row["truth"] or None for row in rows]

    defused = "'=cat" if suffix == ".csv" else "=cat"
    assert truths() == ["rocket", None, defused, None]
    whole = output.read_bytes()
    if suffix != ".parquet":
        output.write_bytes(b"".join(whole.splitlines(keepends=True)[:-2]))
        assert run(*wanted, labels).returncode == 1
        assert output.read_bytes() == whole, "an interrupted run is gone on with"
    labels.write_text("\n".join(lines[:-2]))
    assert "this run has labels_sha256" in run(*wanted, labels).stderr
    assert run(*wanted[:-1]).returncode == 2, "rows with the column and rows without"
    assert output.read_bytes() == whole
    assert run(*wanted, folder, "--overwrite").returncode == 1
    assert truths() == [None, "b", "b", None]
    labels.write_text("path;label\na.jpg\n")
    bad = run(*wanted, labels)
    assert bad.returncode == 2 and bad.stderr == f"{labels}, line 2: has no path and label.\n"
    assert "no such file" in run(*wanted, tmp_path / "absent.csv").stderr


ALL = ["a.jpg", "broken.jpg", "cat.PNG", "z.png"]


def test_parquet(folder: Path, target: list[str], tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="the `batch` extra is not installed")
    output = tmp_path / "rows.parquet"
    begun = tmp_path / "rows.parquet.jsonl"
    run(folder / "a.jpg", *target, "--output", tmp_path / "first.jsonl")
    (tmp_path / "first.jsonl").rename(begun)
    (tmp_path / "first.jsonl.run.json").rename(tmp_path / "rows.parquet.run.json")
    assert run(folder, *target, "--output", output).returncode == 1
    rows = parquet.read_table(output).to_pylist()
    assert list(rows[0]) == list(columns(3))
    assert [Path(row["path"]).name for row in rows] == ["a.jpg", "broken.jpg", "cat.PNG", "z.png"]
    assert rows[2]["class_id_1"] == 285
    assert not begun.exists()
    before = output.read_bytes()
    complete = run(folder, *target, "--output", output)
    assert (complete.returncode, output.read_bytes()) == (1, before)
    assert complete.stderr.endswith("4 images, errors: 1.\n")
    assert not begun.exists()


def test_features_of_a_folder(
    folder: Path, target: list[str], client: Client, tmp_path: Path
) -> None:
    """An array in the order of the rows, or a table; the server's own figures, and an example."""
    array, table, output = (tmp_path / name for name in ("f.npy", "f.parquet", "rows.csv"))
    images = [folder / "b" / "broken.jpg", folder / "b" / "cat.PNG", folder]
    options: list[str | Path] = ["--tta", "none", "--output", output]
    assert run(*images, *target, *options, "--features", array).returncode == 1
    rows, found = read_csv(output.read_text()), np.load(array)
    assert found.dtype == np.float32 and found.shape == (len(rows), 1280) == (6, 1280)
    again = run(*images, *target, *options, "--features", array)
    assert again.returncode == 2 and "has rows, whose features are not at hand" in again.stderr
    assert np.array_equal(np.load(array), found, equal_nan=True)
    for line, features in zip(rows, found, strict=True):
        if line["error"]:
            assert np.isnan(features).all()
            continue
        data = Path(line["path"]).read_bytes()
        served = client.predict(REAL, data, tta="none", features=True).json()["features"]
        assert np.array_equal(features, np.float32(served))
    other = run(folder, *target, "--features", tmp_path / "f.csv")
    assert other.returncode == 2 and "its suffix must be .npy or .parquet" in other.stderr
    assert not [*tmp_path.glob("*.part"), *tmp_path.glob("f.csv*")]

    head, _, *lines = output.read_text().splitlines()
    (tmp_path / "pictures.csv").write_text("\n".join([head, *lines]))
    np.save(tmp_path / "pictures.npy", found[1:])
    (example,) = [code for code in blocks("scripts/README.md", "python") if "nearest" in code]
    command = [sys.executable, "-c", example]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    nearest = ast.literal_eval(done.stdout)
    assert [len(nearest), nearest[0], nearest[-1]] == [4, str(images[1]), str(images[0])]

    parquet = pytest.importorskip("pyarrow.parquet", reason="the `batch` extra is not installed")
    run(*images, *target, *options, "--features", table, "--overwrite")
    pairs = parquet.read_table(table).to_pylist()
    assert [pair["path"] for pair in pairs] == [line["path"] for line in rows]
    for features, pair in zip(found, pairs, strict=True):
        kept = pair["features"]
        assert np.isnan(features).all() if kept is None else np.array_equal(features, kept)


def test_old_rows_are_not_taken_for_those_of_another_run(tmp_path: Path) -> None:
    """The disk has the new provenance, but no new row yet, when the power fails."""
    pytest.importorskip("pyarrow.parquet", reason="the `batch` extra is not installed")
    output, images = tmp_path / "rows.parquet", [Path("a.png"), Path("b.png")]
    with closing(open_sink(output, 1, {"tta": "none"})) as sink:
        sink.write(answered(images[0]))
        sink.finish()
    other = {"tta": "dense"}
    with closing(open_sink(output, 1, other, overwrite=True)) as sink:
        sink.write(answered(images[0]))
    (tmp_path / "rows.parquet.jsonl").write_bytes(b"")
    with closing(open_sink(output, 1, other)) as sink:
        assert sink.resume(iter(images)) == Kept()


def test_an_invalid_option_stops_the_run(folder: Path, target: list[str], tmp_path: Path) -> None:
    output = tmp_path / "rows.csv"
    done = run(folder, *target, "--output", output, "--top-k", "1001")
    assert done.returncode == 2
    assert "invalid_option: top_k: " in done.stderr
    assert output.read_bytes() == b""


def test_what_refuses_every_image_stops_the_run(
    folder: Path, target: list[str], client: Client, tmp_path: Path
) -> None:
    wrong = tmp_path / "key_file.json"
    wrong.write_text('{"inference": {"key": "wrong"}}')
    token = run(folder, *target, "--key-file", wrong)
    assert (token.returncode, token.stdout) == (2, "")
    assert "Token Authorization failed" in token.stderr
    model = run(folder, *target, "--model", "absent")
    assert (model.returncode, model.stdout) == (2, "")
    assert "404: Model not found: absent" in model.stderr


def test_a_server_that_is_down(folder: Path) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    done = run(folder, "--server", address, "--model", REAL, "--retries", "1", "--concurrency", "1")
    assert (done.returncode, done.stdout) == (2, "")
    first, *_, last = done.stderr.splitlines()
    assert first.startswith(f"{address}: No server answers. Trying again in ")
    assert last == f"{address}: No server answers."


def test_an_interruption_ends_the_wait_for_a_server(folder: Path) -> None:
    class Busy(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(503)
            self.send_header("Retry-After", "3600")
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        with subprocess.Popen(
            [*COMMAND, folder, "--server", address, "--model", REAL],
            cwd=paths.ROOT,
            stderr=subprocess.PIPE,
            text=True,
        ) as running:
            assert running.stderr is not None
            assert "Trying again in 3600.0 s" in running.stderr.readline()
            running.send_signal(signal.SIGINT)
            try:
                running.communicate(timeout=60)
            finally:
                running.kill()
        assert running.returncode == 130
        server.shutdown()


def test_a_model_without_workers_is_waited_for(
    folder: Path, target: list[str], client: Client
) -> None:
    client.scale(REAL, 0)
    try:
        impatient = run(folder, *target, "--retries", "0")
        assert (impatient.returncode, impatient.stdout) == (2, "")
        assert "503: " in impatient.stderr
        with subprocess.Popen(
            [*COMMAND, str(folder / "z.png"), *target],
            cwd=paths.ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as running:
            assert running.stderr
            assert "Trying again" in running.stderr.readline()
            client.scale(REAL, 2)
            output, _ = running.communicate(timeout=60)
    finally:
        client.scale(REAL, 2)
    assert running.returncode == 0
    assert [row["label_1"] for row in read_csv(output)] == ["espresso"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_rows_made_with_something_else_are_refused(
    folder: Path, target: list[str], tmp_path: Path, suffix: str
) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="the `batch` extra is not installed")
    output = tmp_path / f"rows{suffix}"
    images = (folder / "a.jpg", folder / "z.png")
    assert run(images[0], *target, "--tta", "none", "--output", output).returncode == 0
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    cases: list[tuple[list[str], str]] = [
        (["--tta", "five_crop"], "was made with tta none; this run has tta five_crop. "),
        ([], "was made with tta none; this run has tta by default. "),
        (["--tta", "none", "--threshold", "1"], "threshold by default; this run has threshold 1."),
        (["--tta", "none", "--model", RANDOM], f"model {REAL}; this run has model {RANDOM}. "),
        (["--tta", "none", "--server", "http://[::1]:1"], "this run has server http://[::1]:1. "),
    ]
    for options, message in cases if suffix == ".csv" else cases[:1]:
        done = run(*images, *target, *options, "--output", output)
        assert done.returncode == 2
        assert message in done.stderr
        assert done.stderr.endswith("Begin it anew with --overwrite, or name another file.\n")
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before

    failed = run(*images, *target, "--tta", "no", "--overwrite", "--output", output)
    assert failed.returncode == 2
    if suffix != ".parquet":
        assert output.read_bytes() == before[output], "nothing is lost before the first new row"
    options = ["--tta", "ten_crop", "--output", str(output)]
    assert run(*images, *target, *options, "--overwrite").returncode == 0
    assert run(*images, *target, *options).stderr.endswith("2 images, errors: 0.\n")
    (tmp_path / f"{output.name}.run.json").unlink()
    assert "which says what made it, is missing" in run(*images, *target, *options).stderr


def test_rows_of_another_version_are_refused(tmp_path: Path) -> None:
    """Two archives can have one name at one address: their answers tell them apart."""
    images = [Path("a.png"), Path("b.png"), Path("c.png")]
    for format in (CSV(1), JSONLines(1)):
        path = tmp_path / f"rows.{type(format).__name__}"
        with closing(File(path, format, {})) as sink:
            sink.write(answered(images[0], version="1.0"))
            sink.write(row(images[1], fault("corrupt_image", "message"), 1))
        before = path.read_bytes()
        for version, refused in (("2.0", True), ("1.0", False)):
            with closing(File(path, format, {})) as sink:
                assert sink.resume(iter(images)) == Kept(rows=2, errors=1)
                if refused:
                    with pytest.raises(RunError, match=r"m 1.0 with tta none; now .* m 2.0 with"):
                        sink.write(answered(images[2], version))
                    assert path.read_bytes() == before
                else:
                    sink.write(answered(images[2], version))


def answered(path: Path, version: str = "1.0") -> Row:
    best = {"label": "cat", "class_id": 281, "probability": 0.5}
    body = {"predictions": [best], "model": "m", "version": version, "tta": "none"}
    return row(path, body | {"confident": True}, 1)


def test_rows_that_blame_the_server_are_asked_for_again(
    folder: Path, target: list[str], tmp_path: Path
) -> None:
    suffixes = [".csv", ".jsonl"]
    with suppress(ImportError):
        import pyarrow  # noqa: F401

        suffixes.append(".parquet")
    for suffix in suffixes:
        output = tmp_path / f"rows{suffix}"
        assert run(folder, *target, "--output", output).returncode == 1
        whole, made_with = output.read_bytes(), json.loads(beside(output).read_bytes())
        images = list(listing.expand([str(folder)]))
        with closing(open_sink(output, 3, made_with, overwrite=True)) as sink:
            for number, image in enumerate(images):
                code = "unsupported_format" if number == 1 else "server_error"
                sink.write(row(image, fault(code, "500: Worker died."), 3))
            sink.finish()
        again = run(folder, *target, "--output", output)
        assert again.returncode == 1
        assert again.stderr.startswith("Asking again for 3 that the server failed.\n")
        assert again.stderr.endswith("4 images, errors: 1.\n")
        now = output.read_bytes()
        if suffix == ".parquet":
            from pyarrow import parquet

            old, new = (parquet.read_table(BytesIO(data)).to_pylist() for data in (whole, now))
        else:
            old, new = whole.splitlines(), now.splitlines()
        middle = len(old) - 3
        assert "Worker died" in str(new.pop(middle)), "the image's own fault stays"
        assert "format is none of JPEG" in str(old.pop(middle))
        assert new == old
        assert sorted(path.name for path in tmp_path.glob(f"*{suffix}*")) == [
            output.name,
            beside(output).name,
        ]


def beside(output: Path) -> Path:
    return output.with_name(f"{output.name}.run.json")


@pytest.mark.parametrize("replaced", range(4))
@pytest.mark.parametrize("cleanly", [True, False])
def test_an_end_amid_asking_again_loses_no_row(
    tmp_path: Path, replaced: int, cleanly: bool
) -> None:
    """Cleanly, the rows that were had again are kept; killed, the old file is as it was."""
    images = [Path(f"{number}.png") for number in range(7)]
    failed = {1, 2, 5}
    path = tmp_path / "rows.csv"
    with closing(File(path, CSV(1), {})) as sink:
        for number, image in enumerate(images[:6]):
            blamed = fault("timeout", 'late,\n"very"')
            sink.write(row(image, blamed, 1) if number in failed else answered(image))
    before = path.read_bytes()
    sink = File(path, CSV(1), {})
    remaining = iter(images)
    kept = sink.resume(remaining)
    assert kept == Kept(rows=3, errors=0, again=(images[1], images[2], images[5]))
    for image in list(chain(kept.again, remaining))[:replaced]:
        assert path.read_bytes() == before
        sink.write(answered(image))
    if cleanly:
        sink.close()
        assert list(tmp_path.glob("*.part")) == []
    else:
        release(tmp_path)
    if replaced == 3 or (cleanly and replaced):
        assert path.read_bytes() != before
    else:
        assert path.read_bytes() == before
    with closing(File(path, CSV(1), {})) as sink:
        remaining = iter(images)
        kept = sink.resume(remaining)
        assert len(kept.again) == 3 - (replaced if cleanly or replaced == 3 else 0)
        for image in chain(kept.again, remaining):
            sink.write(answered(image))
    expected = tmp_path / "expected.csv"
    with closing(File(expected, CSV(1), {})) as sink:
        for image in images:
            sink.write(answered(image))
    assert path.read_bytes() == expected.read_bytes()


def release(folder: Path) -> None:
    """Undo this process's locks on the files below a folder, as its death would."""
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if link.readlink().is_relative_to(folder):
                fcntl.flock(int(link.name), fcntl.LOCK_UN)


def test_a_full_disk_amid_asking_again_loses_no_row(tmp_path: Path) -> None:
    images = [Path(f"{number}.png") for number in range(2000)]
    path = tmp_path / "rows.csv"
    with closing(File(path, CSV(1), {})) as sink:
        for image in images[:-1]:
            sink.write(answered(image))
        sink.write(row(images[-1], fault("timeout", "late"), 1))
    before = path.read_bytes()
    sink = File(path, CSV(1), {})
    assert sink.resume(iter(images)).again == (images[-1],)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            sink.write(answered(images[-1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    sink.close()
    assert path.read_bytes() == before


def test_every_fault_of_the_handlers_own_is_known() -> None:
    """An error code with a 5xx status that is missing would stay in a file for ever."""
    sources = (path.read_text() for path in (paths.HANDLER / "visionserve").rglob("*.py"))
    codes = {code for text in sources for code in re.findall(r'\(\s*5\d\d,\s*"(\w+)"', text)}
    assert "internal_error" in codes
    assert codes <= SERVER_FAULTS
    assert is_server_fault("internal_error: message")
    assert not is_server_fault("corrupt_image: internal_error: message")
    assert not is_server_fault("") and not is_server_fault(None)


def test_a_worker_that_dies_with_an_image_costs_nothing(
    folder: Path, target: list[str], client: Client, tmp_path: Path
) -> None:
    output = tmp_path / "rows.csv"

    def with_a_death(*options: str) -> str:
        """Stop the only worker, so that it holds the image when it is killed."""
        victim = psutil.Process(client.describe(REAL)[0]["workers"][0]["pid"])
        victim.suspend()
        with subprocess.Popen(
            [*COMMAND, str(folder / "z.png"), *target, "--output", str(output), *options],
            cwd=paths.ROOT,
            stderr=subprocess.PIPE,
            text=True,
        ) as running:
            until(lambda: bool(psutil.Process(running.pid).net_connections("tcp")))
            time.sleep(1)
            victim.kill()
            _, said = running.communicate(timeout=60)
        return said

    client.scale(REAL, 1)
    said = with_a_death("--retries", "0")
    assert said.endswith("1 images, errors: 1.\n")
    (failed,) = read_csv(output.read_text())
    assert failed["error"].startswith("server_error: 50")
    until(client.ready)
    assert "Trying again" in with_a_death()
    assert [row["label_1"] for row in read_csv(output.read_text())] == ["espresso"]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_is_no_regular_file_is_a_row(target: list[str], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("/dev/zero")
    (tmp_path / "c.png").symlink_to(tmp_path)
    with (tmp_path / "d.png").open("wb") as large:
        large.truncate(LARGEST + 1)
    with (tmp_path / "e.png").open("wb") as larger:
        larger.truncate(1 << 40)
    (tmp_path / "f.png").symlink_to(tmp_path / "absent")
    (tmp_path / "g.png").symlink_to(photos.greeting())
    for images in (tmp_path, tmp_path / "?.png"):
        done = run(images, *target)
        rows = {Path(row["path"]).name: row for row in read_csv(done.stdout)}
        expected = [
            ("a.png", "unreadable_file: Not a regular file"),
            ("b.png", "unreadable_file: Not a regular file"),
            ("c.png", "unreadable_file: Is a directory"),
            ("d.png", "image_too_large: The file has 5242881 bytes; at most 5242880 may be."),
            ("e.png", "image_too_large: The file has 1099511627776 bytes; at most 5242880 may be."),
            ("f.png", "unreadable_file: No such file or directory"),
            ("g.png", ""),
        ]
        if images != tmp_path:
            del expected[2]
        assert [(name, row["error"]) for name, row in rows.items()] == expected
        assert rows["g.png"]["label_1"] == "Egyptian cat"


def test_a_table_keeps_its_columns() -> None:
    table = Table(1)
    best = {"label": "cat", "class_id": 281, "probability": 0.5}
    body = {"predictions": [best], "model": "m", "version": "1.0", "tta": "none"}
    told = row(Path("a.png"), body | {"confident": False}, 1, lambda _: "dog")
    assert table.encode(told).endswith("  cat 50.0% (a guess); is dog\n")
    told["hints"] = "dark blurred"
    assert table.encode(told).endswith("  cat 50.0% (a guess: dark, blurred); is dog\n")
    ends = set()
    for name in ("a.png", "b/" * 30 + "cat.png", "高" * 19 + ".png", "高" * 50 + "山.png", "\x1b"):
        line = table.encode(answered(Path(name)))
        path, _, rest = line.rpartition("  cat 50.0%")
        ends.add(disp_len(path))
        assert rest == "\n"
        assert path.rstrip().endswith(name[-5:]) or name == "\x1b"
    assert ends == {NAME_WIDTH}
    assert table.head.index("PREDICTIONS") == NAME_WIDTH + 2


def test_a_key_that_a_starting_server_writes_is_waited_for(
    server: TorchServe, tmp_path: Path
) -> None:
    whole = (server.state / "key_file.json").read_bytes()
    key_file = tmp_path / "key_file.json"
    key_file.write_bytes(whole[:20])
    client = Client(server.client.inference, "", key_file)
    writing = threading.Timer(0.6, key_file.write_bytes, [whole])
    writing.start()
    ((_, body),) = server_engine.classify(client, REAL, {}, [photos.greeting()], 1, 8)
    writing.join()
    assert body["predictions"][0]["label"] == "Egyptian cat"


def test_the_window_bounds_what_is_taken_ahead() -> None:
    taken = count()
    latest = 0

    def inputs() -> Iterator[int]:
        nonlocal latest
        for _ in range(20_000):
            latest = next(taken)
            yield latest

    ahead = 0
    outputs = windowed(lambda item: item, inputs(), 4, 32, Event())
    for expected, output in enumerate(outputs):
        assert output == expected
        ahead = max(ahead, latest - output)
    assert latest == 19_999
    assert 0 < ahead < 32


def test_the_window_ends_at_the_first_exception() -> None:
    begun = []

    def fail(item: int) -> int:
        begun.append(item)
        if item == 3:
            raise RunError("stop")
        return item

    outputs = windowed(fail, count(), 1, 8, Event())
    with pytest.raises(RunError, match="stop"):
        list(outputs)
    assert max(begun) < 3 + 8


def test_retry_after_decides_the_delay() -> None:
    assert delay(0, "7") == 7
    assert delay(9, "Thu, 01 Jan 1970 00:00:00 GMT") == 0
    assert delay(9, "Fri, 01 Jan 2100 00:00:00 GMT") > 24 * 3600
    for attempt, longest in ((0, 0.25), (3, 2), (20, 30)):
        assert longest / 2 <= delay(attempt, None) <= longest
        assert longest / 2 <= delay(attempt, "soon") <= longest


def test_no_formula_reaches_a_spreadsheet(tmp_path: Path) -> None:
    names = ['=HYPERLINK("x")', "+1", "-1", "@a", "\tb", "\r=c", "plain", 'q"uote,\n=line', "高山"]
    images = [Path(name) for name in names]
    path = tmp_path / "rows.csv"
    with closing(File(path, CSV(1), {})) as sink:
        for image in images:
            sink.write(row(image, fault("code", "=1+1"), 1))
    with path.open(encoding="utf-8", newline="") as file:
        cells = [record["path"] for record in csv.DictReader(file)]
    rest = ["'\r'=c", "plain", "q\"uote,\n'=line", "高山"]
    assert cells == [f"'{name}" for name in names[:5]] + rest
    with closing(File(path, CSV(1), {})) as sink:
        assert sink.resume(iter(images)) == Kept(9, 9)


def test_a_semicolon_begins_no_formula(tmp_path: Path) -> None:
    """Where it separates fields, quotes keep none but a row's first text whole."""
    path = tmp_path / "rows.csv"
    image = Path("a;=1+1;.jpg")
    with closing(File(path, CSV(1), {})) as sink:
        sink.write(row(image, fault("code", 'no;=2+2;"=3'), 1))
    with path.open(encoding="utf-8", newline="") as file:
        _, cells = csv.reader(file, delimiter=";")
    assert cells[0].startswith("a;'=1+1;.jpg,")
    assert cells[1:] == ["'=2+2", '\'""=3"']
    with closing(File(path, CSV(1), {})) as sink:
        assert sink.resume(iter([image])) == Kept(1, 1)


def test_a_name_that_is_no_utf_8(tmp_path: Path) -> None:
    image = Path(os.fsdecode(b"caf\xe9.png"))
    for form, suffix in ((CSV(1), "csv"), (JSONLines(1), "jsonl")):
        path = tmp_path / f"rows.{suffix}"
        with closing(File(path, form, {})) as sink:
            sink.write(row(image, fault("code", "message"), 1))
        assert "xe9.png" in path.read_text(encoding="utf-8")
        with closing(File(path, form, {})) as sink:
            assert sink.resume(iter([image])) == Kept(1, 1)


def test_a_file_of_something_else_is_not_cut(tmp_path: Path) -> None:
    path = tmp_path / "diary.csv"
    path.write_text("Dear diary")
    for form in (CSV(1), JSONLines(1)):
        with (
            closing(File(path, form, {})) as sink,
            pytest.raises(RunError, match="no rows of this command"),
        ):
            sink.resume(iter([Path("a.png")]))
    assert path.read_text() == "Dear diary"


def test_a_walk_equals_the_sorted_paths(folder: Path) -> None:
    assert list(listing.expand([str(folder)])) == photos.folder(folder)
    with pytest.raises(RunError, match="matches no file"):
        list(listing.expand([str(folder / "*.webp")]))


@pytest.mark.parametrize("profile", ["local", "server"])
def test_the_server_of_a_profile(
    folder: Path,
    server: TorchServe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    profile: str,
) -> None:
    (tmp_path / profile).symlink_to(server.state)
    monkeypatch.setattr(paths, "STATE", tmp_path)
    parsed = argparse.Namespace(server=None, key_file=None, model=REAL, profile=profile)
    client, model = connect(parsed)
    assert client.predict(model, (folder / "z.png").read_bytes()).status_code == 200
    parsed.model = None
    with pytest.raises(RunError, match=f"--model: {REAL}, {RANDOM}"):
        connect(parsed)
    (tmp_path / profile).unlink()
    with pytest.raises(RunError, match=f"make serve PROFILE={profile}"):
        connect(parsed)


def test_arguments_that_make_no_run(folder: Path, target: list[str], tmp_path: Path) -> None:
    cases: list[tuple[list[str | Path], str]] = [
        ([], "name images"),
        ([folder, "--output", tmp_path / "rows.xls", *target], "must be .csv, .jsonl or .parquet"),
        ([tmp_path, *target], "There are no images."),
        ([folder, "--engine", "ray"], "needs --archive"),
        ([folder, "--server", "http://127.0.0.1:8080"], "needs --model"),
        ([folder, "--concurrency", "0", *target], "a whole number from 1"),
        ([folder, "--profile", "server", *target], "give --profile or --server, not both"),
        ([folder, "--overwrite", *target], "--overwrite goes with --output"),
    ]
    for arguments, message in cases:
        done = run(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr
