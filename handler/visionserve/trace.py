"""What the stages note about one image."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from PIL.Image import Image

Stage = Literal["validate", "decode", "copy", "preprocess", "infer", "explain", "postprocess"]


class Look(NamedTuple):
    """What is measured of a picture, in the middle of its first view.

    Attributes:
        highlight: the luminance, 0 to 255, that a twentieth of its pixels reach.
        detail: the mean square of its second derivative, in the direction where that is least.
        bent: the share of its pixels, 0 to 1, where that derivative is not 0. Blur and compression
            lower it, noise raises it.
        variance: of its luminance.
    """

    highlight: int
    detail: float
    bent: float
    variance: float

    @property
    def sharpness(self) -> float:
        """Detail over variance, the same at any contrast.

        A plain surface, which is neither sharp nor blurred, has infinity.
        """
        return self.detail / self.variance if self.variance >= 1 else math.inf


@dataclass
class Trace:
    """The time that each stage took, and what counters and samples have about the image.

    Attributes:
        seconds: wall time of each stage that the image reached. Images that share a forward
            pass each have its whole time as `infer`.
        pixels: width times height; 0 until the header is read.
        look: what was measured of its pixels, also if its answer is in the cache; None before that.
        margin: how far the probability of the best match, or of the closest label, is from its
            threshold.
        is_candidate: whether a small copy is made; see `visionserve.sampling`.
        copy: the small copy, of mode RGB and without metadata; None if there is none.
    """

    seconds: dict[Stage, float] = field(default_factory=dict)
    pixels: int = 0
    look: Look | None = None
    margin: float = math.inf
    is_candidate: bool = False
    copy: Image | None = None

    @contextmanager
    def stage(self, name: Stage) -> Iterator[None]:
        """Time a stage, whether it succeeds or fails."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = time.perf_counter() - started
