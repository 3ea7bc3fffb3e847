"""Valid requests that ask for much, and a model that fails, at one real server."""

import io
import json
import re
import time
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import requests
import torch

from tests.corpus import chunk, png, scans
from tests.end_to_end.test_hostile import workers
from tests.helpers import RANDOM, REAL
from tests.stress.clients import REFUSED_FORMATS, refused
from visionserve.config import HandlerConfig
from visionserve_tools import photos
from visionserve_tools.server.client import Client
from visionserve_tools.server.properties import read_properties
from visionserve_tools.server.torchserve import TorchServe

CAT = photos.greeting().read_bytes()
COUNT = HandlerConfig().max_images


@pytest.fixture(scope="module", autouse=True)
def two(client: Client) -> None:
    """Two workers, as in the server profile."""
    client.scale(REAL, 2)


def post(
    client: Client, images: list[bytes], path: str = f"predictions/{REAL}", **options: object
) -> requests.Response:
    return requests.post(
        f"{client.inference}/{path}",
        options,
        files=[("data", (str(index), data)) for index, data in enumerate(images)],
        headers=client.token("inference"),
        timeout=60,
    )


@cache
def large_pngs() -> list[bytes]:
    """Distinct images of 6000x4000 RGBA pixels in few bytes, as many as a request may hold."""
    pixels = zlib.compress(b"\0" * (4 * 6000 + 1) * 4000, 9)
    return [
        png((6000, 4000), pixels, chunk(b"teSt", bytes([index])), kind=b"\x08\x06")
        for index in range(COUNT)
    ]


def test_slow_requests_end_in_time_and_hold_up_nobody(client: Client) -> None:
    before = workers(client)
    with ThreadPoolExecutor(3) as pool:
        decoded = pool.submit(post, client, large_pngs())
        scanned = pool.submit(post, client, [scans(10, arithmetic=True)] * COUNT)
        time.sleep(1)
        bystander = pool.submit(client.predict, REAL, CAT)
        assert bystander.result().status_code == 200
    for response, codes in (
        (decoded.result(), {"", "request_too_slow"}),
        (scanned.result(), {"", "request_too_slow", "too_much_work"}),
    ):
        answers = response.json()
        assert response.status_code in (200, 207) and len(answers) == COUNT
        assert {answer.get("error", {}).get("code", "") for answer in answers} <= codes
        assert "predictions" in answers[0]
    assert answers[-1]["error"]["code"] == "too_much_work"
    assert workers(client) == before


def peak(pid: int) -> int:
    """The most memory that a process had since this was asked for last, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    assert found
    return int(found[1]) * 1024


def test_refused_images_cost_what_one_costs(client: Client) -> None:
    """Images of 24 MP that are refused once decoded, and sound ones, in lists for both workers.

    All of a list would take more than the bound if they were kept until its end.
    """
    before = workers(client)
    for pid in before:
        peak(pid)
    at_rest = {pid: peak(pid) for pid in before}
    images = [refused(format) for format in REFUSED_FORMATS] + [CAT, large_pngs()[0]]
    with ThreadPoolExecutor(2) as pool:
        for response in pool.map(lambda _: post(client, images), range(2)):
            answers = response.json()
            assert response.status_code == 207 and len(answers) == len(images)
            codes = {answer.get("error", {}).get("code", "ok") for answer in answers}
            assert codes - {"request_too_slow"} == {"ok", "truncated_image", "unsupported_pixels"}
    assert workers(client) == before
    assert all(peak(pid) - rest < 300_000_000 for pid, rest in at_rest.items())


def test_an_answer_over_the_servers_bound_is_a_413(client: Client, server: TorchServe) -> None:
    before = workers(client)
    bound = read_properties(server.state / "config.properties")["max_response_size"]
    response = post(client, [CAT] * 16, f"explanations/{REAL}", top_k=1000)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "answer_too_large")
    assert f"at most {bound} are allowed" in response.json()["error"]["message"]
    assert post(client, [CAT] * 16, top_k=1000).status_code == 200
    assert workers(client) == before


def spoiled(archive: Path, target: Path) -> None:
    """Copy an archive, its weights no numbers, as an earlier builder might have: unchecked."""
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(target, "w") as copy:
        for name in source.namelist():
            data = source.read(name)
            if name == "model.pt":
                state = torch.load(io.BytesIO(data), weights_only=True)
                state["conv1.weight"].fill_(np.nan)
                buffer = io.BytesIO()
                torch.save(state, buffer)
                data = buffer.getvalue()
            elif name == "metadata.json":
                data = json.dumps(json.loads(data) | {"self_check": None}).encode()
            copy.writestr(name, data)


def test_a_model_that_always_fails_ends_its_worker(client: Client, server: TorchServe) -> None:
    spoiled(server.store / f"{RANDOM}.mar", server.admitted / "spoiled.mar")
    client.register("spoiled.mar", model_name="spoiled")
    before = workers(client, "spoiled").keys()
    for _ in range(10 * len(before)):
        response = client.predict("spoiled", CAT)
        assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
    deadline = time.monotonic() + 60
    while workers(client, "spoiled").keys() == before:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert client.predict(REAL, CAT).status_code == 200
    client.unregister("spoiled")
