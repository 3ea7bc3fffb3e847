"""Find out how large a response may be."""

import os
from pathlib import Path

import psutil

DEFAULT = 6_553_500


def max_response_size() -> int:
    """Return the largest response that the frontend accepts, in bytes.

    TorchServe kills a worker that sends a larger one, but does not tell workers the limit. The
    frontend is the worker's parent process, so this reads the file that the frontend's command
    line names with `-f`.

    Returns:
        `max_response_size` of that file, or TorchServe's default if the file does not set it.
    """
    try:
        command = psutil.Process(os.getppid()).cmdline()
        file = Path(command[command.index("-f") + 1])
        lines = file.read_text(encoding="utf-8").splitlines()
    except (psutil.Error, ValueError, IndexError, OSError):
        return DEFAULT
    pairs = (line.partition("=") for line in lines if not line.lstrip().startswith("#"))
    properties = {name.strip(): value.strip() for name, _, value in pairs}
    return int(properties.get("max_response_size", DEFAULT))
