"""Fuzz the code that meets a client's bytes first: request reading, validation and decoding.

libFuzzer mutates the seeds to reach new code in this project and in Pillow's plugins. The run fails
at the first exception that does not blame the client, at an input that takes over ten seconds, or
if memory grows by over 300 MB. The input is then kept as `fuzz-*` in the folder for temporary
files.
"""

import hashlib
import multiprocessing
import sys
import tempfile
from pathlib import Path

import atheris
import psutil

from visionserve_tools.arguments import Parser, whole

with atheris.instrument_imports(include=["PIL", "pillow_heif", "visionserve"]):
    import pillow_heif  # noqa: F401
    from PIL import AvifImagePlugin, Image, TiffImagePlugin, WebPImagePlugin  # noqa: F401

    Image.preinit()
    from visionserve import inputs
    from visionserve.config import HandlerConfig
    from visionserve.errors import RequestError
    from visionserve.item import Item
    from visionserve.metadata import Transforms
    from visionserve.preprocessing import decode, to_views
    from visionserve.validation import open_image

SECONDS = 10
MEGABYTES = 300
MAX_SEED_BYTES = 100_000
# Few pixels make a run quick, and exclude large images as the cause if memory grows.
MAX_PIXELS = 1_000_000
CONFIG = HandlerConfig(max_image_pixels=MAX_PIXELS, max_jpeg_pixels=MAX_PIXELS)
KEPT = Path(tempfile.gettempdir()) / "fuzz-"
JSON = {"content-type": "application/json"}


def write_seeds(folder: Path) -> None:
    """Write those hostile inputs of the tests that are small enough for seeds."""
    from tests.corpus import CASES

    for index, case in enumerate(CASES):
        if len(case.data) <= MAX_SEED_BYTES:
            (folder / f"{index:03}").write_bytes(case.data)


def classify(data: bytes) -> None:
    """Do with an encoded image all that the handler does before it runs the model.

    Raises:
        RequestError: the image is refused.
    """
    image = open_image(data, CONFIG)
    rgb = decode(image, Transforms(), "exact", CONFIG.max_image_pixels)
    to_views(rgb, Transforms(), "exact", "ten_crop")


def try_bytes(data: bytes) -> None:
    """Process bytes as an image and as a JSON body, and keep them in a file if that fails.

    Raises:
        Exception: processing failed with anything but an error with a 4xx status.
    """
    try:
        take(data)
    except Exception:
        path = KEPT.with_name(f"{KEPT.name}{hashlib.sha256(data).hexdigest()[:16]}")
        path.write_bytes(data)
        print(path, file=sys.stderr)
        raise


def take(data: bytes) -> None:
    """Process bytes as an image and as a JSON body, as the handler does.

    Raises:
        RequestError: processing failed with a status other than 4xx.
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
    """Run libFuzzer, which ends this process when it is done.

    Args:
        runs: the number of inputs to try, including the seeds.
        found: the folder for inputs that reach new code.
        seeds: the folder of the inputs to start from.
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


def main() -> int:
    """Fuzz with the tests' seeds, or those of a folder; `make fuzz`."""
    parser = Parser(prog="python -m tests.stress.fuzz", description=__doc__)
    parser.add_argument(
        "--runs", type=whole(1, 1_000_000_000), default=20_000, help="inputs to try"
    )
    parser.add_argument("--seeds", type=Path, help="a folder of inputs to start from (the tests')")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as found, tempfile.TemporaryDirectory() as seeds:
        if args.seeds is None:
            write_seeds(Path(seeds))
        arguments = (args.runs, Path(found), args.seeds or Path(seeds))
        process = multiprocessing.get_context("fork").Process(target=fuzz, args=arguments)
        process.start()
        process.join()
    return 1 if process.exitcode else 0


if __name__ == "__main__":
    sys.exit(main())
