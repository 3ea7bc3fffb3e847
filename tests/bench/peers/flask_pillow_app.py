"""The Flask application, with Pillow's resize in place of the archive's own."""

from tests.bench.peers import pillow
from tests.bench.peers.flask_app import app
from visionserve import preprocessing

__all__ = ["app"]

preprocessing.resize_fast = pillow.resize_fast
