"""The command line: `visionserve COMMAND …`, or `python -m scripts COMMAND …`.

Each command's file here only parses the arguments. The code that does the work is in a package,
which is imported after the arguments are parsed, so that --help and usage errors appear at once.
"""

import ast
import sys
from importlib import import_module
from pathlib import Path

from scripts import paths

PROGRAM = "visionserve"


def modules() -> dict[str, Path]:
    """Map each command's name, such as `manage` or `bench-page`, to its file."""
    folder = Path(__file__).parent
    found = {}
    for path in sorted([*folder.glob("*.py"), *folder.glob("bench/*.py")]):
        name = "-".join(path.relative_to(folder).with_suffix("").parts).removesuffix("-__main__")
        if name != "__main__" and "\ndef main()" in path.read_text(encoding="utf-8"):
            found[name] = path
    return found


def overview() -> str:
    """List each command with the first line of its module's docstring, without importing it."""
    lines = [f"usage: {PROGRAM} COMMAND …, each with --help", ""]
    for name, path in modules().items():
        about = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        lines.append(f"  {name:16}{about.splitlines()[0]}")
    return "\n".join(lines)


def main() -> int:
    """Run the command that the first argument names."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(overview())
        return 0
    if name not in modules():
        print(f"{name} is no command; {PROGRAM} --help lists them.", file=sys.stderr)
        return 2
    package = "scripts.bench.__main__" if name == "bench" else f"scripts.{name.replace('-', '.')}"
    # fuzz and chaos import `tests`, which only `python -m scripts` finds by itself.
    sys.path.insert(0, str(paths.ROOT))
    sys.argv = [f"{PROGRAM} {name}", *sys.argv[2:]]
    code: int = import_module(package).main()
    return code


if __name__ == "__main__":
    sys.exit(main())
