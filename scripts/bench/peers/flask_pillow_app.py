"""The Flask application, with Pillow's resize in place of the archive's own."""

from scripts.bench.peers import pillow
from scripts.bench.peers.flask_app import app
from visionserve import preprocessing

__all__ = ["app"]

preprocessing.resize_fast = pillow.resize_fast
