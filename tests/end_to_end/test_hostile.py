"""Hostile requests among good ones, at one real server."""

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, cycle

import requests
from PIL import Image

from tests.corpus import CASES, Case
from tests.helpers import REAL, encode
from visionserve_tools import photos
from visionserve_tools.server.client import Client

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


def send(client: Client, data: bytes, headers: Mapping[str, str]) -> requests.Response:
    url = f"{client.inference}/predictions/{REAL}"
    return requests.post(url, data, headers={**headers, **client.token("inference")}, timeout=60)


def outcome(response: requests.Response, frontend: bool) -> tuple[int, str]:
    """The status, and the code of the error if it is one."""
    body = response.json()
    assert "Traceback" not in response.text and len(response.text) < 10_000
    if frontend:
        return response.status_code, body["type"]
    assert response.headers["content-type"] == "application/json"
    error = body.get("error", {}) if isinstance(body, dict) else {}
    return response.status_code, error.get("code", "")


def workers(client: Client, model: str = REAL) -> dict[int, str]:
    """Each worker's process id and state."""
    (version,) = client.describe(model)
    return {worker["pid"]: worker["status"] for worker in version["workers"]}


def test_the_corpus_is_large_and_its_names_differ() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 60


def test_bad_requests_have_their_status_and_good_ones_their_answer(client: Client) -> None:
    cat = Image.open(photos.greeting()).convert("RGB").resize((320, 320))
    good = {format: encode(cat, format) for format in FORMATS}
    reference = {format: client.predict(REAL, data).json() for format, data in good.items()}
    before = workers(client)
    stop = threading.Event()

    def keep_asking(formats: Sequence[str]) -> list[tuple[str, int, object]]:
        answers: list[tuple[str, int, object]] = []
        for format in cycle(formats):
            response = client.predict(REAL, good[format])
            answers.append((format, response.status_code, response.json()))
            if stop.is_set() and len(answers) >= len(formats):
                break
        return answers

    def misfit(case: Case) -> tuple[str, tuple[int, str]] | None:
        found = outcome(send(client, case.data, case.headers), case.frontend)
        return None if found == case.expected else (case.name, found)

    with ThreadPoolExecutor(2) as well_meaning, ThreadPoolExecutor(4) as hostile:
        asking = [well_meaning.submit(keep_asking, FORMATS[half::2]) for half in range(2)]
        try:
            misfits = [found for found in hostile.map(misfit, CASES) if found]
        finally:
            stop.set()
    assert misfits == []
    for format, status, answer in chain(*(answers.result() for answers in asking)):
        assert (status, answer) == (200, reference[format])
    assert workers(client) == before
    assert client.predict(REAL, good["PNG"]).json() == reference["PNG"]
