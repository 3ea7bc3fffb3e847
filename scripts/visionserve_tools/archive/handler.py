"""The handler's own files in an archive, and whether they are today's."""

import shutil
import zipfile
from pathlib import Path, PurePath

from visionserve.config import Engine
from visionserve_tools import paths

LEFT_OUT = ("*.egg-info", "__pycache__", "README.md")
STAND_IN = "torch.py"
ENTRY = "visionserve_handler.py"
OWN = {ENTRY, "visionserve", STAND_IN}


def files(runtime: Engine) -> dict[str, Path]:
    """Return today's files of the handler, by their names in an archive for a runtime."""
    # Installed from a wheel, all else that is installed lies beside them.
    own = [paths.HANDLER / ENTRY, *(paths.HANDLER / "visionserve").rglob("*")]
    found = {str(path.relative_to(paths.HANDLER)): path for path in own}
    kept = {name: path for name, path in sorted(found.items()) if path.is_file() and _goes_in(name)}
    return kept | ({STAND_IN: paths.TORCH_STAND_IN} if runtime == "openvino" else {})


def copy(runtime: Engine, directory: Path) -> None:
    """Copy today's files to where an archive is put together."""
    for name, path in files(runtime).items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, directory / name)


def belongs(name: str) -> bool:
    """Tell whether a file of an archive is the handler's; all others are the model's."""
    return PurePath(name).parts[0] in OWN


def differing(archive: Path) -> list[str]:
    """Return the names of the handler's files that an archive and today's handler do not share.

    Raises:
        OSError, zipfile.BadZipFile: the file is no archive.
    """
    with zipfile.ZipFile(archive) as packed:
        there = {name for name in packed.namelist() if belongs(name)}
        today = files("openvino" if STAND_IN in there else "pytorch")
        same = {
            name for name in there & today.keys() if packed.read(name) == today[name].read_bytes()
        }
    return sorted((there | today.keys()) - same)


def _goes_in(name: str) -> bool:
    parts = PurePath(name).parts
    return not any(PurePath(part).match(pattern) for part in parts for pattern in LEFT_OUT)
