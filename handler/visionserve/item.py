"""What goes through the stages."""

import hashlib
import math
from dataclasses import dataclass, field
from functools import cached_property

from visionserve.config import Options
from visionserve.errors import RequestError
from visionserve.trace import Trace


@dataclass
class Budget:
    """The work that the images of one request may still cause, in pixels times scans."""

    left: float = math.inf

    def spend(self, work: int) -> None:
        """Take an image's work from it.

        Raises:
            RequestError: 413 `too_much_work`, no more than an image before it had left.
        """
        if work > self.left:
            raise RequestError(
                413, "too_much_work", "The request's images take too long: send fewer at a time."
            )
        self.left -= work


@dataclass(frozen=True)
class Item:
    """One encoded image, the options that it is classified with, and what it shares or leaves.

    Attributes:
        data: the encoded image.
        options: what it is classified with.
        probe: whether the cache neither has nor keeps its answer.
        budget: shared by the images of a request.
        trace: where its time goes.
    """

    data: bytes
    options: Options
    probe: bool = False
    budget: Budget = field(default_factory=Budget, compare=False)
    trace: Trace = field(default_factory=Trace, compare=False)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the encoded image, in hex."""
        return hashlib.sha256(self.data).hexdigest()
