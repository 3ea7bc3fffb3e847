"""What the stages note about one image."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

Stage = Literal["validate", "decode", "preprocess", "infer", "explain", "postprocess"]


@dataclass
class Trace:
    """The time that each stage took, and what the image's header says.

    Attributes:
        seconds: wall time of each stage that the image reached. Images that share a forward
            pass each have its whole time as `infer`.
        size: width and height of the upright image, in pixels; (0, 0) until the header is read.
        luma_table: the steps to which a JPEG rounds its luminance; see `visionserve.hints`.
        orientation: how the image lay in its file, from 1 to 8 as in EXIF data.
    """

    seconds: dict[Stage, float] = field(default_factory=dict)
    size: tuple[int, int] = (0, 0)
    luma_table: Sequence[int] = ()
    orientation: int = 1

    @property
    def pixels(self) -> int:
        """Width times height."""
        return self.size[0] * self.size[1]

    @contextmanager
    def stage(self, name: Stage) -> Iterator[None]:
        """Time a stage, whether it succeeds or fails."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = time.perf_counter() - started
