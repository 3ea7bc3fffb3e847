"""Programs of another architecture, which qemu runs.

Linux has a table of other architectures' programs for each user namespace, from release 6.7 on, so
that this machine's own is left alone: Debian's line for qemu is entered in a namespace's.
"""

import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Debian's names, which are the containers' as well, by the kernel's.
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
TABLE = Path("/proc/sys/fs/binfmt_misc")
LINES = Path("/usr/lib/binfmt.d")

ENTER = f"""
mount -t binfmt_misc binfmt_misc {TABLE} && cat "$0" > {TABLE}/register && echo entered && exec cat
"""


class EmulationError(Exception):
    """This machine runs no programs of an architecture."""


def own() -> str:
    """Return this machine's architecture by Debian's name."""
    return ARCHITECTURES.get(platform.machine(), platform.machine())


@contextmanager
def emulated(architecture: str) -> Iterator[list[str]]:
    """Have programs of an architecture run, in a user and a mount namespace where it takes these.

    Yields:
        What a command begins with under which such programs run, nothing where they run anyway. All
        such commands share what they mount.

    Raises:
        EmulationError: they cannot run; the message says what makes them.
        OSError: this user may not make such namespaces.
    """
    (name,) = (name for name, debian in ARCHITECTURES.items() if debian == architecture)
    if architecture == own() or (TABLE / f"qemu-{name}").exists():
        yield []
        return
    none = f"This machine runs no programs of {architecture}:"
    line = LINES / f"qemu-{name}.conf"
    if not line.exists():
        raise EmulationError(
            f"{none} apt-get install qemu-user-static, and binfmt-support before Linux 6.7."
        )
    with subprocess.Popen(
        [
            *("unshare", "--user", "sh", "-c", 'echo; read -r _; exec "$@"', "enter"),
            *("unshare", "--mount", "sh", "-c", ENTER, line),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin and process.stdout
        process.stdout.readline()
        # With every id mapped, buildah would take this for no user namespace, and mount layers so
        # that no folder can be renamed there.
        for kind in ("uid", "gid"):
            Path(f"/proc/{process.pid}/{kind}_map").write_text("0 0 65536")
        process.stdin.write("\n")
        process.stdin.flush()
        if process.stdout.readline() != "entered\n":
            raise EmulationError(
                f"{none} a user namespace has its own table of them from Linux 6.7 on; with an "
                f"older one, enter {line} in this machine's: apt-get install binfmt-support."
            )
        yield ["nsenter", f"--target={process.pid}", "--user", "--mount"]
