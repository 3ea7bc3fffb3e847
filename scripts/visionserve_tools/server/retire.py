"""Take a version of a model out of service after its last request is answered.

This is needed because TorchServe 0.12 loses requests when it removes a version: it puts the
requests of the removed workers back into the version's queue, and drops that queue unanswered.
"""

import json
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from visionserve_tools.server.client import TIMEOUT, Client

GRACE = 2.0
PLACEHOLDER = "retired"


def retire(client: Client, store: Path, model: str, version: str | None = None) -> None:
    """Remove a version after its last request is answered.

    If it is the model's only version, a version without workers takes its place until it is
    removed. During that time a new request gets TorchServe's 503, and afterwards a 404. If the
    call is interrupted, repeating it finishes the work.

    Clients must stop sending requests that name the version before this is called. If the version
    has several workers, a request that takes longer than two seconds may end with a 500.

    Args:
        client: a client of the server.
        store: the folder that the server loads archives from.
        model: the model's name.
        version: the version; None means the default version.

    Raises:
        requests.HTTPError: there is no such version, or it is the default one of several.
        TimeoutError: requests still wait in the version's queue after a minute.
        requests.Timeout: the version's worker does not respond within a minute.
    """
    versions = _versions(client, model) - {PLACEHOLDER}
    version = version or (versions.pop() if len(versions) == 1 else client.default_version(model))
    with nullcontext() if versions - {version} else _placeholder(client, store, model, version):
        if version != client.default_version(model):
            _drain(client, model, version)
        client.unregister(model, version)


@contextmanager
def _placeholder(client: Client, store: Path, model: str, version: str) -> Iterator[None]:
    """Make a version without workers the default one for the block, and then remove it.

    If the block fails, the earlier version is the default again.
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
    """Wait until a version that gets no new requests has completed its earlier ones.

    TorchServe tells how many requests wait in the queue, but not how many the workers have. After
    the queue is empty, the workers therefore get two seconds to finish. Then all workers but one
    are removed, and an empty request is sent. The remaining worker takes requests one after
    another, so its response to the empty request shows that it has completed all the others.
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
