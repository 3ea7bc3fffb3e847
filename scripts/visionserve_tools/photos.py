"""Find and read photographs: a sample, the ones to calibrate with, and a folder's."""

from importlib.metadata import distribution
from pathlib import Path

from PIL import Image

MAX_BYTES = 64 * 1024 * 1024
MAX_PIXELS = 80_000_000
SUFFIXES = {
    *(".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".avif", ".heic", ".heif"),
}
PACKAGED = {
    "scikit-image": (
        "skimage/data/astronaut.png",
        "skimage/data/chelsea.png",
        "skimage/data/coffee.png",
        "skimage/data/hubble_deep_field.jpg",
        "skimage/data/ihc.png",
        "skimage/data/motorcycle_left.png",
        "skimage/data/retina.jpg",
        "skimage/data/rocket.jpg",
    ),
    "scikit-learn": ("sklearn/datasets/images/china.jpg", "sklearn/datasets/images/flower.jpg"),
}


def greeting() -> Path:
    """Return the path of a sample photograph: Chelsea the cat, a PNG (CC0, from scikit-image)."""
    return Path(__file__).with_name("chelsea.png")


def packaged(*packages: str) -> list[Path]:
    """Return the paths of the colour photographs that scikit-image and scikit-learn contain.

    The packages are not imported, because that would take seconds.

    Args:
        packages: names of some of them; none means both.
    """
    return [
        Path(str(distribution(package).locate_file(name)))
        for package in packages or PACKAGED
        for name in PACKAGED[package]
    ]


def free() -> list[Path]:
    """Return the paths of those that may be passed on without a word: CC0, or of NASA.

    Those of scikit-learn ask for their author's name, and Middlebury's motorcycle has no licence.
    """
    return [path for path in packaged("scikit-image") if path.stem != "motorcycle_left"]


def folder(directory: Path) -> list[Path]:
    """Return the image files below a folder, sorted by path.

    Raises:
        FileNotFoundError: the folder holds no images.
    """
    paths = sorted(path for path in directory.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"{directory}: no images below it.")
    return paths


def read(path: Path) -> Image.Image:
    """Decode an image file to mode RGB, after the same validation that the handler does.

    Pillow tries only the formats that the handler accepts, whatever the file's name says, so that
    an EPS file never reaches Ghostscript. The limits are `MAX_BYTES` and `MAX_PIXELS`, not the
    handler's.

    Raises:
        ValueError: the file is corrupt, too large or in another format; the message names it.
    """
    from visionserve.errors import RequestError
    from visionserve.preprocessing import to_rgb
    from visionserve.validation import validate

    try:
        return to_rgb(validate(path.read_bytes(), MAX_BYTES, MAX_PIXELS))
    except RequestError as error:
        raise ValueError(f"{path}: {error.message}") from None


def in_channels(image: Image.Image, channels: str) -> Image.Image:
    """Turn an RGB image grey, in three equal channels, if `channels` is `grey`.

    That comes before any resize, as in the handler.
    """
    return image.convert("L").convert("RGB") if channels == "grey" else image
