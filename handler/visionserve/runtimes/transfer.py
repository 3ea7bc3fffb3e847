"""Copy a batch's pixels to a device in one piece, and cut its views there."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visionserve.tta import Views

COLUMNS = 4


class Transfer:
    """A buffer of bytes on the host, pinned for a CUDA device, and its twin on the device.

    The buffer holds a table of views, then the pixels of all images. The table is int64 with one
    row per view: the index of the view's first pixel, the steps to the next row and to the next
    column, in pixels, and the number of its image. Unused rows are 0, which is safe: such a view
    repeats the first pixel.

    Args:
        views: how many views the buffer can hold.
        pixels: how many pixels it can hold.
        device: where the twin is.
    """

    def __init__(self, views: int, pixels: int, device: torch.device) -> None:
        self._views = views
        self._size = pixels
        self._table_bytes = views * COLUMNS * 8
        size = self._table_bytes + pixels * 3
        self._host = torch.zeros(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._bytes: NDArray[np.uint8] = self._host.numpy()
        self._rows = self._bytes[: self._table_bytes].view(np.int64).reshape(views, COLUMNS)
        self._twin = torch.zeros(size, dtype=torch.uint8, device=device)
        self._table = self._twin[: self._table_bytes].view(torch.int64).view(views, COLUMNS)
        self._pixels = self._twin[self._table_bytes :].view(-1, 3)

    def batches(self, images: Sequence[Views]) -> Iterator[Sequence[Views]]:
        """Yield images, in order, in batches that fit the buffer."""
        begin = views = pixels = 0
        for end, image in enumerate(images):
            views += len(image.places)
            pixels += image.pixels.size // 3
            if begin < end and (views > self._views or pixels > self._size):
                yield images[begin:end]
                begin, views, pixels = end, len(image.places), image.pixels.size // 3
        yield images[begin:]

    def pack(self, images: Sequence[Views]) -> int:
        """Write a batch into the buffer on the host, and return how many bytes to copy."""
        self._rows[:] = 0
        row = pixels = 0
        for number, image in enumerate(images):
            width = image.pixels.shape[1]
            for top, left, mirrored in image.places:
                first = pixels + top * width + left + (image.shape[1] - 1 if mirrored else 0)
                self._rows[row] = first, width, -1 if mirrored else 1, number
                row += 1
            begin = self._table_bytes + 3 * pixels
            self._bytes[begin : begin + image.pixels.size] = image.pixels.ravel()
            pixels += image.pixels.size // 3
        return self._table_bytes + 3 * pixels

    def send(self, images: Sequence[Views]) -> None:
        """Start to copy a batch to the device. The buffer must not change until that is done."""
        size = self.pack(images)
        self._twin[:size].copy_(self._host[:size], non_blocking=True)

    def cut(self, views: int, shape: tuple[int, int]) -> Tensor:
        """Cut the first views on the device: uint8 of shape (views, height, width, 3)."""
        rows = torch.arange(shape[0], device=self._twin.device)[:, None]
        columns = torch.arange(shape[1], device=self._twin.device)
        first, down, across, _ = self._table[:views].T[..., None, None]
        return self._pixels[first + rows * down + columns * across]

    def average(self, probabilities: Tensor, images: int) -> Tensor:
        """Average each image's views: from (views, classes) to (images, classes)."""
        numbers = torch.arange(images, device=self._twin.device)[:, None]
        members = (self._table[: len(probabilities), 3] == numbers).to(probabilities.dtype)
        return members @ probabilities / members.sum(1, keepdim=True)
