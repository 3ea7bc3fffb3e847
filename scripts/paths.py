"""Paths of the repository's files and folders."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HANDLER = ROOT / "handler"
TORCH_STAND_IN = HANDLER / "visionserve" / "workarounds" / "torch_stand_in.py"
SCRIPTS = ROOT / "scripts"
CONFIG = ROOT / "config"
MODEL_STORE = ROOT / "model_store"
STATE = ROOT / ".torchserve"
SAMPLES = Path(os.environ.get("IMAGES") or ROOT.parent / "shared" / "imagenet-samples")


def profiles() -> list[str]:
    """Return the profiles' names: the folders of `config/` with a `model-config.yaml`."""
    return sorted(path.parent.name for path in CONFIG.glob("*/model-config.yaml"))
