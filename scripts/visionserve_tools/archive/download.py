"""Download a file whose SHA-256 is known, and resume where an earlier try ended."""

from pathlib import Path
from typing import BinaryIO

import requests
from tqdm import tqdm

from visionserve_tools import lock
from visionserve_tools.archive.hashes import sha256_of

TIMEOUT = (10, 30)
TRIES = 3
CHUNK = 1 << 16


class DownloadError(Exception):
    """A file cannot be downloaded; the message names it, its address and the reason."""


class ChecksumError(Exception):
    """A downloaded file is another one; the message names its address and both hashes."""


def download(url: str, path: Path, prefix: str) -> None:
    """Download a file whose SHA-256 begins with a prefix, and resume where an earlier try ended.

    Raises:
        DownloadError: the download failed; what has arrived is kept for the next try.
        ChecksumError: the downloaded file has another SHA-256.
    """
    part = path.with_name(f"{path.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    # Without this lock, two builds at once would write into the same file.
    with lock.writing(part, wait=True), part.open("ab") as file:
        if path.exists():
            part.unlink()
            return
        for tries_left in reversed(range(TRIES)):
            had = file.tell()
            try:
                _fetch(url, file)
                break
            except requests.RequestException as error:
                if file.tell() > had and tries_left:
                    continue
                kept = f"; {file.tell():,} bytes are kept for the next try" if file.tell() else ""
                raise DownloadError(
                    f"{path}: not cached, and {url} cannot be downloaded: {_reason(error)}{kept}."
                ) from None
        digest = sha256_of(part)
        if not digest.startswith(prefix):
            part.unlink()
            raise ChecksumError(
                f"{url}: expected SHA-256 {prefix}..., found {digest}; the file is not used."
            )
        part.replace(path)


def _fetch(url: str, file: BinaryIO) -> None:
    """Download the part of a URL's content that a file still lacks, and append it.

    Raises:
        requests.RequestException: the server refuses, does not respond, or ends too early.
    """
    had = file.tell()
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={had}-"} if had else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            return  # The file is complete; its hash shows whether it is right.
        response.raise_for_status()
        if response.status_code != requests.codes.partial_content:
            file.truncate(had := 0)
        size = response.headers.get("Content-Length")
        with tqdm(
            desc=url.rpartition("/")[2],
            initial=had,
            total=had + int(size) if size else None,
            unit="B",
            unit_scale=True,
            disable=None,
        ) as bar:
            for chunk in response.iter_content(CHUNK):
                file.write(chunk)
                file.flush()
                bar.update(len(chunk))


def _reason(error: requests.RequestException) -> str:
    """Say in plain words why a download failed."""
    match error:
        case requests.HTTPError():
            return f"HTTP status {error.response.status_code}"
        case requests.Timeout():
            return "the server does not answer in time"
        case requests.exceptions.ProxyError():
            return "the proxy cannot be reached"
        case requests.exceptions.SSLError():
            return "the server's certificate is not trusted"
        case requests.exceptions.ChunkedEncodingError():
            return "the connection broke"
        case requests.ConnectionError():
            return "no connection"
    return str(error)
