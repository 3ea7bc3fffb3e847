"""A Flask application, for gunicorn's synchronous workers."""

from typing import Any

from flask import Flask, request

from tests.bench.peers import model

classify = model.load()
app = Flask(__name__)


@app.post("/predict")  # type: ignore[untyped-decorator]
def predict() -> dict[str, Any]:
    """Classify the file `image` of a form."""
    return classify(request.files["image"].read())
