"""The command line, for argparse: what a command cannot use is refused in one line."""

import argparse
import re
from collections.abc import Callable
from typing import Any

SHOWN = 20
REAL = re.compile(r"-?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


class Parser(argparse.ArgumentParser):
    """A parser, and the parser of its commands, that knows options by their whole names alone.

    So an option that is added, or is left out, never changes what another one means.

    Args:
        example: a whole command, with which the help ends.
        settings: those of `argparse.ArgumentParser`.
    """

    def __init__(self, example: str = "", **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False)
        self.example = example

    def format_help(self) -> str:
        """Return the help, and the example in a line of its own, which an epilog would break."""
        return super().format_help() + (f"\nexample:\n  {self.example}\n" if self.example else "")


def whole(least: int, most: int) -> Callable[[str], int]:
    """Return a parser of whole numbers, within bounds that are allowed themselves.

    It raises `argparse.ArgumentTypeError` for any other text.
    """

    def parse(text: str) -> int:
        digits = text.removeprefix("-")
        readable = digits.isascii() and digits.isdigit() and len(digits) <= len(str(most))
        if readable and least <= int(text) <= most:
            return int(text)
        raise argparse.ArgumentTypeError(
            f"{_short(text)}: give a whole number from {least:,} to {most:,}"
        )

    return parse


def real(least: float, most: float) -> Callable[[str], float]:
    """Return a parser of numbers, within bounds that are allowed themselves.

    It raises `argparse.ArgumentTypeError` for any other text, such as ``nan``.
    """

    def parse(text: str) -> float:
        number = float(text) if REAL.fullmatch(text) else float("nan")
        if least <= number <= most:
            return number
        raise argparse.ArgumentTypeError(
            f"{_short(text)}: give a number from {least:g} to {most:,.10g}"
        )

    return parse


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
