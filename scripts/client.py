"""TorchServe's REST APIs, as this project uses them."""

import json
from pathlib import Path
from typing import Any

import requests

TIMEOUT = 60


class Client:
    """The inference and management APIs of one server.

    Args:
        inference: address of the inference API, such as ``http://127.0.0.1:8080``.
        management: address of the management API.
        key_file: TorchServe's `key_file.json`; None where token authorization is off.

    Every method raises `requests.RequestException` where the server cannot be reached, and
    `requests.HTTPError` where it refuses, except `predict`.
    """

    def __init__(self, inference: str, management: str, key_file: Path | None = None) -> None:
        self.inference = inference
        self.management = management
        self._key_file = key_file
        self._session = requests.Session()

    def token(self, kind: str) -> dict[str, str]:
        """Return the header that authorizes a kind of call, `inference` or `management`."""
        if self._key_file is None:
            return {}
        keys = json.loads(self._key_file.read_text(encoding="utf-8"))
        return {"Authorization": f"Bearer {keys[kind]['key']}"}

    def healthy(self) -> bool:
        """Tell whether every model has the workers it wants."""
        try:
            response = self._session.get(
                f"{self.inference}/ping", headers=self.token("inference"), timeout=TIMEOUT
            )
        except (OSError, KeyError, json.JSONDecodeError):
            return False
        return bool(response.ok and response.json()["status"] == "Healthy")

    def predict(
        self, model: str, data: bytes, version: str | None = None, **options: Any
    ) -> requests.Response:
        """Send one encoded image, options as headers; the response may be an error."""
        headers = {f"X-Classify-{name}": str(value) for name, value in options.items()}
        path = f"{model}/{version}" if version else model
        return self._session.post(
            f"{self.inference}/predictions/{path}",
            data=data,
            headers={"Content-Type": "application/octet-stream"}
            | headers
            | self.token("inference"),
            timeout=TIMEOUT,
        )

    def models(self) -> list[str]:
        """Name the registered models."""
        return [entry["modelName"] for entry in self._manage("GET", "/models")["models"]]

    def describe(self, model: str) -> list[dict[str, Any]]:
        """Describe every version of a model."""
        described: list[dict[str, Any]] = self._manage("GET", f"/models/{model}/all")
        return described

    def scale(self, model: str, workers: int, version: str | None = None) -> None:
        """Set a model's minimum and maximum number of workers, and wait for them."""
        path = f"/models/{model}/{version}" if version else f"/models/{model}"
        self._manage(
            "PUT", path, min_worker=workers, max_worker=workers, synchronous="true", timeout=TIMEOUT
        )

    def register(self, archive: str, workers: int = 1) -> None:
        """Register an archive of the model store by its file name, and wait for its workers."""
        self._manage("POST", "/models", url=archive, initial_workers=workers, synchronous="true")

    def set_default(self, model: str, version: str) -> None:
        """Make a version answer the requests that name none."""
        self._manage("PUT", f"/models/{model}/{version}/set-default")

    def unregister(self, model: str, version: str | None = None) -> None:
        """Remove a version of a model; without one, the default version."""
        self._manage("DELETE", f"/models/{model}/{version}" if version else f"/models/{model}")

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
