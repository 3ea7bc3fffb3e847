"""Read photographs whose class is in their folder's or file's name."""

import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from scripts import photos

WORDNET = re.compile(r"([0-9]+)_n[0-9]{8}(?![0-9])")
INDEX = re.compile(r"([0-9]+)(?![0-9A-Za-z])")


def label_of(path: Path, classes: int) -> int:
    """Read a photograph's class index.

    The first of these names that begins with a class index gives it:

    1. a file name with the index and its WordNet ID, `285_n02124075_cat.JPEG`, in any folder;
    2. the folder's name, `285/20240101_x.jpg` or `285_cat/1.jpg`;
    3. the file's name, `285_cat.jpg` or `285.jpg`.

    A number that is not a class index, such as a date, is ignored.

    Args:
        path: of the photograph.
        classes: their number.

    Raises:
        ValueError: there is no class index.
    """
    for pattern, name in ((WORDNET, path.name), (INDEX, path.parent.name), (INDEX, path.stem)):
        found = pattern.match(name)
        if found and int(found[1]) < classes:
            return int(found[1])
    raise ValueError(f"{path}: neither folder nor name begins with a class index under {classes}.")


def folder(directory: Path, classes: int, count: int | None = None) -> list[tuple[Path, int]]:
    """Return the photographs below a folder with their labels.

    Args:
        directory: of the photographs.
        classes: their number.
        count: the largest number, spread evenly over all; None for all.

    Raises:
        FileNotFoundError: there are none.
        ValueError: one has no label.
    """
    found = photos.folder(directory)
    count = min(count or len(found), len(found))
    chosen = [found[index * len(found) // count] for index in range(count)]
    return [(path, label_of(path, classes)) for path in chosen]


def enlarge(
    photographs: Sequence[tuple[Path, int]], side: int, directory: Path
) -> list[tuple[Path, int]]:
    """Write smaller photographs again in a size that cameras have, as JPEG files.

    Fast decoding at a reduced scale has no effect on small photographs, so it is measured on
    enlarged ones. They lack a large photograph's detail, which interpolation cannot add.

    Args:
        photographs: with their labels; one whose shorter side is long enough stays as it is.
        side: the least length of the shorter side, in pixels.
        directory: where to write.

    Raises:
        ValueError: a photograph cannot be read; it is named.
    """
    enlarged = []
    for number, (path, label) in enumerate(photographs):
        image = photos.read(path)
        if min(image.size) < side:
            width, height = (round(side * length / min(image.size)) for length in image.size)
            path = directory / f"{number}.jpg"
            image.resize((width, height), Image.Resampling.BICUBIC).save(path, quality=95)
        enlarged.append((path, label))
    return enlarged
