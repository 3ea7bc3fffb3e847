"""Answers that are kept."""

import sqlite3
from pathlib import Path

import psutil
import pytest

from visionserve.answer import Answer
from visionserve.cache import Cache
from visionserve.config import CacheConfig, Options
from visionserve.item import Item

ITEM = Item(b"image", Options())
ANSWER: Answer = {
    "model": "m",
    "architecture": "resnet18",
    "version": "1.0",
    "tta": "none",
    "predictions": [{"label": "高山雪景", "class_id": 970, "probability": 0.5}],
    "confident": True,
}
LARGE: Answer = {**ANSWER, "warning": "x" * 30_000}


def cache(directory: Path, fingerprint: str = "model", size_mb: int = 1) -> Cache:
    return Cache(CacheConfig(directory=directory, size_mb=size_mb), fingerprint)


def test_an_answer_comes_back_equal_and_to_another_worker_too(tmp_path: Path) -> None:
    cache(tmp_path).put(ITEM, ANSWER)
    assert cache(tmp_path).get(ITEM) == ANSWER


@pytest.mark.parametrize(
    ("item", "fingerprint"),
    [
        (Item(b"other", Options()), "model"),
        (Item(b"image", Options(top_k=1)), "model"),
        (Item(b"image", Options(tta="dense")), "model"),
        (ITEM, "another model"),
    ],
)
def test_another_image_option_or_model_is_a_miss(
    tmp_path: Path, item: Item, fingerprint: str
) -> None:
    cache(tmp_path).put(ITEM, ANSWER)
    assert cache(tmp_path, fingerprint).get(item) is None


def test_the_size_is_bounded(tmp_path: Path) -> None:
    """SQLite's write-ahead log takes up to 4 MB beside the bound."""
    kept = cache(tmp_path)
    for number in range(300):
        kept.put(Item(str(number).encode(), Options()), LARGE)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*")) < 1_000_000 + 4_500_000
    assert kept.get(Item(b"299", Options())) == LARGE
    assert kept.get(Item(b"0", Options())) is None


def test_a_worker_keeps_little_of_a_large_cache_in_memory(tmp_path: Path) -> None:
    """700 answers of 30 kB are 21 MB on disk."""
    kept = cache(tmp_path, size_mb=100)
    before = psutil.Process().memory_full_info().uss
    for number in range(700):
        kept.put(Item(str(number).encode(), Options()), LARGE)
        assert kept.get(Item(str(number).encode(), Options())) == LARGE
    assert psutil.Process().memory_full_info().uss - before < 10_000_000


def test_a_pickled_row_is_not_read(tmp_path: Path) -> None:
    kept = cache(tmp_path)
    kept.put(ITEM, ANSWER)
    with sqlite3.connect(tmp_path / "cache.db") as database:
        database.execute("UPDATE Cache SET mode = 4, value = ?", (b"cos\nsystem\n.",))
    assert kept.get(ITEM) is None


def test_a_broken_cache_is_a_cache_without_hits(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    blocked = cache(tmp_path / "file")
    blocked.put(ITEM, ANSWER)
    assert blocked.get(ITEM) is None

    kept = cache(tmp_path / "cache")
    kept.put(ITEM, ANSWER)
    (tmp_path / "cache" / "cache.db").write_bytes(b"not a database" * 1000)
    kept.put(ITEM, ANSWER)
    assert kept.get(Item(b"other", Options())) is None
