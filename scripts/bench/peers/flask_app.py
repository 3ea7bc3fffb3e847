"""Flask, for gunicorn's synchronous workers."""

from typing import Any

from flask import Flask, request

from scripts.bench.peers import model

classify = model.load()
app = Flask(__name__)


@app.post("/predict")  # type: ignore[untyped-decorator]
def predict() -> dict[str, Any]:
    """Answer a form with the file `image`."""
    return classify(request.files["image"].read())
