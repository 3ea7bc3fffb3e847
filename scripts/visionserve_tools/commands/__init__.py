"""The commands' parsers. The code that does the work is imported after a parser is done."""

from importlib.util import find_spec
from pathlib import Path

# Grouped as `visionserve --help` shows them; each is a module here.
GROUPS = {
    "Serve": ("serve", "manage", "proxy", "samples"),
    "Make archives": ("build", "rebuild", "repack", "verify", "train"),
    "Classify and measure": ("classify", "compare", "evaluate", "robustness", "calibrate"),
    "Plan and keep": ("capacity", "install", "audit", "openapi", "image"),
}


def names() -> list[str]:
    """Return all commands' names."""
    return [name for group in GROUPS.values() for name in group]


def about(name: str) -> str:
    """Return the first line of a command's docstring, without importing it."""
    spec = find_spec(f"{__name__}.{name}")
    assert spec is not None and spec.origin is not None
    with Path(spec.origin).open(encoding="utf-8") as source:
        return source.readline().strip().strip('"')
