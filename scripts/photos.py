"""Photographs: one to greet with, those of PyPI packages to calibrate with."""

from importlib.metadata import distribution
from pathlib import Path

from PIL import Image

MAX_BYTES = 64 * 1024 * 1024
MAX_PIXELS = 80_000_000
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
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
    """Return the path of Chelsea the cat, a PNG photograph (CC0, from scikit-image)."""
    return Path(__file__).with_name("chelsea.png")


def packaged() -> list[Path]:
    """Return the paths of colour photographs in scikit-image and scikit-learn.

    Neither is imported, which would take seconds.
    """
    return [
        Path(str(distribution(package).locate_file(name)))
        for package, names in PACKAGED.items()
        for name in names
    ]


def folder(directory: Path) -> list[Path]:
    """Return the image files below a folder, in order of their paths.

    Raises:
        FileNotFoundError: there are none.
    """
    paths = sorted(path for path in directory.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"{directory}: no images below it.")
    return paths


def read(path: Path) -> Image.Image:
    """Decode an image file to mode RGB, validated as the handler validates a client's.

    Pillow tries no other formats than the handler's, whatever the file's name says: EPS never
    reaches Ghostscript. The limits of bytes and pixels are the builder's own.

    Raises:
        ValueError: the file is no image of these formats, corrupt, or too large; it is named.
    """
    from visionserve.errors import RequestError
    from visionserve.preprocessing import to_rgb
    from visionserve.validation import validate

    try:
        return to_rgb(validate(path.read_bytes(), MAX_BYTES, MAX_PIXELS))
    except RequestError as error:
        raise ValueError(f"{path}: {error.message}") from None
