"""Answers that are kept."""

import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from scripts import photos
from visionserve.cache import Cache
from visionserve.classifier import Classifier
from visionserve.config import CacheConfig, HandlerConfig, Options
from visionserve.item import Item
from visionserve.metadata import Metadata, Transforms

CAT = photos.greeting().read_bytes()
ITEM = Item(b"image", Options())
ANSWER: dict[str, Any] = {"predictions": [{"label": "高山雪景", "probability": 0.5}]}


def cache(directory: Path, fingerprint: str = "model", size_mb: int = 1) -> Cache:
    return Cache(CacheConfig(directory=directory, size_mb=size_mb), fingerprint)


class Brightness:
    """A two-class runtime: how dark, how bright. It counts its calls."""

    calls = 0

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.calls += 1
        bright = pixels.mean(axis=(1, 2, 3)) / 255
        return np.stack([1 - bright, bright], axis=1).astype(np.float32)


def classifier(runtime: Brightness, directory: Path, size_mb: int = 1) -> Classifier:
    metadata = Metadata(
        architecture="brightness",
        weights="none",
        weights_sha256="",
        artifact="",
        transforms=Transforms(),
        categories=("dark", "bright"),
    )
    kept = CacheConfig(directory=directory, size_mb=size_mb)
    config = HandlerConfig(cache=kept, defaults=Options(top_k=2))
    return Classifier(runtime, metadata, config, "1.0")


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
    large = {"text": "x" * 20_000}
    for number in range(1000):
        kept.put(Item(str(number).encode(), Options()), large)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*")) < 1_000_000 + 4_500_000
    assert kept.get(Item(b"999", Options())) == large
    assert kept.get(Item(b"0", Options())) is None


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


def test_a_hit_says_so_and_runs_nothing(tmp_path: Path) -> None:
    runtime = Brightness()
    classify = classifier(runtime, tmp_path).classify
    options = Options(top_k=2)
    (first,) = classify([Item(CAT, options)])
    assert isinstance(first, dict) and "cached" not in first and runtime.calls == 1
    assert classify([Item(CAT, options)]) == [first | {"cached": True}]
    assert runtime.calls == 1
    classify([Item(CAT, Options(top_k=2, tta="five_crop"))])
    assert runtime.calls == 2


def test_without_a_size_nothing_is_kept(tmp_path: Path) -> None:
    runtime = Brightness()
    classify = classifier(runtime, tmp_path, size_mb=0).classify
    for _ in range(2):
        (answer,) = classify([Item(CAT, Options(top_k=2))])
        assert isinstance(answer, dict) and "cached" not in answer
    assert runtime.calls == 2 and not list(tmp_path.iterdir())


def test_errors_are_not_kept(tmp_path: Path) -> None:
    classify = classifier(Brightness(), tmp_path).classify
    assert classify([Item(b"bad", Options(top_k=2))]) != []
    assert cache(tmp_path).get(Item(b"bad", Options(top_k=2))) is None


def test_views_of_one_shape_share_a_forward_pass(tmp_path: Path) -> None:
    runtime = Brightness()
    modes = [Options(top_k=2, tta=mode) for mode in ("none", "five_crop", "ten_crop")]
    answers = classifier(runtime, tmp_path).classify([Item(CAT, options) for options in modes])
    assert runtime.calls == 1
    alone = Brightness()
    for options, answer in zip(modes, answers, strict=True):
        assert classifier(alone, tmp_path, size_mb=0).classify([Item(CAT, options)]) == [answer]
