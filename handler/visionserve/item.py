"""What goes through the stages."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

from visionserve.config import Options


@dataclass(frozen=True)
class Item:
    """One encoded image and the options that it is classified with."""

    data: bytes
    options: Options

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the encoded image, in hex."""
        return hashlib.sha256(self.data).hexdigest()
