"""Paths of the project's files, and of what the commands keep.

In a checkout, all of them lie there. Installed from a wheel, the handler and the configuration lie
with the package, and what the commands keep lies in the folder where they run. `VISIONSERVE_HOME`,
which `visionserve --home` sets, names another folder for what they keep. A profile in its `config`
is taken in place of the project's, or beside them.
"""

import os
from pathlib import Path

from visionserve_tools import HOME

TOOLS = Path(__file__).resolve().parent
_CHECKOUT = TOOLS.parent.parent
IN_CHECKOUT = (_CHECKOUT / "pyproject.toml").is_file()

ROOT = Path(os.environ.get(HOME) or (_CHECKOUT if IN_CHECKOUT else Path.cwd())).resolve()
SOURCES = _CHECKOUT if IN_CHECKOUT else TOOLS.parent
HANDLER = SOURCES / "handler" if IN_CHECKOUT else SOURCES
TORCH_STAND_IN = HANDLER / "visionserve" / "workarounds" / "torch_stand_in.py"
CONFIG = SOURCES / "config" if IN_CHECKOUT else TOOLS / "config"
MODEL_CONFIG = "model-config.yaml"
MODEL_STORE = ROOT / "model_store"
STATE = ROOT / ".torchserve"
PHOTOGRAPHS = Path(
    os.environ.get("VISIONSERVE_PHOTOGRAPHS") or ROOT.parent / "shared" / "imagenet-samples"
)


def profile(name: str) -> Path:
    """Return the folder of a profile's files."""
    own = ROOT / "config" / name
    return own if ROOT != SOURCES and (own / MODEL_CONFIG).is_file() else CONFIG / name


def profiles() -> list[str]:
    """Return the profiles' names: the folders with a `model-config.yaml`."""
    folders = {CONFIG, ROOT / "config"}
    return sorted({file.parent.name for at in folders for file in at.glob(f"*/{MODEL_CONFIG}")})
