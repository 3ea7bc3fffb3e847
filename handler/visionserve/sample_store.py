"""Pictures that were kept with their answers, in a folder that the workers of a server share.

A sample is `ID.jpg`, its answer `ID.json` and, where somebody reported that, `ID.report.json`, in a
folder for each version of each model. Every file is written whole or not at all, and the answer
last, so that a sample is there once its answer is. Files of other names are left alone.

Whoever writes or removes holds `.lock` (flock(2)). It says how many bytes there are and when they
were last counted, so that a worker looks at all files only from time to time.
"""

import errno
import fcntl
import json
import os
import re
import stat
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from visionserve.answer import to_json

LOCK = ".lock"
ID_DIGITS = 16
FILE = re.compile(rf"([0-9a-f]{{{ID_DIGITS}}})\.(json|jpg|report\.json)")
PART = re.compile(rf"\.{FILE.pattern}\.part")
BLOCK = 4096  # What even the smallest file takes of most file systems.
DAY, HOUR = 86_400, 3600
# Once there is too much, a tenth of all is removed, so that files are seldom counted.
LEFT = 0.9
LONGEST_NAME = 200
PATIENCE = 2.0  # Seconds, less than a request's deadline.


@dataclass(frozen=True)
class Sample:
    """A picture that was kept.

    Attributes:
        picture: its JPEG file.
        about: its answer; see `visionserve.sampling.about`.
        report: `labels` that a person gave it, none for none of the model's, and their `time`; None
            if nobody reported it.
    """

    picture: Path
    about: Mapping[str, Any]
    report: Mapping[str, Any] | None

    @property
    def id(self) -> str:
        """The first 16 hex digits of the SHA-256 of the picture as it was sent."""
        return self.picture.stem

    @property
    def time(self) -> datetime:
        """When it was kept."""
        return datetime.fromisoformat(self.about["time"])

    @property
    def labels(self) -> list[str]:
        """What it shows: the reported labels, or else the answer's own or the best prediction."""
        if self.report is not None:
            return [*self.report["labels"]]
        return [*self.about.get("labels", [self.about["predictions"][0]["label"]])]


class SampleStore:
    """The samples of one version of a model, in a folder that it shares with others.

    Args:
        directory: the folder; it and all that it holds can be opened by this user alone.
        model: the model's name in the server.
        version: the model's version.
        max_bytes: how much the files of all models may take together, in whole blocks of 4 KiB.
        days: after how many days a sample is removed.
    """

    def __init__(
        self, directory: Path, model: str, version: str, max_bytes: int, days: float
    ) -> None:
        self._directory = directory
        self._folder = directory / quote(f"{model}-{version}", safe=" ")[:LONGEST_NAME]
        self._max_bytes = max_bytes
        self._days = days

    def holds(self, id: str) -> bool:
        """Tell whether a picture is kept, by its id of 16 hex digits."""
        return (self._folder / f"{id}.json").exists()

    def put(self, id: str, picture: bytes, about: Mapping[str, Any]) -> bool:
        """Keep a picture, unless it is kept already; the oldest ones make room for it.

        Args:
            id: 16 hex digits.
            picture: a JPEG.
            about: its answer.

        Returns:
            Whether it was not kept before.

        Raises:
            OSError: the disk is full, say, and nothing of it is kept; or the folder is a link, or
                another user's.
        """
        text = to_json(about)
        with self._held() as ledger:
            if self.holds(id):
                return False
            self._reserve(ledger, _size(len(picture)) + _size(len(text)))
            self._folder.mkdir(mode=0o700, exist_ok=True)
            file = self._folder / f"{id}.jpg"
            _write(file, picture)
            try:
                _write(file.with_suffix(".json"), text)
            except OSError:
                file.unlink()
                raise
            return True

    def report(self, id: str, report: Mapping[str, Any]) -> None:
        """Keep a report beside its sample, in place of an earlier one.

        Raises:
            FileNotFoundError: the picture is not kept.
            OSError: as `put`.
        """
        text = to_json(report)
        with self._held() as ledger:
            if not self.holds(id):
                raise FileNotFoundError(errno.ENOENT, "No such sample", id)
            self._reserve(ledger, _size(len(text)))
            if not self.holds(id):  # It has just made room.
                raise FileNotFoundError(errno.ENOENT, "No such sample", id)
            _write(self._folder / f"{id}.report.json", text)

    def tidy(self) -> None:
        """Remove samples that are too old, and what a killed worker left half-written.

        Raises:
            OSError: as `put`.
        """
        with self._held() as ledger:
            self._count(ledger)

    @contextmanager
    def _held(self) -> Iterator[int]:
        """Hold the folder for the block; yield the open file that says what it holds."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _held(self._directory) as ledger:
            yield ledger

    def _reserve(self, ledger: int, size: int) -> None:
        """Make room for so many bytes.

        Raises:
            OSError: there is less room than that in all.
        """
        if size > self._max_bytes:
            raise OSError(errno.EFBIG, "Larger than max_mb", str(self._directory))
        words = os.pread(ledger, 100, 0).split()
        total, counted = map(int, words) if len(words) == 2 else (0, 0)
        if total + size > self._max_bytes or not 0 <= time.time() - counted < HOUR:
            total = self._count(ledger, size)
            counted = int(time.time())
        _note(ledger, total + size, counted)

    def _count(self, ledger: int, room: int = 0) -> int:
        """Count the bytes, once there is room for so many more and nothing that is too old."""
        samples = sorted(_samples(self._directory), key=lambda files: files[0].stat.st_mtime)
        total = sum(_size(file.stat.st_size) for files in samples for file in files)
        fits = total + room <= self._max_bytes
        goal = total if fits else LEFT * (self._max_bytes - room)
        oldest = time.time() - self._days * DAY
        for files in samples:
            if total <= goal and files[0].stat.st_mtime >= oldest:
                break
            for file in files:
                file.path.unlink(missing_ok=True)
                total -= _size(file.stat.st_size)
        _note(ledger, total, int(time.time()))
        return total


def read(directory: Path) -> list[Sample]:
    """Return the samples of a folder, the oldest first, without those that go meanwhile.

    A damaged one is left out.

    Raises:
        OSError: there is no such folder, or it cannot be read.
    """
    found = []
    for folder in sorted(path for path in directory.iterdir() if path.is_dir()):
        for path in folder.glob("*.json"):
            match = FILE.fullmatch(path.name)
            if match is None or match[2] != "json":
                continue
            report, reported = path.with_suffix(".report.json"), None
            with suppress(OSError, ValueError, RecursionError, TypeError, LookupError):
                about = json.loads(path.read_bytes())
                if report.exists():
                    reported = json.loads(report.read_bytes())
                sample = Sample(path.with_suffix(".jpg"), about, reported)
                found.append((sample.time, sample.id, sample.labels, sample))
    return [sample for *_, sample in sorted(found, key=lambda one: one[:2])]


def clear(directory: Path) -> int:
    """Remove all samples of a folder, and return how many there were.

    Raises:
        OSError: there is no such folder, or it is not this user's.
    """
    with _held(directory) as ledger:
        samples = list(_samples(directory))
        for files in samples:
            for file in files:
                file.path.unlink(missing_ok=True)
        for folder in directory.iterdir():
            if folder.is_dir():
                with suppress(OSError):  # It holds something else.
                    folder.rmdir()
        _note(ledger, 0, int(time.time()))
        return len(samples)


@dataclass(frozen=True)
class _File:
    path: Path
    stat: os.stat_result


def _samples(directory: Path) -> Iterator[list[_File]]:
    """Yield each sample's files, its answer first. The caller holds the folder.

    What belongs to no sample, as a killed worker left it, is removed.
    """
    for folder in directory.iterdir():
        if folder.is_symlink() or not folder.is_dir():
            continue
        by_id: dict[str, dict[str, _File]] = defaultdict(dict)
        for entry in os.scandir(folder):
            match = FILE.fullmatch(entry.name)
            with suppress(FileNotFoundError):
                if match:
                    by_id[match[1]][match[2]] = _File(Path(entry.path), entry.stat())
                elif PART.fullmatch(entry.name):
                    Path(entry.path).unlink()
        for files in by_id.values():
            if {"json", "jpg"} <= files.keys():
                yield [files.pop("json"), *files.values()]
            else:
                for file in files.values():
                    file.path.unlink(missing_ok=True)


@contextmanager
def _held(directory: Path) -> Iterator[int]:
    """Hold a folder of samples, which this user alone can open, for the block.

    Raises:
        TimeoutError: another process holds it for too long.
        OSError: the folder is a link, or another user's.
    """
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise OSError(errno.ENOTDIR, "A link, or no folder", str(directory))
    if status.st_uid != os.geteuid():
        raise OSError(errno.EPERM, "Another user's folder", str(directory))
    if status.st_mode & 0o077:
        directory.chmod(0o700)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    descriptor = os.open(directory / LOCK, flags, 0o600)
    try:
        _lock(descriptor)
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Lock an open file; one that another process keeps, as a stopped one would, is given up."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise TimeoutError(errno.ETIMEDOUT, "Another process holds the samples") from None
            time.sleep(0.01)


def _note(ledger: int, total: int, counted: int) -> None:
    """Write how many bytes there are, and when they were counted, in seconds since 1970."""
    text = f"{total} {counted}\n".encode()
    os.pwrite(ledger, text, 0)
    os.ftruncate(ledger, len(text))


def _write(file: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    part = file.with_name(f".{file.name}.part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    try:
        with open(part, "wb", opener=lambda path, _: os.open(path, flags, 0o600)) as stream:
            stream.write(content)
        part.replace(file)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def _size(length: int) -> int:
    """Return how many bytes a file of this length takes on the disk."""
    return -(-length // BLOCK) * BLOCK
