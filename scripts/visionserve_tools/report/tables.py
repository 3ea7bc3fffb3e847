"""Write Markdown tables, as a whole or line by line.

A column whose name ends in a colon is aligned right, as Markdown's own `---:` is.
"""

import math
from collections.abc import Iterable, Sequence


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a whole table."""
    return "\n".join([heading(columns), *map(row, rows)])


def heading(columns: Sequence[str]) -> str:
    """Return the two lines above the first row."""
    rules = ["---:" if name.endswith(":") else "---" for name in columns]
    return f"{row([name.removesuffix(':') for name in columns])}\n|{'|'.join(rules)}|"


def row(cells: Sequence[object]) -> str:
    """Return one line; what would end a cell or the line, as in a file's name, is replaced."""
    texts = (printable(str(cell)).replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(texts)} |"


def printable(text: str) -> str:
    """Return a text that moves no cursor; what cannot be printed is replaced."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def percent(
    value: float | None, low: float = math.nan, high: float = math.nan, *, digits: int = 1
) -> str:
    """Return a share as a percentage, with its interval if it has one; a dash if it is none's."""
    if value is None or math.isnan(value):
        return "–"
    share = f"{value:.{digits}%}"
    return share if math.isnan(low) else f"{share} ({low:.{digits}%} to {high:.{digits}%})"
