"""What goes through the stages."""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

from visionserve.config import Options
from visionserve.trace import Trace


@dataclass(frozen=True)
class Item:
    """One encoded image, the options that it is classified with, and the trace it leaves.

    The cache neither has nor keeps a probe's answer.
    """

    data: bytes
    options: Options
    probe: bool = False
    trace: Trace = field(default_factory=Trace, compare=False)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the encoded image, in hex."""
        return hashlib.sha256(self.data).hexdigest()
