"""`edge` in a Debian of ARM64, whose programs qemu runs on this machine, by `make test-arm`.

The archive is built here, and everything else happens there: the installation, the server and its
end. Times there say nothing of a real processor.
"""

import io
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
import requests
import yaml
from PIL import Image

from tests.corpus import CORRUPT, TRUNCATED
from tests.helpers import REAL, copy_sources, encode
from visionserve import runtimes
from visionserve.config import Precision
from visionserve.preprocessing import decode, to_views
from visionserve_tools import container, emulation, paths, photos
from visionserve_tools.archive.recipe import Recipe, build
from visionserve_tools.archive.unpacked import unpacked
from visionserve_tools.server.client import Client
from visionserve_tools.server.ports import free_ports
from visionserve_tools.server.processes import listeners

pytestmark = pytest.mark.skipif("ARM" not in os.environ, reason="`make test-arm` runs it")

TREE = paths.ROOT / ".cache" / "arm64"
CLONE = TREE / "opt" / "visionserve"
# Raspberry Pi 4's: without half floats and dot products, which OpenVINO's INT8 takes.
PROCESSOR = "cortex-a72"

# In a user namespace nobody may make devices; debootstrap mounts them where it thinks of LXC.
ENTER = r"""
set -e
mount -t proc proc /proc
if test -e "$TREE/debootstrap" || ! test -e "$TREE/usr/bin/make"; then
    rm -rf "$TREE"
    container=lxc debootstrap --arch=arm64 --variant=minbase --include="$INCLUDED" \
        bookworm "$TREE" >&2 < /dev/null
fi
mount --rbind /dev "$TREE/dev"
mount --rbind /sys "$TREE/sys"
mount -t proc proc "$TREE/proc"
while read -r source target && test "$source"; do
    mkdir -p "$(dirname "$TREE/$target")"
    test -d "$source" && mkdir -p "$TREE/$target" || touch "$TREE/$target"
    mount --bind "$source" "$TREE/$target"
done
echo entered
exec cat > /dev/null
"""

# What a server may take that hangs on no processor, in seconds: qemu is many times slower than any.
PATIENCE = 1800
START = f"""
import sys
from visionserve_tools.commands import serve
from visionserve_tools.server import client, torchserve
client.TIMEOUT = torchserve.START_TIMEOUT = {PATIENCE}
sys.exit(serve.main())
"""


class Debian:
    """A tree of ARM64 in namespaces of its own, but for the network's, which are `entered` so."""

    def __init__(self, entered: Sequence[str]) -> None:
        self._entered = entered

    def run(self, command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a shell's command in the clone there."""
        own = {"PATH": container.PATH, "HOME": "/root", "QEMU_CPU": PROCESSOR, **environment}
        return subprocess.run(
            [
                *(*self._entered, "chroot", str(TREE), "env", "--ignore-environment"),
                *(f"{name}={value}" for name, value in own.items()),
                *("sh", "-c", f"cd /opt/visionserve && {command}"),
            ],
            capture_output=True,
            text=True,
        )


@contextmanager
def entered(volumes: Mapping[str, str]) -> Iterator[list[str]]:
    """Enter the tree, which debootstrap makes where it is missing."""
    with (
        emulation.emulated("arm64") as emulated,
        subprocess.Popen(
            [*emulated, "unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", ENTER],
            env={**os.environ, "TREE": str(TREE), "INCLUDED": f"{container.INCLUDED},make"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as unshared,
    ):
        assert unshared.stdin and unshared.stdout
        lines = (f"{source} {target}\n" for source, target in volumes.items())
        unshared.stdin.write("".join([*lines, "\n"]))
        unshared.stdin.flush()
        assert "entered\n" in unshared.stdout, "see above for what failed"
        (first,) = psutil.Process(unshared.pid).children()
        # It ends with its input, and all others there with it.
        yield [*emulated, "nsenter", f"--target={first.pid}", "--mount", "--pid"]


@pytest.fixture(scope="module")
def debian() -> Iterator[Debian]:
    """The tree with a clone of this project, and what serving takes installed there by `make`."""
    TREE.parent.mkdir(exist_ok=True)
    with container.pip_volumes() as volumes, entered(volumes) as begun:
        for folder in ("handler", "config", "scripts"):
            shutil.rmtree(CLONE / folder, ignore_errors=True)
        copy_sources(CLONE)
        for name in ("Makefile", "pyproject.toml", "LICENSE"):
            shutil.copy2(paths.ROOT / name, CLONE)
        debian = Debian(begun)
        done = debian.run("make .venv/.serves && .venv/bin/visionserve install java")
        assert done.returncode == 0, done.stderr
        yield debian


def built(precision: Precision, store: Path) -> Path:
    """Build the archive of `edge` here, and copy it and its record into the clone there."""
    config = store / "model-config.yaml"
    patient = yaml.safe_load((paths.CONFIG / "edge" / config.name).read_text())
    patient |= {"responseTimeout": PATIENCE, "startupTimeout": PATIENCE}
    patient["handler"]["deadline_seconds"] = PATIENCE
    config.write_text(yaml.safe_dump(patient))
    recipe = Recipe(REAL, REAL, "1.0", config, file=precision, precision=precision)
    archive = build(recipe, store)
    for file in (archive, archive.with_suffix(".json")):
        shutil.copy(file, CLONE)
    return archive


@pytest.fixture(scope="module")
def fp32(debian: Debian, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built("fp32", tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def client(debian: Debian, fp32: Path) -> Iterator[Client]:
    """The server of `edge` there, which listens on this machine's loopback."""
    ports = free_ports()
    overrides = " ".join(f"--set {key}={value}" for key, value in ports.items())
    started = debian.run(
        f".venv/bin/python -c {shlex.quote(START)} start --profile edge --archive fp32.mar "
        f"{overrides} --set default_response_timeout={PATIENCE}"
    )
    assert started.returncode == 0, started.stderr
    assert "Egyptian cat" in started.stdout
    keys = CLONE / ".torchserve" / "edge" / "key_file.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("visionserve_tools.server.client.TIMEOUT", PATIENCE)
        yield Client(ports["inference_address"], ports["management_address"], keys)
    stopped = debian.run("make stop PROFILE=edge")
    assert stopped.returncode == 0 and "Stopped the server" in stopped.stdout, stopped.stderr
    assert not keys.exists() and not listeners(
        *(int(of.rpartition(":")[2]) for of in ports.values())
    )


def test_its_answers_are_those_of_x86(client: Client, fp32: Path) -> None:
    """The whole distribution; where a photograph has to be resized, Pillow does it there."""
    whole = Image.open(photos.greeting())
    with unpacked(fp32) as one:
        runtime = runtimes.load(one.directory, one.metadata, one.config.handler, None, 1)
        side = 256  # Which this model's pictures are resized to.
        for picture, apart in ((whole.crop((90, 20, 90 + side, 20 + side)), 1e-5), (whole, 0.01)):
            data = encode(picture)
            decoded = decode(Image.open(io.BytesIO(data)), one.metadata.transforms, "fast")
            view = to_views(decoded, one.metadata.transforms, "fast", "none")
            expected = runtime.averaged([view]).probabilities[0]
            response = client.predict(REAL, data, top_k=len(expected))
            assert response.status_code == 200, response.text
            found = np.zeros_like(expected)
            for each in response.json()["predictions"]:
                found[each["class_id"]] = each["probability"]
            print(f"at most {np.abs(found - expected).max():.7f} from x86")
            np.testing.assert_allclose(found, expected, rtol=0, atol=apart)


def test_it_has_a_page_and_refuses_what_is_no_image(client: Client) -> None:
    page = requests.get(
        f"{client.inference}/predictions/{REAL}",
        headers={**client.token("inference"), "Accept": "text/html"},
        timeout=PATIENCE,
    )
    assert page.status_code == 200 and "<title>" in page.text
    photograph = photos.greeting().read_bytes()
    for body, (status, code) in (
        (photograph[: len(photograph) // 2], TRUNCATED),
        (b"GIF89a" + bytes(64), CORRUPT),
    ):
        response = client.predict(REAL, body)
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    card = requests.get(
        f"{client.inference}/predictions/{REAL}",
        headers={**client.token("inference"), "X-Classify-Describe": "card"},
        timeout=PATIENCE,
    ).json()
    assert card["self_check"]["passed"]
    assert client.predict(REAL, photograph).status_code == 200


def test_int8_is_refused_by_its_self_check(debian: Debian, tmp_path: Path) -> None:
    """OpenVINO 2026.4 gives no answers on this processor, and wrong ones on newer ones."""
    built("int8", tmp_path)
    done = debian.run(".venv/bin/visionserve verify int8.mar --profile edge")
    assert done.returncode == 1
    assert "The model's answers are wrong on this machine." in done.stderr
    assert "Traceback" not in done.stderr
