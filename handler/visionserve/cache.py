"""A cache of answers on disk, which the workers of a machine share."""

import json
import logging
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import diskcache

from visionserve.answer import Answer
from visionserve.config import CacheConfig
from visionserve.item import Item
from visionserve.trace import Look

# Options that change how an answer is shown, but not what the cache stores of it.
APPEARANCE = {"language", "format"}

logger = logging.getLogger(__name__)

# Memory that SQLite may use in each worker, in pages and bytes. With diskcache's defaults, 32 MB
# of pages and a mapping of 64 MB, a worker grew by 120 MB while the cache filled, and lookups
# were no faster.
MEMORY = {"sqlite_cache_size": 512, "sqlite_mmap_size": 0}

FAILURES = (OSError, sqlite3.Error, diskcache.Timeout, ValueError)


class PlainDisk(diskcache.Disk):  # type: ignore[misc]
    """Storage that never unpickles, so that whoever can write its file cannot run code here."""

    def fetch(self, mode: int, filename: str | None, value: Any, read: bool) -> Any:
        """Return a stored value.

        Raises:
            ValueError: the value is pickled. This project stores text alone.
        """
        if mode == diskcache.core.MODE_PICKLE:
            raise ValueError("The cache holds a pickled value.")
        return super().fetch(mode, filename, value, read)


class Cache:
    """A bounded cache of answers by image, options and model. The oldest ones make room.

    Answers are stored before they are localized, so clients of all languages share them. A
    failure to read or write, such as a full disk, is logged and counts as a miss. The answers of
    probes are neither looked up nor stored, so that a probe always runs the model.

    Args:
        config: where the cache lives and how large it gets; no cache if its size is 0.
        fingerprint: names everything that an answer depends on, except the item.
    """

    def __init__(self, config: CacheConfig, fingerprint: str) -> None:
        self._fingerprint = fingerprint
        self._store: diskcache.Cache | None = None
        if not config.size_mb:
            return
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

    def get(self, item: Item) -> Answer | None:
        """Return the answer that is stored for an item, or None; note how its picture looked."""
        if self._store is None or item.probe or item.is_reported:
            return None
        try:
            text = self._store.get(self._key(item))
            if text is None:
                return None
            answer: Answer
            answer, look = json.loads(text)
            item.trace.look = look and Look(*look)
        except FAILURES as error:
            logger.warning("The cache cannot be read: %s", error)
            return None
        return answer

    def put(self, item: Item, answer: Answer) -> None:
        """Store an answer that is not localized yet."""
        if self._store is None or item.probe:
            return
        try:
            stored = json.dumps((answer, item.trace.look), ensure_ascii=False)
            self._store.set(self._key(item), stored)
        except FAILURES as error:
            logger.warning("The cache cannot be written: %s", error)

    def _key(self, item: Item) -> str:
        options = item.options.model_dump_json(exclude=APPEARANCE)
        return f"{item.digest} {options} {self._fingerprint}"
