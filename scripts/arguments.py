"""Numbers on the command line, for argparse: what a command cannot use is refused in one line."""

import argparse
from collections.abc import Callable

SHOWN = 20


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
        try:
            number = float(text) if text.isascii() else float("nan")
        except ValueError:
            number = float("nan")
        if least <= number <= most:
            return number
        raise argparse.ArgumentTypeError(
            f"{_short(text)}: give a number from {least:g} to {most:,.10g}"
        )

    return parse


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
