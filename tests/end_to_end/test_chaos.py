"""A server that is broken while clients ask: nothing is wrong, nothing is lost."""

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from io import BytesIO
from itertools import product
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers import called, written_later
from tests.stress import chaos
from tests.stress.clients import (
    FORMATS,
    LENGTHS,
    MODEL,
    REFUSED_FORMATS,
    VIEWS,
    Load,
    WrongAnswerError,
    mixed,
    plain,
)
from visionserve_tools.batch.server_engine import LARGEST
from visionserve_tools.server.client import Client


@pytest.fixture(scope="module")
def testbed() -> Iterator[chaos.Testbed]:
    """Fewer clients than of `make chaos`, which pause for longer, as other tests take the cores."""
    with pytest.MonkeyPatch.context() as patch, chaos.testbed() as started:
        patch.setattr(chaos, "CLIENTS", 2)
        patch.setattr(chaos, "PAUSE", 0.15)
        yield started


@pytest.mark.parametrize(
    "fault",
    [
        chaos.stop_worker,
        chaos.kill_workers_amid_a_list,
        chaos.fill_disk,
        chaos.corrupt_version,
        chaos.replace_model,
        chaos.remove_model,
        chaos.rotate_read_only_keys,
    ],
    ids=lambda fault: fault.__name__,
)
def test_a_fault_costs_no_answer(testbed: chaos.Testbed, fault: chaos.Fault) -> None:
    costs_none(testbed, fault)


def costs_none(testbed: chaos.Testbed, fault: chaos.Fault) -> None:
    try:
        report = chaos.cause(fault, testbed)
    except chaos.SkippedError as reason:
        pytest.skip(str(reason))
    assert report.asked and (report.wrong, report.lost) == (0, 0)
    assert all(sent.verdict == "right" for sent in report.probed[-5:])


def test_a_killed_frontend_comes_back_from_its_last_whole_snapshot(testbed: chaos.Testbed) -> None:
    """Also after the clock was set back: the earlier snapshots are of a later time."""
    snapshots = testbed.server.state / "logs" / "config"
    testbed.client.scale(MODEL, 1)
    for number, file in enumerate(sorted(snapshots.iterdir())):
        os.utime(file, (4e9 + number, 4e9 + number))
        file.rename(file.with_name(f"299912312359{number:05}-snapshot.cfg"))
    scaled = called("manage", "--state", testbed.server.state, "scale", MODEL, chaos.WORKERS)
    assert scaled.returncode == 0
    empty = snapshots / "29991231235959999-snapshot.cfg"
    empty.touch()
    report = chaos.cause(chaos.kill_frontend, testbed)
    empty.unlink()
    assert (report.wrong, report.lost) == (0, 0)
    assert any(sent.setbacks for sent in report.asked)
    assert testbed.client.describe(MODEL)[0]["modelVersion"] == "1.0"


def test_a_start_is_newer_than_the_snapshots_before_it(testbed: chaos.Testbed) -> None:
    """Which a clock that was ahead has dated. It restores, where ids of processes are stale."""
    testbed.client.scale(MODEL, 1)
    for file in (testbed.server.state / "logs" / "config").iterdir():
        os.utime(file, (4e9, 4e9))
    testbed.restart()
    costs_none(testbed, chaos.leave_stale_ids)


def test_no_key_is_replaced_where_it_cannot_be_written(
    testbed: chaos.Testbed, tmp_path: Path
) -> None:
    keys = testbed.server.state / "key_file.json"
    before = keys.read_text()
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk is not permitted")
    try:
        with chaos.read_only(keys):
            done = called("manage", "--state", testbed.server.state, "rotate")
        assert (done.returncode, done.stdout) == (1, "")
        assert re.fullmatch(
            rf"{re.escape(str(keys))} cannot be written \(.*\): no key.*\n", done.stderr
        )
        on_disk = disk / "key_file.json"
        on_disk.write_text(before)
        with (disk / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError):
            while True:
                filler.write(bytes(4096))
        client = Client(testbed.client.inference, testbed.client.management, on_disk)
        with pytest.raises(OSError, match="No space left"):
            client.rotate()
        assert on_disk.read_text() == before and client.models() == [MODEL]
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert keys.read_text() == before


def test_a_refused_key_counts_as_a_setback(testbed: chaos.Testbed, tmp_path: Path) -> None:
    """The client itself sends such a request again, so the load only sees the last response."""
    keys = (testbed.server.state / "key_file.json").read_text()
    file = tmp_path / "key_file.json"
    file.write_text(re.sub(r'"key": *"', '"key": "replaced', keys))
    client = Client(testbed.client.inference, testbed.client.management, file)
    with written_later(file, keys):
        sent = testbed.load.ask(client, 0, time.monotonic())
    assert sent.verdict == "right" and set(sent.setbacks) == {"400"}


def test_a_wrong_answer_is_noticed(testbed: chaos.Testbed) -> None:
    """The labels of version 3.0 are the right ones; its probabilities are not."""
    metadata = json.loads(testbed.file("metadata.json"))
    metadata["transforms"]["resize"] += 8
    metadata["self_check"] = None  # As an earlier builder has it: nothing is checked.
    testbed.register("3.0", {"metadata.json": json.dumps(metadata).encode()})
    with testbed.load.steady(1) as account:
        chaos.until(lambda: len(account) > 5)
        testbed.client.set_default(MODEL, "3.0")
        chaos.until(lambda: account[-1].verdict == "wrong")
        with pytest.raises(WrongAnswerError, match="PyTorch gives that class"):
            Load(testbed.server.state, plain())
        testbed.replace("3.0", successor="1.0")
        chaos.until(lambda: account[-1].verdict == "right")
    assert {sent.verdict for sent in account} == {"right", "wrong"}


def test_a_soak_asks_for_everything() -> None:
    questions = mixed()
    assert {(q.tta, len(q.images)) for q in questions} == set(product(VIEWS, LENGTHS))
    assert all(len(image) <= LARGEST for question in questions for image in question.images)
    images = [Image.open(BytesIO(image)) for question in questions for image in question.images]
    assert len({image.size for image in images}) > 64
    assert {image.format for image in images} == set(FORMATS)
    broken = [image.format for image in images if image.size == (6000, 4000)]
    assert set(broken) == set(REFUSED_FORMATS) and len(broken) / len(images) > 0.08
