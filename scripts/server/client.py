"""TorchServe's REST APIs, as this project uses them."""

import json
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

TIMEOUT = 60


class Client:
    """The inference and management APIs of one server.

    Args:
        inference: address of the inference API, such as ``http://127.0.0.1:8080``.
        management: address of the management API, such as ``http://127.0.0.1:8081``, or
            ``http+unix://%2Fa%2Fsocket`` for a Unix socket.
        key_file: TorchServe's `key_file.json`; None where token authorization is off.
        retries: how often `predict` tries again, with exponential back-off or after the
            server's `Retry-After`, where a connection fails, the queue is full (503), a
            worker ends amid the request (500, or 507 where it was killed) or nginx finds no
            server (502, 504). Each try takes a minute at most.

    Every method raises `requests.RequestException` where the server cannot be reached, and
    `requests.HTTPError` where it refuses, except `predict`.
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
            read=retries or False,  # Not 0, which makes a timeout look like a broken connection.
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
        """Return the header that authorizes `inference`, `management` or `API` (token) calls."""
        if self._key_file is None:
            return {}
        keys = json.loads(self._key_file.read_text(encoding="utf-8"))
        return {"Authorization": f"Bearer {keys[kind]['key']}"}

    def ready(self) -> bool:
        """Tell whether the server is up and every worker of every model has loaded."""
        try:
            versions = [version for model in self.models() for version in self.describe(model)]
        except (OSError, KeyError, json.JSONDecodeError):
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
        """Send one encoded image, or another body that its type tells, options as headers.

        The response may be an error.
        """
        headers = {
            f"X-Classify-{name.replace('_', '-')}": str(value) for name, value in options.items()
        }
        path = f"{model}/{version}" if version else model
        return self._session.post(
            f"{self.inference}/predictions/{path}",
            data=data,
            headers={"Content-Type": content_type} | headers | self.token("inference"),
            timeout=TIMEOUT,
        )

    def models(self) -> list[str]:
        """Name the registered models."""
        return [entry["modelName"] for entry in self._manage("GET", "/models")["models"]]

    def describe(self, model: str, version: str = "all") -> list[dict[str, Any]]:
        """Describe a version of a model; without one, every version."""
        described: list[dict[str, Any]] = self._manage("GET", f"/models/{model}/{version}")
        return described

    def card(self, model: str, version: str | None = None) -> dict[str, Any]:
        """Return the model card of a version; without one, of the default version."""
        path = f"/models/{model}/{version}" if version else f"/models/{model}"
        (described,) = self._manage("GET", path, customized="true")
        card: dict[str, Any] = described["customizedMetadata"]
        return card

    def default_version(self, model: str) -> str:
        """Return the version that answers the requests that name none."""
        return str(self._manage("GET", f"/models/{model}")[0]["modelVersion"])

    def scale(
        self, model: str, minimum: int, maximum: int | None = None, version: str | None = None
    ) -> None:
        """Set a model's numbers of workers, the maximum no less than the minimum, and wait."""
        path = f"/models/{model}/{version}" if version else f"/models/{model}"
        most = minimum if maximum is None else maximum
        wanted = {"min_worker": minimum, "max_worker": most}
        self._manage("PUT", path, synchronous="true", timeout=TIMEOUT, **wanted)

    def register(self, archive: str, workers: int = 1, **parameters: Any) -> None:
        """Register an archive of the model store by its file name, and wait for its workers.

        Further parameters are TorchServe's, such as `model_name` or `batch_size`.
        """
        wanted = {"url": archive, "initial_workers": workers, "synchronous": "true"}
        self._manage("POST", "/models", **wanted, **parameters)

    def set_default(self, model: str, version: str) -> None:
        """Make a version answer the requests that name none."""
        self._manage("PUT", f"/models/{model}/{version}/set-default")

    def unregister(self, model: str, version: str | None = None) -> None:
        """Remove a version of a model at once; without one, the default version.

        Requests under way are never answered: `scripts.server.retire` waits for them.
        """
        self._manage("DELETE", f"/models/{model}/{version}" if version else f"/models/{model}")

    def rotate(self) -> None:
        """Have the server make new inference and management keys, and end the earlier ones.

        Raises:
            FileNotFoundError: it has none, as it asks for no token.
        """
        if self._key_file is None:
            raise FileNotFoundError("This server asks for no token: there is no key to replace.")
        for kind in ("inference", "management"):
            response = self._session.get(
                f"{self.management}/token",
                params={"type": kind},
                headers=self.token("API"),
                timeout=TIMEOUT,
            )
            if not response.ok:
                raise requests.HTTPError(f"{response.status_code}: {response.text}")

    def _manage(self, method: str, path: str, **parameters: Any) -> Any:
        response = self._session.request(
            method,
            f"{self.management}{path}",
            params=parameters,
            headers=self.token("management"),
            timeout=2 * TIMEOUT,
        )
        if not response.ok:
            raise requests.HTTPError(f"{response.status_code}: {response.text}", response=response)
        return response.json()
