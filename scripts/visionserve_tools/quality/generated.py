"""Pictures that belong to no class of photographs, made with Pillow and NumPy from a seed."""

import io
import math
import string
from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

EACH = 20
SEED = 0
SIZES = ((480, 640), (640, 480), (600, 600))
INKS = ("#101010", "#1a2a6c", "#7a1f1f", "#22543d", "#4a4a4a")
PAPERS = ("#ffffff", "#fdfcf5", "#f3f4f6", "#e9edf5")
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#17becf")
LETTERS = np.array(list(string.ascii_lowercase))

Random = np.random.Generator
Size = tuple[int, int]


def pictures(each: int = EACH, seed: int = SEED) -> Iterator[tuple[str, bytes]]:
    """Yield pictures, each with the name of its kind, as PNG.

    Args:
        each: how many of each kind of `KINDS`.
        seed: the same seed gives the same pictures, with one version of Pillow.
    """
    for kind, draw in KINDS.items():
        random = np.random.default_rng([seed, *kind.encode()])
        for _ in range(each):
            file = io.BytesIO()
            # More compression would take longer than the drawing.
            draw(random, SIZES[random.integers(len(SIZES))]).save(file, "PNG", compress_level=1)
            yield kind, file.getvalue()


def document(random: Random, size: Size) -> Image.Image:
    """A page with a heading, paragraphs and a table, such as a letter or an invoice."""
    image, draw = _paper(random, size)
    width, height = size
    margin, small = width // int(random.integers(8, 14)), int(random.integers(10, 15))
    ink, font = _of(random, INKS), _font(small)
    draw.text((margin, margin), _words(random, 3).title(), ink, _font(2 * small))
    top = margin + 4 * small
    table = height - margin - int(random.integers(4, 12)) * 2 * small
    while top < table - small:
        for _ in range(int(random.integers(2, 7))):
            _line(draw, random, (margin, top, width - margin), ink, font)
            top += round(1.4 * small)
        top += small
    columns = int(random.integers(2, 6))
    for left in np.linspace(margin, width - margin, columns + 1):
        draw.line((left, top, left, height - margin), ink)
    while top <= height - margin:
        draw.line((margin, top, width - margin, top), ink)
        for left in np.linspace(margin, width - margin, columns + 1)[:-1]:
            draw.text((left + 4, top + 4), f"{random.uniform(0, 900):.2f}", ink, font)
        top += 2 * small
    return image


def text(random: Random, size: Size) -> Image.Image:
    """Lines that fill the picture, such as a sign, a slide or a terminal."""
    image = Image.new("RGB", size, _colour(random))
    draw, large = ImageDraw.Draw(image), int(random.integers(12, 72))
    ink = "white" if sum(image.getpixel((0, 0))) < 380 else "black"  # type: ignore[arg-type]
    for top in range(large // 2, size[1] - large, round(1.3 * large)):
        _line(draw, random, (large // 2, top, size[0] - large // 2), ink, _font(large))
    return image


def plot(random: Random, size: Size) -> Image.Image:
    """Axes with curves, bars or points."""
    image, draw = _paper(random, size)
    (width, height), margin = size, 50
    draw.rectangle((margin, margin, width - margin, height - margin), outline="black")
    for tick in range(1, 6):
        left, top = (margin + tick * (side - 2 * margin) // 6 for side in size)
        draw.text((left - 8, height - margin + 6), f"{10 * tick}", "black", _font(12))
        draw.text((margin - 30, top - 6), f"{1 - tick / 6:.1f}", "black", _font(12))
        if random.random() < 0.5:
            draw.line((margin, top, width - margin, top), "#cccccc")
    kind = random.integers(3)
    for series in range(int(random.integers(1, 5))):
        colour = COLOURS[(series + int(random.integers(7))) % 7]
        count = int(random.integers(5, 60)) if kind else int(random.integers(3, 12))
        xs = np.linspace(margin + 5, width - margin - 5, count + 1)
        walk = np.cumsum(random.normal(size=count + 1))
        ys = (
            height
            - margin
            - (height - 2 * margin) * (walk - walk.min() + 0.3) / (np.ptp(walk) + 0.6)
        )
        if kind == 0:
            for left, right, top in zip(xs, xs[1:], ys, strict=False):
                draw.rectangle((left + 2, top, right - 2, height - margin), fill=colour)
        elif kind == 1:
            draw.line([*zip(xs, ys, strict=True)], colour, int(random.integers(1, 4)))
        else:
            for x, y in zip(xs, random.permutation(ys), strict=True):
                draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)
    draw.text((width // 3, 16), _words(random, 3).title(), "black", _font(18))
    return image


def noise(random: Random, size: Size) -> Image.Image:
    """Grain of some size and strength, in colours or grey, such as a broken sensor gives."""
    coarse = [math.ceil(side / int(random.choice((1, 2, 4, 16)))) for side in size]
    channels = int(random.choice((1, 3)))
    grain = random.normal(
        random.uniform(60, 190), random.uniform(25, 90), (*coarse[::-1], channels)
    )
    levels = np.repeat(grain, 3 // channels, axis=2).clip(0, 255).astype(np.uint8)
    return Image.fromarray(levels).resize(size, _of(random, (0, 3)))


def blank(random: Random, size: Size) -> Image.Image:
    """One colour, or a slow change from one to another, such as a covered lens gives."""
    first, last = np.array([_colour(random), _colour(random)], float)
    if random.random() < 0.5:
        last = first + random.normal(0, 6, 3)
    across = np.linspace(0, 1, size[0])[None, :, None] * random.random()
    down = np.linspace(0, 1, size[1])[:, None, None] * random.random()
    levels = first + (last - first) * (across + down) / 2
    levels = levels + random.normal(0, random.choice((0, 2)), levels.shape)
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


def code(random: Random, size: Size) -> Image.Image:
    """A square of modules with three corner marks, or a bar code."""
    image, draw = _paper(random, size)
    if random.random() < 0.25:
        left = size[0] // 8
        while left < size[0] * 7 // 8:
            wide = int(random.integers(1, 5)) * 3
            draw.rectangle((left, size[1] // 4, left + wide - 1, size[1] * 3 // 4), fill="black")
            left += wide + int(random.integers(1, 5)) * 3
        return image
    count = int(random.choice((21, 25, 29, 33, 41)))
    modules = random.random((count, count)) < 0.5
    mark = np.pad(np.pad(np.ones((3, 3), bool), 1), 1, constant_values=True)
    for rows, columns in ((0, 0), (0, count - 8), (count - 8, 0)):
        modules[rows : rows + 8, columns : columns + 8] = False
        rows, columns = rows + (rows > 0), columns + (columns > 0)
        modules[rows : rows + 7, columns : columns + 7] = mark
    side = round(min(size) * random.uniform(0.45, 0.95))
    square = Image.fromarray(np.where(modules, 0, 255).astype(np.uint8)).resize((side, side), 0)
    turned = square.rotate(_of(random, (0, 0, random.uniform(-15, 15))), expand=True, fillcolor=255)
    place = [(whole - part) // 2 for whole, part in zip(size, turned.size, strict=True)]
    image.paste(turned, (place[0], place[1]))
    return image.filter(ImageFilter.GaussianBlur(_of(random, (0, 0, 1.5))))


KINDS: dict[str, Callable[[Random, Size], Image.Image]] = {
    "documents": document,
    "text": text,
    "plots": plot,
    "noise": noise,
    "blank": blank,
    "codes": code,
}


def _paper(random: Random, size: Size) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", size, _of(random, PAPERS))
    return image, ImageDraw.Draw(image)


def _line(
    draw: ImageDraw.ImageDraw, random: Random, place: tuple[int, int, int], ink: str, font: Any
) -> None:
    """Write words from left to right, as many as there is room for."""
    left, top, right = place
    words = _words(random, 40).split()
    count = bisect_right(
        range(1, len(words) + 1),
        float(right - left),
        key=lambda count: draw.textlength(" ".join(words[:count]), font),
    )
    draw.text((left, top), " ".join(words[:count]), ink, font)


def _words(random: Random, count: int) -> str:
    lengths = random.integers(2, 10, count)
    return " ".join("".join(random.choice(LETTERS, length)) for length in lengths)


def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _colour(random: Random) -> tuple[int, int, int]:
    red, green, blue = random.integers(0, 256, 3)
    return int(red), int(green), int(blue)


def _of(random: Random, choices: tuple[Any, ...]) -> Any:
    return choices[random.integers(len(choices))]
