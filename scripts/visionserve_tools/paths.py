"""Paths of the project's files, and of what the commands keep.

In a checkout, all of them lie there. Installed from a wheel, the handler and the configuration lie
with the package, and what the commands keep lies in the folder where they run, or in the one that
`VISIONSERVE_HOME` names.
"""

import os
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
_CHECKOUT = TOOLS.parent.parent
IN_CHECKOUT = (_CHECKOUT / "pyproject.toml").is_file()
HOME = "VISIONSERVE_HOME"

ROOT = _CHECKOUT if IN_CHECKOUT else Path(os.environ.get(HOME) or Path.cwd()).resolve()
HANDLER = ROOT / "handler" if IN_CHECKOUT else TOOLS.parent
TORCH_STAND_IN = HANDLER / "visionserve" / "workarounds" / "torch_stand_in.py"
CONFIG = ROOT / "config" if IN_CHECKOUT else TOOLS / "config"
MODEL_STORE = ROOT / "model_store"
STATE = ROOT / ".torchserve"
SAMPLES = Path(os.environ.get("IMAGES") or ROOT.parent / "shared" / "imagenet-samples")


def profiles() -> list[str]:
    """Return the profiles' names: the folders of `config/` with a `model-config.yaml`."""
    return sorted(path.parent.name for path in CONFIG.glob("*/model-config.yaml"))
