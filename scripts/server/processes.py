"""Which process is whose: found by what it runs, never by an id that a file has kept.

The id in a file may be another process's by now, so that nothing is signalled by one.
"""

import os

import psutil


def find(name: str, *words: str) -> psutil.Process | None:
    """Find this user's oldest process of a name whose command line holds all the words.

    A word is text that follows a space and ends at one, or at an end of the line, such as
    ``-c /a folder/nginx.conf``. Signal the process through the object returned: psutil compares
    the start time first, and raises `psutil.NoSuchProcess` where the id has a new owner.
    """
    found = []
    for process in psutil.process_iter(["name", "uids", "cmdline", "create_time"]):
        command = f" {' '.join(process.info['cmdline'] or ())} "
        own = process.info["uids"] is not None and process.info["uids"].real == os.getuid()
        if own and process.info["name"] == name and all(f" {word} " in command for word in words):
            found.append(process)
    return min(found, key=lambda process: process.info["create_time"], default=None)


def listeners(*ports: int) -> dict[int, int | None]:
    """Tell which TCP ports of this machine are taken, and by which process.

    Returns:
        Port to process id, which is None where the process is another user's.
    """
    return {
        connection.laddr.port: connection.pid
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
        and connection.laddr
        and connection.laddr.port in ports
    }


def listens(process: psutil.Process, *ports: int) -> bool:
    """Tell whether a process listens on all of these TCP ports, and so no other one does."""
    try:
        connections = process.net_connections("tcp")
    except psutil.NoSuchProcess:
        return False
    listening = {c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN and c.laddr}
    return listening.issuperset(ports)


def describe(pid: int | None) -> str:
    """Name a process for a person, by its id and the start of its command line."""
    if pid is None:
        return "another user's process"
    try:
        command = " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        command = ""
    return f"process {pid} ({command[:60] + '…' if len(command) > 60 else command})"
