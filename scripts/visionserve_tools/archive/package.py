"""Package a model archive (.mar), for a new model and around one that was packaged before."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from visionserve_tools.archive import handler
from visionserve_tools.archive.manifest import MANIFEST

CONFIG = "model-config.yaml"


def package(content: Path, target: Path, name: str, version: str) -> None:
    """Package a folder with torch-model-archiver.

    Args:
        content: holds the handler, the model and `model-config.yaml`.
        target: the archive to write, in a folder of its own.
        name: the model's name in the server.
        version: the model's version.

    Raises:
        subprocess.CalledProcessError: the archiver failed.
    """
    # The archiver takes the configuration by its own option, and `$TMPDIR/NAME` as its scratch.
    config, scratch = target.parent / CONFIG, target.parent / "tmp"
    (content / CONFIG).rename(config)
    scratch.mkdir()
    command = [
        *(str(Path(sys.executable).with_name("torch-model-archiver")),),
        *("--model-name", name, "--version", version),
        *("--handler", str(content / handler.ENTRY), "--extra-files", str(content)),
        *("--config-file", str(config), "--export-path", str(target.parent)),
    ]
    subprocess.run(command, check=True, env={**os.environ, "TMPDIR": str(scratch)})
    (target.parent / f"{name}.mar").rename(target)


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
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as packed:
        for file in sorted(path for path in content.rglob("*") if path.is_file()):
            packed.write(file, file.relative_to(content))
        packed.writestr(MANIFEST, json.dumps(manifest, indent=2))
