"""A BentoML service, with one process for each worker."""

import os
from pathlib import Path
from typing import Any

import bentoml

from tests.bench.peers import model


@bentoml.service(workers=int(os.environ["BENCH_WORKERS"]))
class Service:
    """Classifies the file `image` of a form."""

    def __init__(self) -> None:
        self.classify = model.load()

    @bentoml.api  # type: ignore[untyped-decorator]
    def predict(self, image: Path) -> dict[str, Any]:
        """Classify one image."""
        return self.classify(image.read_bytes())
