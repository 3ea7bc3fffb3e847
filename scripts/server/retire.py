"""Take a version of a model out of service once its requests have their answers.

TorchServe 0.12 puts the requests in the hands of a worker that it removes back into the version's
queue, and never answers the queue of a version that is gone.
"""

import json
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from scripts.server.client import TIMEOUT, Client

GRACE = 2.0
PLACEHOLDER = "retired"


def retire(client: Client, store: Path, model: str, version: str | None = None) -> None:
    """Remove a version after its last answer.

    Where it is the only one, a version without workers takes its place until it is gone: a new
    request gets TorchServe's 503, and a 404 from then on. After an interruption, the same call
    goes on. Requests that name the version itself have to end before; one that takes longer than
    two seconds may end with a 500, where the version has several workers.

    Args:
        client: of the server.
        store: the folder that it loads archives from.
        model: the model's name.
        version: None stands for the default version.

    Raises:
        requests.HTTPError: there is no such version, or it is the default one of several.
        TimeoutError: requests to it still wait after a minute.
        requests.Timeout: its worker does not answer in a minute.
    """
    versions = _versions(client, model) - {PLACEHOLDER}
    version = version or (versions.pop() if len(versions) == 1 else client.default_version(model))
    with nullcontext() if versions - {version} else _placeholder(client, store, model, version):
        if version != client.default_version(model):
            _drain(client, model, version)
        client.unregister(model, version)


@contextmanager
def _placeholder(client: Client, store: Path, model: str, version: str) -> Iterator[None]:
    """Have a version without workers in place of the default one, which is back on a failure.

    Its archive stays in the store, as TorchServe's snapshots of this time name it.
    """
    archive = store / f"{model}-{PLACEHOLDER}.mar"
    entry = {"modelName": model, "modelVersion": PLACEHOLDER, "handler": PLACEHOLDER}
    if not archive.exists():
        with zipfile.ZipFile(archive, "w") as file:
            manifest = json.dumps({"runtime": "python", "model": entry})
            file.writestr("MAR-INF/MANIFEST.json", manifest)
    if PLACEHOLDER not in _versions(client, model):
        try:
            client.register(archive.name, workers=0)
        except BaseException:
            archive.unlink()
            raise
    try:
        client.set_default(model, PLACEHOLDER)
        yield
    except BaseException:
        client.set_default(model, version)
        raise
    finally:
        client.unregister(model, PLACEHOLDER)


def _versions(client: Client, model: str) -> set[str]:
    return {version["modelVersion"] for version in client.describe(model)}


def _drain(client: Client, model: str, version: str) -> None:
    """Wait until a version, which nobody asks any more, has answered what it was asked.

    TorchServe tells how many requests are in the queue, not how many are in the workers' hands.
    Those have a moment to end; then a single worker is left, which answers one request after the
    other, and an empty request is its last.
    """
    deadline = time.monotonic() + TIMEOUT
    while (entry := client.describe(model, version)[0])["jobQueueStatus"]["pendingRequests"]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{model} {version} has requests waiting after {TIMEOUT} s.")
        time.sleep(0.1)
    time.sleep(GRACE)
    ready = sum(worker["status"] == "READY" for worker in entry["workers"])
    if ready > 1:
        client.scale(model, 1, version=version)
    if ready:
        client.predict(model, b"", version)
