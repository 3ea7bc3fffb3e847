"""Write Markdown tables, as a whole or line by line.

A column whose name ends in a colon is aligned right, as Markdown's own `---:` is.
"""

from collections.abc import Iterable, Sequence


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a whole table."""
    return "\n".join([heading(columns), *map(row, rows)])


def heading(columns: Sequence[str]) -> str:
    """Return the two lines above the first row."""
    rules = ["---:" if name.endswith(":") else "---" for name in columns]
    return f"{row([name.removesuffix(':') for name in columns])}\n|{'|'.join(rules)}|"


def row(cells: Sequence[object]) -> str:
    """Return one line."""
    return f"| {' | '.join(map(str, cells))} |"
