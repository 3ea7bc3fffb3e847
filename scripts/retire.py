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

from scripts.client import Client

GRACE = 2.0
PATIENCE = 60.0
PLACEHOLDER = "retired"


def retire(
    client: Client, store: Path, model: str, version: str | None = None, grace: float = GRACE
) -> None:
    """Remove a version after its last answer, for which it waits a minute at most.

    Where it is the only one, a version without workers takes its place until it is gone: a new
    request gets TorchServe's 503, and a 404 from then on. Requests that name the version itself
    have to end before.

    Args:
        client: of the server.
        store: its model store.
        model: the model's name.
        version: None stands for the default version.
        grace: seconds for the requests in the hands of workers, once the queue is empty.

    Raises:
        requests.HTTPError: there is no such version, or it is the default one of several.
    """
    version = version or client.default_version(model)
    others = {entry["modelVersion"] for entry in client.describe(model)} - {version}
    with nullcontext() if others else _placeholder(client, store, model, version):
        if version != client.default_version(model):
            _drain(client, model, version, grace)
        client.unregister(model, version)


@contextmanager
def _placeholder(client: Client, store: Path, model: str, version: str) -> Iterator[None]:
    """Have a version without workers in place of the default one, which is back on a failure."""
    archive = store / f"{model}-{PLACEHOLDER}.mar"
    entry = {"modelName": model, "modelVersion": PLACEHOLDER, "handler": PLACEHOLDER}
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("MAR-INF/MANIFEST.json", json.dumps({"runtime": "python", "model": entry}))
    try:
        client.register(archive.name, workers=0)
        try:
            client.set_default(model, PLACEHOLDER)
            yield
        except BaseException:
            client.set_default(model, version)
            raise
        finally:
            client.unregister(model, PLACEHOLDER)
    finally:
        archive.unlink()


def _drain(client: Client, model: str, version: str, grace: float) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        (entry,) = client.describe(model, version)
        if entry["jobQueueStatus"]["pendingRequests"] == 0:
            break
        time.sleep(0.1)
    time.sleep(grace)
