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
    """What the images of one request may cost together.

    Attributes:
        left: the decoding work that they may still cause, in pixels times scans; see
            `visionserve.validation.work`.
        most_bytes: how large their answers may be, as JSON.
    """

    left: float = math.inf
    most_bytes: float = math.inf
    _bytes: float = 0
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

    def check_bytes(self, size: int = 0) -> None:
        """Refuse a part of the answer that cannot fit, before it is made.

        From then on nothing fits, as the request is refused as a whole.

        Args:
            size: the part's size in bytes.

        Raises:
            RequestError: 413 `answer_too_large`.
        """
        with self._lock:
            if self._bytes + size > self.most_bytes:
                self._bytes = math.inf
                raise RequestError(
                    413,
                    "answer_too_large",
                    f"The answer has too many bytes: at most {self.most_bytes} are allowed. "
                    "Ask for a smaller top_k, or send fewer images.",
                )

    def spend_bytes(self, size: int) -> None:
        """Take the size of an image's answer. It raises the same error as `check_bytes`."""
        self.check_bytes(size)
        with self._lock:
            self._bytes += size


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
        is_reported: whether it is sent again with a report, for which it is looked at anew, past
            the cache.
        trace: what the stages note about it.
    """

    data: bytes
    options: Options
    probe: bool = False
    budget: Budget = field(default_factory=Budget, compare=False)
    fault: RequestError | None = None
    is_reported: bool = False
    trace: Trace = field(default_factory=Trace, compare=False)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the encoded image, in hex."""
        return hashlib.sha256(self.data).hexdigest()
