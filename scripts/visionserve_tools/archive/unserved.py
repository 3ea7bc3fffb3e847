"""Ways to resize that no archive follows, so that the builder can name what an owner did."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image, ImageOps

from visionserve.workarounds import torchvision_compiler  # noqa: F401

# isort: split

from torchvision.transforms import functional

from visionserve.geometry import resized_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from visionserve.metadata import Transforms
    from visionserve_tools.archive.plain import Resize


def _closest_pixels(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Interpolate between the four closest pixels, however many the new one covers."""
    across, down = (old / new for old, new in zip(image.size, size, strict=True))
    affine = (across, 0, 0, 0, down, 0)
    return image.transform(size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)


def _padded(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return ImageOps.pad(image, (min(size),) * 2, Image.Resampling.BILINEAR)


def _by(filter_: Image.Resampling) -> Callable[[Image.Image, tuple[int, int]], Image.Image]:
    return lambda image, size: image.resize(size, filter_)


def _of(resize: Callable[[Image.Image, tuple[int, int]], Image.Image]) -> Resize:
    def resized(image: Image.Image, transforms: Transforms) -> Image.Image:
        if transforms.channels == "grey":
            image = functional.to_grayscale(image, len(transforms.mean))
        return resize(image, resized_size(image.size, transforms))

    return resized


RESIZES: dict[str, Resize] = {
    "a resize without antialiasing, as cv2's, albumentations', Keras' and antialias=False": _of(
        _closest_pixels
    ),
    "a resize to the nearest pixel (NEAREST)": _of(_by(Image.Resampling.NEAREST)),
    "a resize by areas (BOX, cv2's INTER_AREA)": _of(_by(Image.Resampling.BOX)),
    "a resize by LANCZOS": _of(_by(Image.Resampling.LANCZOS)),
    "a resize by HAMMING": _of(_by(Image.Resampling.HAMMING)),
    "a picture that is padded to a square": _of(_padded),
}
