"""The batch command against the real server, each run a process of its own."""

import argparse
import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from scripts import listing, paths, photos
from scripts.classify import connect
from scripts.client import Client
from scripts.load import free_port
from scripts.rows import RunError, columns, fault, row
from scripts.server_engine import delay, windowed
from scripts.sinks import CSV, File, JSONLines
from scripts.torchserve import TorchServe
from tests.conftest import RANDOM, REAL

COMMAND = [sys.executable, "-m", "scripts.classify"]


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


def run(*arguments: str | Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=paths.ROOT,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
    )


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


def test_folder_to_csv(folder: Path, target: list[str]) -> None:
    done = run(folder, *target, "--tta", "none", "--top-k", "2")
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
    done = run("--list", "-", *target, "--threshold", "1", stdin=f"{folder}/z.png\n")
    assert done.returncode == 0
    assert [row["confident"] for row in read_csv(done.stdout)] == ["false"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_cut_file_is_gone_on_with(
    folder: Path, target: list[str], tmp_path: Path, suffix: str
) -> None:
    output = tmp_path / f"rows{suffix}"
    assert run(folder, *target, "--output", output).returncode == 1
    whole = output.read_bytes()
    lines = whole.splitlines(keepends=True)
    marked = lines[-1].replace(b"efficientnet_lite0", b"kept as it was")
    output.write_bytes(b"".join(lines[:-2]) + lines[-2][:20])
    again = run(folder, *target, "--output", output)
    assert again.returncode == 1, "an error of the first run still counts"
    assert output.read_bytes() == whole

    output.write_bytes(b"".join(lines[:-1]) + marked)
    assert run(folder, *target, "--output", output).returncode == 1
    assert output.read_bytes().endswith(marked), "complete rows are not asked for again"


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


def test_json_lines(folder: Path, target: list[str], tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    run(folder, *target, "--output", output)
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [list(row) for row in rows] == [list(columns(3))] * 4
    assert rows[1]["label_1"] is None
    assert rows[2]["class_id_1"] == 285
    assert rows[3]["confident"] is True


def test_parquet(folder: Path, target: list[str], tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="the `batch` extra is not installed")
    output = tmp_path / "rows.parquet"
    begun = tmp_path / "rows.parquet.jsonl"
    run(folder / "a.jpg", *target, "--output", tmp_path / "first.jsonl")
    (tmp_path / "first.jsonl").rename(begun)
    assert run(folder, *target, "--output", output).returncode == 1
    rows = parquet.read_table(output).to_pylist()
    assert list(rows[0]) == list(columns(3))
    assert [Path(row["path"]).name for row in rows] == ["a.jpg", "broken.jpg", "cat.PNG", "z.png"]
    assert rows[2]["class_id_1"] == 285
    assert not begun.exists()
    assert "is complete" in run(folder, *target, "--output", output).stderr


def test_an_invalid_option_stops_the_run(folder: Path, target: list[str], tmp_path: Path) -> None:
    output = tmp_path / "rows.csv"
    done = run(folder, *target, "--output", output, "--tta", "many")
    assert done.returncode == 2
    assert "invalid_option: tta: " in done.stderr
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


def test_an_error_of_torchserve_itself_is_a_row(target: list[str], tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    large.touch()
    os.truncate(large, 40 * 1024 * 1024)
    done = run(large, photos.greeting(), *target)
    first, second = read_csv(done.stdout)
    assert first["error"].startswith(("413: ", "broken_connection: "))
    assert second["label_1"] == "Egyptian cat"


def test_the_window_bounds_what_is_taken_ahead() -> None:
    taken = count()
    latest = 0

    def inputs() -> Iterator[int]:
        nonlocal latest
        for _ in range(20_000):
            latest = next(taken)
            yield latest

    ahead = 0
    for expected, output in enumerate(windowed(lambda item: item, inputs(), 4, 32)):
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

    outputs = windowed(fail, count(), 1, 8)
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
    sink = File(path, CSV(1))
    for image in images:
        sink.write(row(image, fault("code", "=1+1"), 1))
    sink.finish()
    with path.open(encoding="utf-8", newline="") as file:
        cells = [record["path"] for record in csv.DictReader(file)]
    assert cells == [f"'{name}" for name in names[:6]] + names[6:]
    assert File(path, CSV(1)).resume(iter(images)) == (9, 9)


def test_a_name_that_is_no_utf_8(tmp_path: Path) -> None:
    image = Path(os.fsdecode(b"caf\xe9.png"))
    for form, suffix in ((CSV(1), "csv"), (JSONLines(1), "jsonl")):
        path = tmp_path / f"rows.{suffix}"
        sink = File(path, form)
        sink.write(row(image, fault("code", "message"), 1))
        sink.finish()
        assert "xe9.png" in path.read_text(encoding="utf-8")
        assert File(path, form).resume(iter([image])) == (1, 1)


def test_a_file_of_something_else_is_not_cut(tmp_path: Path) -> None:
    path = tmp_path / "diary.csv"
    path.write_text("Dear diary")
    for form in (CSV(1), JSONLines(1)):
        with pytest.raises(RunError, match="no rows of this command"):
            File(path, form).resume(iter([Path("a.png")]))
    assert path.read_text() == "Dear diary"


def test_a_walk_equals_the_sorted_paths(folder: Path) -> None:
    assert list(listing.expand([str(folder)])) == photos.folder(folder)
    with pytest.raises(RunError, match="matches no file"):
        list(listing.expand([str(folder / "*.webp")]))


def test_the_server_of_make_serve_is_the_default(
    folder: Path, server: TorchServe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "local").symlink_to(server.state)
    monkeypatch.setattr(paths, "STATE", tmp_path)
    parsed = argparse.Namespace(server=None, key_file=None, model=REAL)
    client, model = connect(parsed)
    assert client.predict(model, (folder / "z.png").read_bytes()).status_code == 200
    parsed.model = None
    with pytest.raises(RunError, match=f"--model: {REAL}, {RANDOM}"):
        connect(parsed)
    (tmp_path / "local").unlink()
    with pytest.raises(RunError, match="make serve"):
        connect(parsed)


def test_arguments_that_make_no_run(folder: Path, target: list[str], tmp_path: Path) -> None:
    cases: list[tuple[list[str | Path], str]] = [
        ([], "name images"),
        ([folder, "--output", tmp_path / "rows.xls", *target], "must be .csv, .jsonl or .parquet"),
        ([tmp_path, *target], "There are no images."),
        ([folder, "--engine", "ray"], "needs --archive"),
        ([folder, "--server", "http://127.0.0.1:8080"], "needs --model"),
        ([folder, "--concurrency", "0", *target], "must be at least 1"),
    ]
    for arguments, message in cases:
        done = run(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr
