"""Clients that keep asking a model what they know the answer to, and account for each request."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import requests
import yaml

from scripts import paths, photos
from scripts.archives import FALLBACK
from scripts.build import Recipe, build
from scripts.client import Client
from scripts.torchserve import TorchServe, client_of

MODEL = FALLBACK
LARGE = 300_000

Outcome = Literal["right", "wrong", "refused", "lost"]


@dataclass(frozen=True)
class Sent:
    """One request, with its repetitions.

    Attributes:
        began: when it was due, by `time.monotonic`.
        seconds: from then to its end.
        setbacks: what came in place of an answer, in order: a status or an exception's name.
        outcome: a 200 is `right` or `wrong`; without one, the last try was `refused` with
            another status, or `lost` with none.
    """

    began: float
    seconds: float
    setbacks: tuple[str, ...]
    outcome: Outcome

    @property
    def ended(self) -> float:
        """When it ended, by `time.monotonic`."""
        return self.began + self.seconds


class Load:
    """Clients of one model, whose answers at this moment are taken to be right.

    Args:
        state: the state folder of the server.
        model: its model.
        tta: the option of every request.
    """

    def __init__(self, state: Path, model: str = MODEL, tta: str = "none") -> None:
        self._state = state
        self._model = model
        self._tta = tta
        images = [data for path in photos.packaged() if len(data := path.read_bytes()) < LARGE]
        client = client_of(state)
        self._exam = [(image, _predictions(self._send(client, image))) for image in images]

    @contextmanager
    def steady(
        self, clients: int, retries: int = 0, patience: float = 0, pause: float = 0
    ) -> Iterator[list[Sent]]:
        """Keep clients asking, each one request after the other, and list what they sent.

        Args:
            clients: their number.
            retries: those of `Client`.
            patience: seconds for which a request is sent again after all retries failed, or
                after an answer that `Client` does not take for passing, such as a 404.
            pause: of a client, after each request, in seconds.
        """
        stop = threading.Event()
        account: list[Sent] = []

        def keep_asking(number: int) -> None:
            client = client_of(self._state, retries)
            while not stop.is_set():
                account.append(self._ask(client, number, time.monotonic(), patience))
                number += 1
                stop.wait(pause)

        with ThreadPoolExecutor(clients) as pool:
            running = [pool.submit(keep_asking, number) for number in range(clients)]
            try:
                yield account
            finally:
                stop.set()
            for future in running:
                future.result()

    def at_rate(self, rate: float, seconds: float, most: int) -> list[Sent]:
        """Send requests when they are due, whatever became of those before, each of them once.

        Args:
            rate: requests per second.
            seconds: for how long.
            most: requests under way at a time; above the server's queue, so that it never holds
                back a request. A request's time starts when it is due.
        """
        client = client_of(self._state)
        start = time.monotonic()
        with ThreadPoolExecutor(most) as pool:
            running = []
            for number in range(int(rate * seconds)):
                due = start + number / rate
                time.sleep(max(0.0, due - time.monotonic()))
                running.append(pool.submit(self._ask, client, number, due, 0))
        return [future.result() for future in running]

    def _ask(self, client: Client, number: int, began: float, patience: float) -> Sent:
        image, answer = self._exam[number % len(self._exam)]
        setbacks: list[str] = []
        while True:
            try:
                response = self._send(client, image)
            except (OSError, ValueError, KeyError) as error:
                setbacks.append(type(error).__name__)
                outcome: Outcome = "lost"
            else:
                setbacks += _retried(response)
                if response.status_code == 200:
                    outcome = "right" if _predictions(response) == answer else "wrong"
                    break
                setbacks.append(str(response.status_code))
                outcome = "refused"
            if time.monotonic() - began >= patience:
                break
            time.sleep(0.25)
        return Sent(began, time.monotonic() - began, tuple(setbacks), outcome)

    def _send(self, client: Client, image: bytes) -> requests.Response:
        """Send an image with random bytes at its end, so that no cache has its answer."""
        return client.predict(self._model, image + os.urandom(8), tta=self._tta)


def _predictions(response: requests.Response) -> Any:
    """What an answer says, whatever version gave it."""
    return response.json()["predictions"]


def _retried(response: requests.Response) -> list[str]:
    """Name what urllib3 retried."""
    retries = response.raw.retries
    history = retries.history if retries else ()
    return [str(tried.status or type(tried.error).__name__) for tried in history]


@contextmanager
def serving(folder: Path, handler: dict[str, Any], **config: Any) -> Iterator[TorchServe]:
    """Serve the packaged classifier in a folder, on free ports, as the profile `server` does.

    Args:
        folder: gets `store/` and `state/`.
        handler: settings in place of those in `handler` of the profile's `model-config.yaml`.
        config: those in place of the file's others.
    """
    written = yaml.safe_load((paths.CONFIG / "server" / "model-config.yaml").read_text())
    written |= config
    written["handler"] |= handler
    path = folder / "model-config.yaml"
    path.write_text(yaml.safe_dump(written))
    archive = build(Recipe(MODEL, MODEL, "1.0", path), folder / "store")
    server = TorchServe("server", folder / "state", archive.parent, free_ports(), unrecorded=True)
    server.start([f"{MODEL}={archive.name}"])
    try:
        yield server
    finally:
        server.stop()


def free_ports() -> dict[str, str]:
    """Return properties that put every API of a TorchServe on a free port."""
    addresses = {
        f"{api}_address": f"http://127.0.0.1:{free_port()}"
        for api in ("inference", "management", "metrics")
    }
    grpc = {f"grpc_{api}_port": str(free_port()) for api in ("inference", "management")}
    return addresses | grpc


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nothing listens on."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
