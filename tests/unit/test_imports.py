"""What is imported, and what is not."""

import ast
import re

from visionserve_tools import paths


def test_torchvision_comes_without_pytorchs_compiler() -> None:
    """As long as PyTorch's own import takes; see `visionserve.workarounds.torchvision_compiler`."""
    for folder in (paths.ROOT / "handler", paths.TOOLS):
        for path in folder.rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            first = re.search(r"^(?:from|import) torchvision\b", text, re.MULTILINE)
            assert not first or "import torchvision_compiler" in text[: first.start()], path


def imported(module: str, seen: set[str]) -> None:
    """Add what a module of ours imports as soon as it is imported itself, by way of others."""
    top = module.partition(".")[0]
    root = {"visionserve": paths.HANDLER, "visionserve_tools": paths.TOOLS.parent}.get(top)
    if root is None:
        seen.add(top)
    if root is None or module in seen:
        return
    seen.add(module)
    place = root / module.replace(".", "/")
    found = [path for path in (place.with_suffix(".py"), place / "__init__.py") if path.exists()]
    for node in ast.parse(found[0].read_text(encoding="utf-8")).body if found else ():
        names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{one.name}" for one in node.names)]
        for name in names:
            imported(name, seen)


def test_an_archive_is_measured_without_pytorch() -> None:
    """Its import takes two seconds."""
    found: set[str] = set()
    for command in ("served", "calibrate", "compare"):
        imported(f"visionserve_tools.quality.{command}", found)
    assert {"visionserve_tools.quality.models", "visionserve.classifier", "numpy"} <= found
    assert not found & {"torch", "torchvision"}
