"""A LitServe server: one HTTP server, and worker processes behind a queue."""

import sys
from typing import Any

import litserve
from fastapi import Request

from tests.bench.peers import model


class API(litserve.LitAPI):  # type: ignore[misc]
    """Classifies the file `image` of a form."""

    def setup(self, device: str) -> None:
        """Load the model, in each worker."""
        self.classify = model.load()

    def decode_request(self, request: Request) -> bytes:
        """Read the file of LitServe's form."""
        data: bytes = request["image"].file.read()
        return data

    def predict(self, data: bytes) -> dict[str, Any]:
        """Classify one image."""
        return self.classify(data)

    def encode_response(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Leave the answer as it is."""
        return answer


if __name__ == "__main__":
    port, workers = map(int, sys.argv[1:])
    server = litserve.LitServer(API(), accelerator="cpu", workers_per_device=workers)
    server.run(host="127.0.0.1", port=port, generate_client_file=False)
