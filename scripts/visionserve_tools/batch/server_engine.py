"""Classify files on a running server, several requests at a time."""

import random
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, TypeVar

import requests
from tqdm import tqdm
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from visionserve.config import HandlerConfig
from visionserve_tools.batch.rows import (
    Body,
    RunError,
    fault,
    is_server_fault,
    read_image,
    unreadable,
)
from visionserve_tools.server.client import Client

AHEAD = 8
FAULTS = 2
LARGEST = HandlerConfig().max_image_bytes
FIRST_DELAY, LONGEST_DELAY = 0.25, 30.0
BUSY = (429, 502, 503, 504)
TOO_LARGE = 413

Input = TypeVar("Input")
Output = TypeVar("Output")


def windowed(
    function: Callable[[Input], Output],
    inputs: Iterable[Input],
    threads: int,
    window: int,
    ended: Event,
) -> Generator[Output]:
    """Map inputs in order, in threads, taking at most `window` inputs ahead of the outputs.

    The event `ended` is set once no further output is wanted, so that no thread waits on.

    Raises:
        Exception: the first exception of `function`, in place of its output; inputs that have not
            begun are dropped.
    """
    pool = ThreadPoolExecutor(threads)
    pending: deque[Future[Output]] = deque()
    try:
        for item in inputs:
            pending.append(pool.submit(function, item))
            if len(pending) == window:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        ended.set()
        pool.shutdown(cancel_futures=True)


def classify(
    client: Client,
    model: str,
    options: Mapping[str, str],
    paths: Iterable[Path],
    concurrency: int,
    retries: int,
    largest: int = LARGEST,
) -> Generator[tuple[Path, Body]]:
    """Send each file to the server.

    Args:
        client: the server.
        model: its model.
        options: the options of each request, by name.
        paths: the files; read lazily.
        concurrency: the largest number of requests at a time.
        retries: how often one request is repeated at most, while the server cannot be reached
            or is busy (429, 503), or nginx finds none (502, 504). At most two of these may follow
            a fault of the server: a worker that died (500, 507), a timeout, or a connection that
            broke.
        largest: the most bytes of a file that is sent.

    Yields:
        Each file, in order, with the JSON object of its answer or of its error.

    Raises:
        RunError: the server cannot be reached, is too busy for too long, or refuses whatever
            it is sent, by a wrong token or model.
    """

    ended = Event()

    def ask(path: Path) -> tuple[Path, Body]:
        try:
            data = read_image(path, largest)
        except (OSError, ValueError) as error:
            return path, unreadable(error)
        if len(data) > largest:
            size = path.stat().st_size
            return path, fault(
                "image_too_large", f"The file has {size} bytes; at most {largest} may be."
            )
        send = partial(client.predict, model, data, None, **options)
        return path, _ask(client, send, retries, ended)

    return windowed(ask, paths, concurrency, AHEAD * concurrency, ended)


def _ask(client: Client, send: Callable[[], requests.Response], retries: int, ended: Event) -> Body:
    """Send an image again while the server is busy, and a few times after a server fault.

    Faults are retried less often, because the image itself may end each worker that gets it.
    """
    faults = 0
    for attempt in range(retries + 1):
        body, retry_after = None, None
        try:
            response = send()
        except requests.ConnectionError as error:
            reason = "No server answers."
            if not isinstance(_cause(error), NewConnectionError | ConnectTimeoutError):
                body = fault("broken_connection", "The connection broke.")
        except requests.Timeout:
            body = fault("timeout", "The server did not answer in time.")
        except requests.RequestException as error:
            raise RunError(f"{client.inference}: {error}") from None
        except (OSError, ValueError, KeyError):
            reason = "The key file cannot be read; a server that starts writes it."
        else:
            if _is_busy(response):
                reason = f"{response.status_code}: {_message(response)}"
                retry_after = response.headers.get("Retry-After")
            else:
                body = _body(client, response)
                if not is_server_fault(body.get("error", {}).get("code")):
                    return body
        if body is not None:
            reason = body["error"]["message"]
            faults += 1
            if faults > FAULTS:
                return body
        if attempt < retries:
            seconds = delay(attempt, retry_after)
            line = f"{client.inference}: {reason} Trying again in {seconds:.1f} s."
            tqdm.write(line, file=sys.stderr)
            if ended.wait(seconds):
                break
    if body is not None:
        return body
    raise RunError(f"{client.inference}: {reason}")


def delay(attempt: int, retry_after: str | None) -> float:
    """Return the seconds to wait before a repetition.

    Args:
        attempt: repetitions so far.
        retry_after: the server's `Retry-After`, seconds or an HTTP date, which decides; without
            one, the delay doubles each time, less a random part so that threads spread out.
    """
    if retry_after is not None:
        if retry_after.isdigit():
            return float(retry_after)
        with suppress(ValueError):
            return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    return min(LONGEST_DELAY, FIRST_DELAY * 2.0**attempt) * random.uniform(0.5, 1)


def _cause(error: requests.ConnectionError) -> object:
    """Return the reason inside urllib3's error, which requests wraps in its own."""
    return getattr(error.args[0], "reason", None) if error.args else None


def _is_busy(response: requests.Response) -> bool:
    """Tell whether the request was turned away before the archive handled it.

    An error in the archive's own form is about the image, unless it has `Retry-After`: nginx's
    errors have the same form, and say when to try again.
    """
    own = isinstance(_content(response).get("error"), dict)
    own = own and "Retry-After" not in response.headers
    return response.status_code in BUSY and not own


def _body(client: Client, response: requests.Response) -> Body:
    """Return the archive's own body as it is, and other errors in the same form.

    Raises:
        RunError: TorchServe or a proxy refuses the request.
    """
    content = _content(response)
    if "predictions" in content or isinstance(content.get("error"), dict):
        return content
    if response.status_code == TOO_LARGE:
        return fault("image_too_large", _message(response))
    if response.status_code >= 500:
        return fault("server_error", f"{response.status_code}: {_message(response)}")
    raise RunError(f"{client.inference}: {response.status_code}: {_message(response)}")


def _message(response: requests.Response) -> str:
    return str(_content(response).get("message", response.reason))


def _content(response: requests.Response) -> dict[str, Any]:
    try:
        content = response.json()
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
