"""What an archive says of itself, and how one that was built elsewhere comes into the store."""

import json
import shutil
import zipfile
from pathlib import Path

import yaml

from scripts.hashes import HashError, verify
from visionserve.config import ModelConfig

MANIFEST = "MAR-INF/MANIFEST.json"


def name(archive: Path) -> str:
    """Return the name of an archive's model in the server."""
    with zipfile.ZipFile(archive) as content:
        return str(json.loads(content.read(MANIFEST))["model"]["modelName"])


def runtime(archive: Path) -> str:
    """Return the runtime of an archive: ``openvino`` or ``pytorch``."""
    with zipfile.ZipFile(archive) as content:
        file = json.loads(content.read(MANIFEST))["model"]["configFile"]
        return ModelConfig.model_validate(yaml.safe_load(content.read(file))).handler.runtime


def adopt(archive: Path, store: Path) -> tuple[str, Path]:
    """Copy an archive and its record into the store, where they are not there already.

    Returns:
        Its model's name in the server, and its path in the store.

    Raises:
        HashError: it has no record, or is not the one that was recorded.
        OSError: it cannot be read.
    """
    record = archive.with_suffix(".json")
    if archive.exists() and not record.exists():
        raise HashError(f"{record} is missing: copy it from where {archive.name} was built.")
    verify(archive)
    kept = store / archive.name
    if archive.resolve() != kept.resolve():
        store.mkdir(parents=True, exist_ok=True)
        for file in (archive, record):
            shutil.copy2(file, store)
    return name(kept), kept
