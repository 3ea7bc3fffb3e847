"""Find processes by their command lines, and by the ports that they listen on.

No process is found by an id that was kept in a file, because another process may have that id by
now, and would get the signals.
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil


def find(name: str, *words: str) -> psutil.Process | None:
    """Find this user's oldest process with a name and with all the words in its command line.

    A word may itself hold spaces, such as ``-c /a folder/nginx.conf``. It matches where a space
    or an end of the command line stands on both of its sides.

    The processes of other containers are left out, where the same path is another file: a process
    has to be in this one's process namespace, and to see the folder of a word's path as it is here.

    Send signals through the object that this returns: psutil first compares the start time, and
    raises `psutil.NoSuchProcess` if another process has the id by now.
    """
    found = []
    for process in psutil.process_iter(["name", "uids", "cmdline", "create_time"]):
        command = f" {' '.join(process.info['cmdline'] or ())} "
        own = process.info["uids"] is not None and process.info["uids"].real == os.getuid()
        if own and process.info["name"] == name and all(f" {word} " in command for word in words):
            ends = [word.partition(" ")[2] for word in words]
            if _is_here(process.pid, [end for end in ends if end.startswith("/")]):
                found.append(process)
    return min(found, key=lambda process: process.info["create_time"], default=None)


def _is_here(pid: int, files: list[str]) -> bool:
    """Tell whether a process is in this one's process namespace, and sees the files' folders."""
    process = Path(f"/proc/{pid}")
    try:
        return (process / "ns" / "pid").samefile("/proc/self/ns/pid") and all(
            _identity(process / "root" / file[1:]) == _identity(Path(file)) for file in files
        )
    except OSError:
        return False


def _identity(file: Path) -> tuple[int, int] | None:
    with suppress(FileNotFoundError):
        folder = file.parent.stat()
        return folder.st_dev, folder.st_ino
    return None


def wait(
    process: psutil.Process, seconds: float, until: Callable[[], bool] = lambda: False
) -> None:
    """Wait until a process has ended, threads and all, even if its parent never waits for it.

    psutil would wait for the parent as well, which in a container may never come: its first process
    is often a program that does not know of the duty.

    Args:
        process: the process.
        seconds: how long to wait at most.
        until: what ends the wait as well, where it returns true.

    Raises:
        psutil.TimeoutExpired: it still runs after so many seconds.
    """
    deadline = time.monotonic() + seconds
    while runs(process) and not until():
        if time.monotonic() > deadline:
            raise psutil.TimeoutExpired(seconds, process.pid)
        time.sleep(0.02)


def runs(process: psutil.Process) -> bool:
    """Tell whether a process runs, threads and all; a zombie, which nobody reaps, does not."""
    try:
        if process.status() != psutil.STATUS_ZOMBIE:
            return process.is_running()
        return len(list(Path(f"/proc/{process.pid}/task").iterdir())) > 1
    except (psutil.NoSuchProcess, FileNotFoundError):
        return False


def listeners(*ports: int) -> dict[int, int | None]:
    """Tell which of these TCP ports are taken on this machine, and by which process.

    Returns:
        The process id for each taken port, None if the process is another user's.
    """
    return {
        connection.laddr.port: connection.pid
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
        and connection.laddr
        and connection.laddr.port in ports
    }


def listens(process: psutil.Process, *ports: int) -> bool:
    """Tell whether a process listens on all of these TCP ports, so that no other process does."""
    try:
        connections = process.net_connections("tcp")
    except psutil.NoSuchProcess:
        return False
    listening = {c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN and c.laddr}
    return listening.issuperset(ports)


def describe(pid: int | None) -> str:
    """Return a process's id and the start of its command line, for a message to the user."""
    if pid is None:
        return "another user's process"
    try:
        command = " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        command = ""
    return f"process {pid} ({command[:60] + '…' if len(command) > 60 else command})"
