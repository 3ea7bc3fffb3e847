"""Find processes by their command lines, and by the ports that they listen on.

No process is found by an id that was kept in a file, because another process may have that id by
now, and would get the signals.
"""

import os

import psutil


def find(name: str, *words: str) -> psutil.Process | None:
    """Find this user's oldest process with a name and with all the words in its command line.

    A word may itself hold spaces, such as ``-c /a folder/nginx.conf``. It matches where a space
    or an end of the command line stands on both of its sides.

    Send signals through the object that this returns: psutil first compares the start time, and
    raises `psutil.NoSuchProcess` if another process has the id by now.
    """
    found = []
    for process in psutil.process_iter(["name", "uids", "cmdline", "create_time"]):
        command = f" {' '.join(process.info['cmdline'] or ())} "
        own = process.info["uids"] is not None and process.info["uids"].real == os.getuid()
        if own and process.info["name"] == name and all(f" {word} " in command for word in words):
            found.append(process)
    return min(found, key=lambda process: process.info["create_time"], default=None)


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
