"""Package a model archive (.mar), for a new model and around one that was packaged before."""

import json
import os
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

from visionserve_tools.archive import handler
from visionserve_tools.archive.manifest import MANIFEST

CONFIG = "model-config.yaml"
# Deflate makes weights in FP32 7 % smaller, those in INT8 9 %, and takes a second for each 30 MB: a
# file is stored if that saves less than SAVED of the megabyte in its middle. The others are
# deflated at the fastest level: the usual one takes eight times as long for weights that were FP16,
# to save 6 %.
LEVEL = 1
JUDGED, SAVED = 1_000_000, 0.08


def package(content: Path, target: Path, name: str, version: str) -> None:
    """Package a folder with torch-model-archiver, which leaves a folder to be zipped.

    Args:
        content: holds the handler, the model and `model-config.yaml`.
        target: the archive to write, in a folder of its own.
        name: the model's name in the server.
        version: the model's version.

    Raises:
        subprocess.CalledProcessError: the archiver failed.
    """
    # The archiver takes the configuration by its own option, and `$TMPDIR/NAME` as its scratch.
    config, scratch, exported = (target.parent / one for one in (CONFIG, "tmp", "exported"))
    (content / CONFIG).rename(config)
    scratch.mkdir()
    exported.mkdir()
    command = [
        *(str(Path(sys.executable).with_name("torch-model-archiver")),),
        *("--model-name", name, "--version", version),
        *("--handler", str(content / handler.ENTRY), "--extra-files", str(content)),
        *("--config-file", str(config), "--export-path", str(exported)),
        *("--archive-format", "no-archive"),
    ]
    subprocess.run(command, check=True, env={**os.environ, "TMPDIR": str(scratch)})
    _zip(exported / name, target)


def package_around(earlier: Path, content: Path, target: Path, name: str, version: str) -> None:
    """Package a folder as torch-model-archiver does, which needs not be installed.

    Args:
        earlier: an archive with the same model, whose manifest is taken, with the model's age.
        content: as for `package`.
        target: the archive to write.
        name: as for `package`.
        version: as for `package`.

    Raises:
        OSError: the disk is full, say.
    """
    with zipfile.ZipFile(earlier) as packed:
        manifest = json.loads(packed.read(MANIFEST))
    manifest["model"] |= {"modelName": name, "modelVersion": version, "configFile": CONFIG}
    file = content / MANIFEST
    file.parent.mkdir()
    file.write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    _zip(content, target)


def _zip(folder: Path, target: Path) -> None:
    """Write all files of a folder as a model archive, each stored or deflated."""
    with zipfile.ZipFile(target, "w", compresslevel=LEVEL) as packed:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            packed.write(file, file.relative_to(folder), _method(file))


def _method(file: Path) -> int:
    """Return how to pack a file: deflated where that saves enough."""
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - JUDGED) // 2)
        judged = opened.read(JUDGED)
    saves = len(zlib.compress(judged, LEVEL)) <= (1 - SAVED) * len(judged)
    return zipfile.ZIP_DEFLATED if saves else zipfile.ZIP_STORED
