"""A client for the parts of TorchServe's REST APIs that this project uses."""

import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from visionserve_tools.kept import read_file, read_json

TIMEOUT = 60
KEY_TRIES = 20
KEY_PAUSE = 0.05
READY_TIMEOUT = 10
READY = {"X-Visionserve-Describe": "ready"}


# TorchServe 0.12.0 ends a worker while it asks for its next job, and may answer so; it has scaled.
NO_JOB = '"job\\" is null'


class KeyFileError(ValueError):
    """A key file is not one of TorchServe's, or was cut off."""


class Client:
    """A client for the inference and management APIs of one server.

    With a token, a server's key file comes third::

        >>> key_file = Path(".torchserve/server/key_file.json")
        >>> client = Client("http://127.0.0.1:8080", "http://127.0.0.1:8081", key_file, retries=3)
        >>> client.ready()
        True
        >>> client.default_version("efficientnet_lite0")
        '1.0'
        >>> response = client.predict("efficientnet_lite0", Path("cat.jpg").read_bytes(), top_k=1)
        >>> [prediction["label"] for prediction in response.json()["predictions"]]
        ['Egyptian cat']

    Args:
        inference: address of the inference API, such as ``http://127.0.0.1:8080``.
        management: address of the management API, such as ``http://127.0.0.1:8081``, or
            ``http+unix://%2Fa%2Fsocket`` for a Unix socket.
        key_file: TorchServe's `key_file.json`; None if token authorization is off.
        retries: how often `predict` tries again if a connection fails, the queue is full (503),
            a worker ends during the request (500, or 507 if it was killed) or nginx finds no
            server (502, 504). It waits with exponential back-off, or as long as the server's
            `Retry-After` says. Each try takes a minute at most.

    Every method raises `requests.RequestException` if the server cannot be reached. Every method
    except `predict` raises `requests.HTTPError` if the server refuses the request.
    """

    def __init__(
        self, inference: str, management: str, key_file: Path | None = None, retries: int = 0
    ) -> None:
        self.inference = inference
        self.management = management
        self._key_file = key_file
        self._session = requests.Session()
        retry = Retry(
            retries,
            read=retries or False,  # With 0, a timeout would look like a broken connection.
            status_forcelist=(500, 502, 503, 504, 507),
            allowed_methods=None,
            backoff_factor=0.1,
            raise_on_status=False,
        )
        self._session.mount(f"{inference}/predictions/", HTTPAdapter(max_retries=retry))
        if management.startswith("http+unix://"):
            from requests_unixsocket.adapters import UnixAdapter

            self._session.mount("http+unix://", UnixAdapter())

    def token(self, kind: str) -> dict[str, str]:
        """Return the header that authorizes calls of a kind: `inference`, `management` or `API`.

        `API` is the kind of the calls that replace tokens. TorchServe 0.12 writes the key file in
        place, so half a file is read again for a second.

        Raises:
            OSError: the key file cannot be read.
            KeyFileError: it holds no such key, also after a second.
        """
        if self._key_file is None:
            return {}
        for left in reversed(range(KEY_TRIES)):
            try:
                key = read_json(self._key_file)[kind]["key"]
                break
            except (ValueError, KeyError, TypeError):
                if not left:
                    raise KeyFileError(
                        f"{self._key_file}: holds no {kind} key of TorchServe; "
                        "starting the server again makes one."
                    ) from None
                time.sleep(KEY_PAUSE)
        return {"Authorization": f"Bearer {key}"}

    def ready(self) -> bool:
        """Tell whether the server is up and every worker of every model has loaded."""
        try:
            versions = [version for model in self.models() for version in self.describe(model)]
        except (OSError, KeyError, ValueError):
            return False
        return bool(versions) and all(
            len(version["workers"]) >= version["minWorkers"]
            and all(worker["status"] == "READY" for worker in version["workers"])
            for version in versions
        )

    def predict(
        self,
        model: str,
        data: bytes,
        version: str | None = None,
        content_type: str = "application/octet-stream",
        **options: Any,
    ) -> requests.Response:
        """Send one encoded image, or another body of the given content type.

        The options are sent as headers. The response may be an error. Its `history` has the
        responses before it, which refused a key that was just being replaced.
        """
        headers = {
            f"X-Classify-{name.replace('_', '-')}": str(value) for name, value in options.items()
        }
        path = f"{model}/{version}" if version else model
        headers["Content-Type"] = content_type
        url = f"{self.inference}/predictions/{path}"
        return self._send("inference", "POST", url, TIMEOUT, headers, data=data)

    def readiness(self, model: str, version: str) -> int:
        """Return the HTTP status of a version: 200 if a worker of it answers, 404 if it has none.

        It takes the inference API alone, so that whoever has no other key can ask.
        """
        url = f"{self.inference}/predictions/{model}/{version}"
        return self._send("inference", "GET", url, READY_TIMEOUT, READY).status_code

    def models(self) -> list[str]:
        """Return the names of the registered models."""
        return [entry["modelName"] for entry in self._manage("GET", "/models")["models"]]

    def describe(self, model: str, version: str = "all") -> list[dict[str, Any]]:
        """Return TorchServe's descriptions of one version of a model, or of every version."""
        described: list[dict[str, Any]] = self._manage("GET", f"/models/{model}/{version}")
        return described

    def card(self, model: str, version: str | None = None) -> dict[str, Any]:
        """Return the model card of a version, by default of the default version."""
        path = f"/models/{model}/{version}" if version else f"/models/{model}"
        (described,) = self._manage("GET", path, customized="true")
        card: dict[str, Any] = described["customizedMetadata"]
        return card

    def default_version(self, model: str) -> str:
        """Return the version that serves the requests that name no version."""
        return str(self._manage("GET", f"/models/{model}")[0]["modelVersion"])

    def scale(
        self, model: str, minimum: int, maximum: int | None = None, version: str | None = None
    ) -> None:
        """Set how many workers a version has at least and at most, and wait until it has them.

        Without a maximum, it equals the minimum. Without a version, the default one is scaled.
        """
        path = f"/models/{model}/{version}" if version else f"/models/{model}"
        most = minimum if maximum is None else maximum
        wanted = {"min_worker": minimum, "max_worker": most}
        try:
            self._manage("PUT", path, synchronous="true", timeout=TIMEOUT, **wanted)
        except requests.HTTPError as error:
            if NO_JOB not in str(error):
                raise
            self._manage("PUT", path, synchronous="true", timeout=TIMEOUT, **wanted)

    def register(self, archive: str, workers: int = 1, **parameters: Any) -> None:
        """Register an archive of the model store by its file name, and wait for its workers.

        All other parameters are passed to TorchServe, such as `model_name` or `batch_size`.
        """
        wanted = {"url": archive, "initial_workers": workers, "synchronous": "true"}
        self._manage("POST", "/models", **wanted, **parameters)

    def set_default(self, model: str, version: str) -> None:
        """Make a version serve the requests that name no version."""
        self._manage("PUT", f"/models/{model}/{version}/set-default")

    def unregister(self, model: str, version: str | None = None) -> None:
        """Remove a version of a model at once, by default the default version.

        The requests that it has not finished get no answer. `server.retire` waits for them
        before it calls this.
        """
        self._manage("DELETE", f"/models/{model}/{version}" if version else f"/models/{model}")

    def rotate(self) -> None:
        """Have the server make new inference and management keys, which replace the earlier ones.

        TorchServe 0.12 replaces a key even if it then cannot write it to the file, so that nobody
        knows it. The file is therefore tried before, and what it held is put back if TorchServe
        cut it off, because its `API` key still replaces the others later.

        Raises:
            FileNotFoundError: the server has no keys, because it asks for no token.
            OSError: the key file cannot be written; no key was replaced.
            requests.HTTPError: the server refuses to, or could not write the file after all.
        """
        if self._key_file is None:
            raise FileNotFoundError("This server asks for no token: there is no key to replace.")
        try:
            headers = self.token("API")
            before = read_file(self._key_file)
        except OSError as error:
            raise OSError(
                f"{self._key_file} cannot be read ({error.strerror}): no key was "
                "replaced; starting the server again makes new ones."
            ) from None
        _try_to_write(self._key_file, len(before))
        for kind in ("inference", "management"):
            response = self._session.get(
                f"{self.management}/token", params={"type": kind}, headers=headers, timeout=TIMEOUT
            )
            if not response.ok:
                if not self._key_file.read_bytes():
                    self._key_file.write_bytes(before)
                raise requests.HTTPError(
                    f"{response.status_code}: {response.text}", response=response
                )

    def _manage(self, method: str, path: str, **parameters: Any) -> Any:
        url = f"{self.management}{path}"
        response = self._send("management", method, url, 2 * TIMEOUT, params=parameters)
        if not response.ok:
            raise requests.HTTPError(f"{response.status_code}: {response.text}", response=response)
        return response.json()

    def _send(
        self,
        kind: str,
        method: str,
        url: str,
        timeout: float,
        headers: Mapping[str, str] | None = None,
        **request: Any,
    ) -> requests.Response:
        """Send a request with the token of a kind.

        TorchServe 0.12 uses a new key before it writes it to the file, so a request whose key is
        refused is sent again for a second, with the file's key of that moment. The responses that
        refused one are the `history` of the last one.
        """
        history: list[requests.Response] = []
        while True:
            response = self._session.request(
                method,
                url,
                headers={**(headers or {}), **self.token(kind)},
                timeout=timeout,
                **request,
            )
            refused = response.status_code == 400 and "InvalidKeyException" in response.text
            if not refused or len(history) + 1 == KEY_TRIES:
                response.history = history
                return response
            history.append(response)
            time.sleep(KEY_PAUSE)


def _try_to_write(file: Path, size: int) -> None:
    """Check that this user may write a file in place, and that its folder has room for as much.

    Raises:
        OSError: one of them does not hold; the message is for the user of `rotate`.
    """
    try:
        with file.open("r+b"):
            file.chmod(0o600)  # TorchServe does so, and deletes the file if it may not.
        with tempfile.TemporaryFile(dir=file.parent, buffering=0) as trial:
            trial.write(bytes(size))
            os.fsync(trial.fileno())
    except OSError as error:
        reason = f"{file} cannot be written ({error.strerror}): no key was replaced."
        raise OSError(reason) from None
