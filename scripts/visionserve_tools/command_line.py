"""Which command runs, what --help lists, and where output goes.

Each command's module only parses the arguments. The code that does the work is in a package, which
is imported after the arguments are parsed, so that --help and usage errors appear at once.
"""

import io
import os
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

from visionserve_tools import HOME, commands

PROGRAM = "visionserve"
OPTIONS = ("--help", "--home", "--version")
STDOUT = 1


def overview() -> str:
    """List each command with the first line of its module's docstring, without importing it."""
    lines = [
        f"usage: {PROGRAM} [--home DIR] COMMAND …, each with --help; {PROGRAM} --version",
        "",
        f"Archives and states lie in DIR, else in {HOME}, else in the checkout or the folder here.",
    ]
    for group, names in commands.GROUPS.items():
        lines += ["", f"{group}:", *(f"  {name:12}{commands.about(name)}" for name in names)]
    return "\n".join(lines)


class _Stream(io.BufferedWriter):
    """Standard output or error, whose reader may go early, as `head` does, or whose disk be full.

    What is written after that is dropped. Where its output cannot be written, the command ends.
    """

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self._drop(error)
            return len(data)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
        if self.fileno() != STDOUT:
            return
        if isinstance(error, BrokenPipeError):
            sys.exit(0)
        sys.exit(f"The output cannot be written: {str(error.strerror).lower()}.")


def _stream(name: str) -> TextIO:
    """Return a stream in place of `sys.NAME`; a text that it cannot encode is escaped."""
    earlier: io.TextIOWrapper | None = getattr(sys, name)
    if earlier is None:  # The shell has closed it.
        return Path(os.devnull).open("w", encoding="utf-8")
    return io.TextIOWrapper(
        _Stream(io.FileIO(earlier.fileno(), "w", closefd=False)),
        earlier.encoding,
        "backslashreplace",
        # Standard error that is no terminal has the second in place of the first.
        line_buffering=earlier.line_buffering or earlier.write_through,
        write_through=earlier.write_through,
    )


def run() -> int:
    """Run the command that the first argument names, and return its exit code."""
    sys.stdout, sys.stderr = _stream("stdout"), _stream("stderr")
    arguments = sys.argv[1:]
    if arguments and arguments[0].partition("=")[0] == "--home":
        first, *arguments = arguments
        home = first.partition("=")[2] or "".join(arguments[:1])
        arguments = arguments if "=" in first else arguments[1:]
        if not home:
            print("--home: give a folder.", file=sys.stderr)
            return 2
        os.environ[HOME] = home
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(overview())
        return 0
    if name == "--version":
        print(PROGRAM, version(PROGRAM))
        return 0
    if name not in commands.names():
        from visionserve_tools.errors import closest

        hint = closest(name, [*commands.names(), *OPTIONS])
        print(f"{name} is no command{hint}; {PROGRAM} --help lists them.", file=sys.stderr)
        return 2
    sys.argv = [f"{PROGRAM} {name}", *arguments[1:]]
    code: int = import_module(f"{commands.__name__}.{name}").main()
    return code
