"""A faster resize than Pillow's, where its library is installed: a third to a tenth of the time."""

from PIL import Image

try:
    from cykooz_resizer import CropBox, FilterType, ResizeAlg, ResizeOptions, Resizer
except ImportError:  # Linux on ARM64 has no wheel, for one.
    HAS_RESIZER = False
else:
    HAS_RESIZER = True


def resize_box(
    image: Image.Image,
    box: tuple[float, float, float, float],
    size: tuple[int, int],
    interpolation: str,
) -> Image.Image:
    """Resize a part of an image. There has to be the library.

    Args:
        image: an image of mode RGB or L.
        box: the part's left edge, top edge, width and height, in pixels.
        size: width and height that it gets.
        interpolation: `bilinear` or `bicubic`.
    """
    filters = {"bilinear": FilterType.bilinear, "bicubic": FilterType.catmull_rom}
    found = Image.new(image.mode, size, None)
    options = ResizeOptions(
        ResizeAlg.convolution(filters[interpolation]), crop_box=CropBox(*map(float, box))
    )
    Resizer().resize_pil(image, found, options)
    return found
