"""Views equal to torchvision's crops."""

import numpy as np
import pytest
import torch
from torchvision.transforms import functional

from visionserve import tta
from visionserve.config import TTA

PIXELS = np.random.default_rng(0).integers(0, 256, (256, 341, 3), dtype=np.uint8)
TENSOR = torch.from_numpy(PIXELS).permute(2, 0, 1)


def crops(mode: TTA) -> set[bytes]:
    return {view.tobytes() for view in tta.views(PIXELS, mode, 224)}


def as_bytes(tensors: tuple[torch.Tensor, ...]) -> set[bytes]:
    return {tensor.permute(1, 2, 0).numpy().tobytes() for tensor in tensors}


def test_none_is_the_centre_crop() -> None:
    assert crops("none") == as_bytes((functional.center_crop(TENSOR, [224]),))


def test_five_crop() -> None:
    assert crops("five_crop") == as_bytes(functional.five_crop(TENSOR, [224]))


def test_ten_crop() -> None:
    assert crops("ten_crop") == as_bytes(functional.ten_crop(TENSOR, [224]))


def test_dense_is_the_centre_in_few_sizes() -> None:
    """Of many photographs that a camera takes upright or not, three sizes of the view."""
    assert np.array_equal(tta.views(PIXELS, "dense", 224), PIXELS[np.newaxis, :, 10:330])
    assert tta.views(PIXELS[:232], "dense", 224).shape == (1, 224, 320, 3)
    sizes = {341, 340, 384, 383, 369, 320, 455}  # 4:3, 3:2, 13:9, 5:4 and 16:9.
    shapes = [tta.views(np.zeros((256, side, 3), np.uint8), "dense", 224).shape for side in sizes]
    shapes += [tta.views(np.zeros((side, 256, 3), np.uint8), "dense", 224).shape for side in sizes]
    assert {shape[1:3] for shape in shapes} == {(256, 320), (320, 256), (256, 448), (448, 256)}
    lengths = {
        tta.views(np.zeros((224, side, 3), np.uint8), "dense", 224).shape[2]
        for side in range(224, 1500)
    }
    assert lengths == {224, 256, 320, 448, 640, 1024}
    assert tta.views(np.zeros((384, 1200, 3), np.uint8), "dense", 384).shape == (1, 384, 800, 3)
    panorama = np.arange(256 * 3000 * 3, dtype=np.uint32).astype(np.uint8).reshape(256, 3000, 3)
    assert np.array_equal(tta.views(panorama, "dense", 224), panorama[np.newaxis, :, 988:2012])


@pytest.mark.parametrize(("height", "width"), [(224, 224), (225, 224), (231, 227)])
def test_the_centre_is_rounded_as_torchvision_does(height: int, width: int) -> None:
    pixels = PIXELS[:height, :width]
    (view,) = tta.views(pixels, "none", 224)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    assert torch.equal(
        torch.from_numpy(view).permute(2, 0, 1), functional.center_crop(tensor, [224])
    )
