"""Send a share of a model's clients to another version of it."""

import re
from argparse import ArgumentTypeError
from dataclasses import dataclass

NAME = re.compile(r"[\w.-]{1,100}", re.ASCII)
FORM = re.compile(r"([^=]*)=([^:]*):(\d{1,3}(?:\.\d{1,2})?)%", re.ASCII)


@dataclass(frozen=True)
class Canary:
    """A version that answers a share of a model's clients, of those who name no version.

    Attributes:
        model: the model's name in the server.
        version: one of its versions.
        share: of the clients, in per cent, from 0 to 100; nginx counts in hundredths.

    Raises:
        ValueError: a name or the share cannot be.
    """

    model: str
    version: str
    share: float

    def __post_init__(self) -> None:
        """Check what nginx will read."""
        for name in (self.model, self.version):
            if not NAME.fullmatch(name):
                raise ValueError(f"{name[:100]!r}: give letters, digits and _ . -, 100 at most")
        if not 0 <= self.share <= 100:
            raise ValueError(f"{self.share:g} %: a share is from 0 to 100 %")

    @classmethod
    def parse(cls, text: str) -> "Canary":
        """Read ``MODEL=VERSION:SHARE%``, as argparse has it.

        Raises:
            argparse.ArgumentTypeError: the text is no canary.
        """
        found = FORM.fullmatch(text)
        if not found:
            raise ArgumentTypeError(f"{text[:100]!r}: give one as resnet18=2.0:5%")
        try:
            return cls(found[1], found[2], float(found[3]))
        except ValueError as error:
            raise ArgumentTypeError(str(error)) from None

    def __str__(self) -> str:
        """Return one line for people."""
        return f"{self.model} {self.version} answers {self.share:g} % of the model's clients"
