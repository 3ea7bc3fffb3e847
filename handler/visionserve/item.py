"""One image on its way through the stages."""

import hashlib
import math
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock

from visionserve.config import Options
from visionserve.errors import RequestError
from visionserve.trace import Trace


@dataclass
class Budget:
    """The decoding work that the images of one request may still cause.

    Attributes:
        left: in pixels times scans; see `visionserve.validation.work`.
    """

    left: float = math.inf
    _lock: Lock = field(default_factory=Lock, repr=False, compare=False)

    def spend(self, work: int) -> None:
        """Take the work of one image from the budget; threads may do so at the same time.

        Raises:
            RequestError: 413 `too_much_work`, the budget has less than that left. It stays as
                it is, so a smaller image after this one may still be decoded.
        """
        with self._lock:
            if work > self.left:
                raise RequestError(
                    413,
                    "too_much_work",
                    "The request's images take too long: send fewer at a time.",
                )
            self.left -= work


@dataclass(frozen=True)
class Item:
    """One image of a request, with what the stages need to know about it.

    Attributes:
        data: the encoded image; empty if it could not be read.
        options: how to classify it.
        probe: whether it is part of a health check, whose answer the cache does not hold.
        budget: shared by all images of the request.
        fault: why it could not be read from the request, or None. An item with a fault passes
            through the stages untouched.
        trace: what the stages note about it.
    """

    data: bytes
    options: Options
    probe: bool = False
    budget: Budget = field(default_factory=Budget, compare=False)
    fault: RequestError | None = None
    trace: Trace = field(default_factory=Trace, compare=False)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the encoded image, in hex."""
        return hashlib.sha256(self.data).hexdigest()
