"""Samples: which pictures are chosen, what bounds them, and what an export makes of them."""

import csv
import fcntl
import json
import os
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.helpers import encode
from tests.unit.heavy.test_multi_label import Fixed, described
from visionserve import sample_store
from visionserve.classifier import Classifier
from visionserve.config import HandlerConfig, Options, SamplesConfig
from visionserve.errors import RequestError
from visionserve.item import Item
from visionserve.sample_store import SampleStore
from visionserve.sampling import MOST, Report, Sampling
from visionserve_tools import class_folders
from visionserve_tools.quality import labelled
from visionserve_tools.server import samples

DAY = 86_400
PICTURE = encode(Image.new("RGB", (8, 8)), "JPEG")


def id_of(number: int) -> str:
    return f"{number:016x}"


def about(*labels: str, when: int = 0, **others: Any) -> dict[str, Any]:
    """An answer as it is kept, whose best prediction is the first label."""
    found = [{"label": label, "class_id": 0, "probability": 0.5} for label in labels]
    told = {"kept": ["share"], "model": "m", "version": "1.0", "tta": "none", "confident": True}
    return {"time": f"2026-11-30T12:00:{when:02}Z", **told, **others, "predictions": found}


def files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def test_bytes_and_days_bound_what_is_kept(tmp_path: Path) -> None:
    """Two workers of two models write by turns; the oldest samples go, reports with them."""
    most, picture = 400_000, bytes(10_000)
    stores = [SampleStore(tmp_path, model, "1.0", most, days=30) for model in ("a", "b/..")]
    begun = time.time() - 1000
    for number in range(100):
        store, id = stores[number % 2], id_of(number)
        assert store.put(id, picture, about("cat")) and not store.put(id, picture, about("dog"))
        store.report(id, {"labels": [], "time": ""})
        (own,) = tmp_path.rglob(f"{id}.json")
        os.utime(own, (begun + number, begun + number))
        assert sum(-(-path.stat().st_size // 4096) * 4096 for path in files(tmp_path)) < most + 4096
    held = [stores[number % 2].holds(id_of(number)) for number in range(100)]
    assert held[-1] and not held[0] and all(later or not one for one, later in pairwise(held))
    assert 15 < sum(held) == len(list(tmp_path.rglob("*.jpg"))) < 25
    with pytest.raises(FileNotFoundError):
        stores[0].report(id_of(0), {"labels": [], "time": ""})
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in files(tmp_path))

    folder = own.parent
    foreign = [folder / "notes.txt", folder / "holiday.jpg", tmp_path / f"{id_of(1)}.jpg"]
    unfinished = [folder / f"{id_of(200)}.jpg", folder / f".{id_of(201)}.json.part"]
    for path in (*foreign, *unfinished):
        path.write_bytes(b"x")
    os.utime(own, (begun - 31 * DAY, begun - 31 * DAY))
    stores[0].tidy()
    assert all(path.exists() for path in foreign) and not any(map(Path.exists, unfinished))
    assert not own.exists() and len(list(tmp_path.rglob("*.report.json"))) == sum(held) - 1

    assert sample_store.clear(tmp_path) == sum(held) - 1
    assert {path.name for path in files(tmp_path)} == {".lock", *(path.name for path in foreign)}
    assert stores[1].put(own.stem, picture, about("cat"))
    with pytest.raises(OSError, match="max_mb"):
        stores[1].put(id_of(300), bytes(most), about("cat"))
    assert not stores[1].holds(id_of(300)) and stores[1].holds(own.stem)


def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    own, link = tmp_path / "own", tmp_path / "link"
    own.mkdir(mode=0o755)
    link.symlink_to(own)
    with pytest.raises(OSError, match="A link"):
        SampleStore(link, "m", "1.0", 10**6, 1).put(id_of(1), PICTURE, about("cat"))
    assert not files(own)
    assert SampleStore(own, "m", "1.0", 10**6, 1).put(id_of(1), PICTURE, about("cat"))
    assert own.stat().st_mode & 0o777 == 0o700
    if not os.geteuid():
        os.chown(own, 12345, 12345)
        with pytest.raises(OSError, match="Another user"):
            SampleStore(own, "m", "1.0", 10**6, 1).put(id_of(2), PICTURE, about("cat"))


def test_a_process_that_holds_the_samples_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_store, "PATIENCE", 0.1)
    store = SampleStore(tmp_path, "m", "1.0", 10**6, 1)
    store.tidy()
    with (tmp_path / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        with pytest.raises(TimeoutError):
            store.put(id_of(1), PICTURE, about("cat"))
    assert store.put(id_of(1), PICTURE, about("cat"))


@pytest.fixture
def dropped(tmp_path: Path) -> Iterator[tuple[Sampling, list[str]]]:
    """Samples of a tenth of all pictures, and what is told of those that are dropped."""
    fates: list[str] = []
    config = SamplesConfig(share=0.1)
    yield Sampling(config, tmp_path / "samples", "m", "1.0", ("cat",), False, fates.append), fates


def test_a_share_is_of_the_pictures(dropped: tuple[Sampling, list[str]]) -> None:
    """The same pictures are drawn each time; probes and what cannot be read never are."""
    sampling, fates = dropped

    def drawn(**others: Any) -> list[bool]:
        items = [Item(bytes([n % 256, n // 256]), Options(), **others) for n in range(1000)]
        for start in range(0, 1000, 100):
            sampling.choose(items[start : start + 100])
        return [item.trace.is_candidate for item in items]

    first = drawn()
    assert 60 < sum(first) < 140 and first == drawn() and not fates
    assert not any(drawn(probe=True))
    items = [Item(bytes([n % 256, n // 256]), Options()) for n in range(1000)]
    sampling.choose(items)
    assert sum(item.trace.is_candidate for item in items) == MOST
    assert fates == ["dropped"] * (sum(first) - MOST)


@pytest.mark.parametrize(
    ("probabilities", "thresholds", "margin"),
    [
        ((0.8, 0.15, 0.05), (), 0.1),
        ((0.4, 0.35, 0.25), (), 0.3),
        ((0.99, 0.55, 0.01), (0.5, 0.6, 0.9), 0.05),
        ((0.99, 0.01, 0.01), (0.5, 0.6, 0.9), 0.49),
    ],
)
def test_the_margin_is_of_the_best_match_or_of_any_label(
    probabilities: tuple[float, ...], thresholds: tuple[float, ...], margin: float
) -> None:
    """A model of one label for each picture is asked with a threshold of 0.7."""
    labels = ("a", "b", "c")
    kind = {"activation": "sigmoid" if thresholds else "softmax", "thresholds": thresholds}
    metadata = described(labels, **kind)
    model = Classifier(Fixed(*probabilities), metadata, HandlerConfig(), "1.0")
    item = Item(PICTURE, Options(threshold=None if thresholds else 0.7))
    assert isinstance(model.classify([item])[0], dict)
    assert item.trace.margin == margin and item.trace.copy is None


def test_several_labels_are_reported_together(tmp_path: Path) -> None:
    SampleStore(tmp_path, "m", "1.0", 10**6, 1).put(id_of(1), PICTURE, about("cat", labels=["cat"]))
    sampling = Sampling(
        SamplesConfig(share=1), tmp_path, "m", "1.0", ("cat", "dog"), True, lambda _: None
    )
    for label, labels in ((["dog", "cat", "dog"], ["dog", "cat"]), ([], []), ("dog", ["dog"])):
        told = sampling.report(Report(id=id_of(1), label=label))
        assert told == {"sample": id_of(1), "reported": labels}
        (sample,) = sample_store.read(tmp_path)
        assert sample.labels == labels
    with pytest.raises(RequestError, match="no label 'cow'"):
        sampling.report(Report(id=id_of(1), label=["dog", "cow"]))


LABELS = ("Cat", "cat", "a/b", "..", ".x", "=1+1", "  ", "x" * 300, "tiger cat", "train")


def exported(directory: Path, kept: Sequence[dict[str, Any]], reports: Any, folder: Path) -> None:
    store = SampleStore(directory, "m", "1.0", 10**7, 30)
    for number, answer in enumerate(kept):
        store.put(id_of(number), PICTURE, answer)
        if number in reports:
            store.report(id_of(number), {"labels": reports[number], "time": ""})
    samples.export(sample_store.read(directory), folder)


def test_an_export_is_read_by_those_who_train_and_evaluate(tmp_path: Path) -> None:
    answers = [about(label, "cat", when=n) for n, label in enumerate(LABELS)]
    out = tmp_path / "out"
    exported(tmp_path / "samples", answers, {8: ["=1+1"], 9: []}, out)
    found = class_folders.find(out)
    assert len(found.photographs) == len(LABELS) - 1 and not found.left_out
    assert len(found.classes) == len(LABELS) - 2, "one was reported as another, one as none"
    assert len(labelled.read(out, found.classes).photographs) == len(LABELS) - 1
    with (out / "index.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows][:2] == ["Cat", "cat"]
    assert [row["label"] for row in rows][-3:] == ["x" * 300, "'=1+1", ""]
    assert rows[-1]["path"] == f".none-of-these/{id_of(9)}.jpg"
    assert all((out / row["path"]).read_bytes() == PICTURE for row in rows)
    with pytest.raises(OSError, match="no empty folder"):
        exported(tmp_path / "samples", [], {}, out)

    tasks = json.loads((out / "label-studio.json").read_text())
    assert tasks[8]["predictions"][0]["result"][0]["value"]["choices"] == ["tiger cat"]
    assert tasks[8]["annotations"][0]["result"][0]["value"]["choices"] == ["=1+1"]
    assert tasks[9]["annotations"][0]["result"][0]["value"]["choices"] == ["none of these"]
    assert tasks[0]["data"]["image"] == f"/data/local-files/?d=out/Cat/{id_of(0)}.jpg"


def test_an_export_of_several_labels_is_read_by_evaluate(tmp_path: Path) -> None:
    answers = [
        about("dog", labels=["dog", "cat"]),
        about("dog", labels=[]),
        about("dog", labels=[]),
    ]
    out = tmp_path / "out"
    exported(tmp_path / "samples", answers, {2: ["cat"]}, out)
    read = labelled.read_multi_label(out / "index.csv", ["cat", "dog"])
    assert [(path.parent.name, labels) for path, labels in read] == [
        ("dog", (0, 1)),
        ("dog", ()),
        ("cat", (0,)),
    ]
