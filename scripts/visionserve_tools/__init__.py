"""Commands to build, serve, operate, measure and use the archive."""

import sys
from importlib.util import find_spec

HOME = "VISIONSERVE_HOME"

if find_spec("visionserve") is None:
    sys.exit("The environment is missing or was moved: run `make status`, then .venv/bin/python.")
