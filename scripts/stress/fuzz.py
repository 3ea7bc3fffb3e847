"""The work of `visionserve fuzz`."""

import argparse
import hashlib
import multiprocessing
import sys
import tempfile
from pathlib import Path

import atheris
import psutil

with atheris.instrument_imports(include=["PIL", "visionserve"]):
    from PIL import Image, TiffImagePlugin, WebPImagePlugin  # noqa: F401

    Image.preinit()
    from visionserve import inputs
    from visionserve.config import HandlerConfig
    from visionserve.errors import RequestError
    from visionserve.item import Item
    from visionserve.metadata import Transforms
    from visionserve.preprocessing import decode, to_views
    from visionserve.validation import validate

SECONDS = 10
MEGABYTES = 300
MAX_SEED_BYTES = 100_000
# Few enough to be quick; memory that grows all the same does not come from pixels.
MAX_PIXELS = 1_000_000
CONFIG = HandlerConfig(max_image_pixels=MAX_PIXELS)
KEPT = Path(tempfile.gettempdir()) / "fuzz-"
JSON = {"content-type": "application/json"}


def write_seeds(folder: Path) -> None:
    """Write the small ones of the tests' hostile inputs."""
    from tests.corpus import CASES

    for index, case in enumerate(CASES):
        if len(case.data) <= MAX_SEED_BYTES:
            (folder / f"{index:03}").write_bytes(case.data)


def classify(data: bytes) -> None:
    """Bring an encoded image to the model's door.

    Raises:
        RequestError: it is refused.
    """
    image = validate(data, CONFIG.max_image_bytes, CONFIG.max_image_pixels)
    to_views(decode(image, Transforms(), "exact"), Transforms(), "exact", "ten_crop")


def try_bytes(data: bytes) -> None:
    """Take bytes as an image, and as a JSON body; keep those that fail.

    Raises:
        Exception: anything that does not blame the client.
    """
    try:
        take(data)
    except Exception:
        path = KEPT.with_name(f"{KEPT.name}{hashlib.sha256(data).hexdigest()[:16]}")
        path.write_bytes(data)
        print(path, file=sys.stderr)
        raise


def take(data: bytes) -> None:
    """Take bytes as an image, and as a JSON body.

    Raises:
        RequestError: of a status that blames the server.
    """
    request = inputs.read({"body": data}, JSON, CONFIG)
    for item in (Item(data, CONFIG.defaults), *request.items):
        try:
            if item.fault:
                raise item.fault
            classify(item.data)
        except RequestError as error:
            if not 400 <= error.status < 500:
                raise


def fuzz(runs: int, found: Path, seeds: Path) -> None:
    """Run libFuzzer, which ends the process.

    Args:
        runs: inputs to try, the seeds among them.
        found: a folder for inputs that reach new code.
        seeds: a folder of inputs to start from.
    """
    resident = psutil.Process().memory_info().rss // 1_000_000
    options = [
        f"-runs={runs}",
        f"-timeout={SECONDS}",
        f"-rss_limit_mb={resident + MEGABYTES}",
        f"-max_len={MAX_SEED_BYTES}",
        f"-artifact_prefix={KEPT}",
        "-seed=1",
        "-verbosity=0",
    ]
    atheris.Setup([sys.argv[0], *options, str(found), str(seeds)], try_bytes)
    atheris.Fuzz()


def run(args: argparse.Namespace) -> int:
    """Do what `visionserve fuzz` was asked, and return its exit code."""
    with tempfile.TemporaryDirectory() as found, tempfile.TemporaryDirectory() as seeds:
        if args.seeds is None:
            write_seeds(Path(seeds))
        arguments = (args.runs, Path(found), args.seeds or Path(seeds))
        process = multiprocessing.get_context("fork").Process(target=fuzz, args=arguments)
        process.start()
        process.join()
    return 1 if process.exitcode else 0
