"""GIF (GIF89a, CompuServe 1990): what a frame leaves free of its screen."""

from PIL import Image
from PIL.GifImagePlugin import GifImageFile

from visionserve.formats.decoder import load_pixels
from visionserve.formats.samples import STRIP


def load(image: GifImageFile) -> Image.Image:
    """Decode a GIF's first frame; what lies around it on the screen is white.

    That is clear, for browsers. Pillow gives it the transparent colour or, where the frame has
    none, the first one, whatever that is.
    """
    box, is_clear = image.tile[0].extents, "transparency" in image.info
    load_pixels(image)
    if is_clear or box is None or box == (0, 0, *image.size):
        return image
    screen = Image.new("RGB", image.size, "white")
    left, top, right, bottom = box
    for start in range(top, bottom, STRIP):
        strip = (left, start, right, min(start + STRIP, bottom))
        screen.paste(image.crop(strip).convert("RGB"), strip)
    screen.info = image.info
    return screen
