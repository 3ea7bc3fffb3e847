"""Answers kept by the hash of their image, shared by the workers of a machine."""

import json
import logging
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import diskcache

from visionserve.config import CacheConfig
from visionserve.item import Item

# Options of which an answer is made from the kept one.
APPEARANCE = {"language", "format"}

logger = logging.getLogger(__name__)

# SQLite's own cache of the file, in a worker. diskcache's default keeps 32 MB of pages and maps
# another 64 MB: a worker grew by 120 MB while the cache filled, and answered no sooner for it.
MEMORY = {"sqlite_cache_size": 512, "sqlite_mmap_size": 0}

FAILURES = (OSError, sqlite3.Error, diskcache.Timeout, ValueError)


class PlainDisk(diskcache.Disk):  # type: ignore[misc]
    """A disk of text and bytes: a pickled row, which this project never writes, is not read."""

    def fetch(self, mode: int, filename: str | None, value: Any, read: bool) -> Any:
        """Return a stored value.

        Raises:
            ValueError: the value is pickled.
        """
        if mode == diskcache.core.MODE_PICKLE:
            raise ValueError("The cache holds a pickled value.")
        return super().fetch(mode, filename, value, read)


class Cache:
    """A bounded cache on disk; the answers stored longest ago make room.

    An answer is kept without the words of a language, so that clients of all of them share it.
    A cache that cannot be read or written, by a full disk for one, is a cache without hits.

    Args:
        config: where it lives, and its bound.
        fingerprint: names everything but the item that an answer depends on.
    """

    def __init__(self, config: CacheConfig, fingerprint: str) -> None:
        self._fingerprint = fingerprint
        self._store: diskcache.Cache | None = None
        directory = Path(tempfile.gettempdir()) / config.directory
        try:
            self._store = diskcache.Cache(
                str(directory),
                disk=PlainDisk,
                timeout=1,
                size_limit=config.size_mb * 1_000_000,
                eviction_policy="least-recently-stored",
                **MEMORY,
            )
        except FAILURES as error:
            logger.warning("The cache %s cannot be opened: %s", directory, error)

    def get(self, item: Item) -> dict[str, Any] | None:
        """Return the answer kept for an item, or None."""
        try:
            text = None if self._store is None else self._store.get(self._key(item))
            answer: dict[str, Any] | None = None if text is None else json.loads(text)
        except FAILURES as error:
            logger.warning("The cache cannot be read: %s", error)
            return None
        return answer

    def put(self, item: Item, answer: dict[str, Any]) -> None:
        """Keep an answer."""
        try:
            if self._store is not None:
                self._store.set(self._key(item), json.dumps(answer, ensure_ascii=False))
        except FAILURES as error:
            logger.warning("The cache cannot be written: %s", error)

    def _key(self, item: Item) -> str:
        options = item.options.model_dump_json(exclude=APPEARANCE)
        return f"{item.digest} {options} {self._fingerprint}"
