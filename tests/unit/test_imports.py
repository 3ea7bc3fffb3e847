"""What is imported, and what is not."""

import re

from visionserve_tools import paths


def test_torchvision_comes_without_pytorchs_compiler() -> None:
    """As long as PyTorch's own import takes; see `visionserve.workarounds.torchvision_compiler`."""
    for folder in (paths.ROOT / "handler", paths.TOOLS):
        for path in folder.rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            first = re.search(r"^(?:from|import) torchvision\b", text, re.MULTILINE)
            assert not first or "import torchvision_compiler" in text[: first.start()], path
