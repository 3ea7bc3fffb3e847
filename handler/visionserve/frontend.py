"""What a worker must know of TorchServe's frontend, which is its parent process."""

import os
from pathlib import Path

import psutil

MAX_RESPONSE_SIZE = 6_553_500


def max_response_size() -> int:
    """Return the most bytes that an answer may have.

    TorchServe 0.12 kills a worker whose answer has more, and does not tell a worker the bound, so
    that it is read where the frontend reads it: in the file that its command line names.

    Returns:
        `max_response_size` of that file; TorchServe's default where it names none.
    """
    try:
        command = psutil.Process(os.getppid()).cmdline()
        file = Path(command[command.index("-f") + 1])
        lines = file.read_text(encoding="utf-8").splitlines()
    except (psutil.Error, ValueError, IndexError, OSError):
        return MAX_RESPONSE_SIZE
    pairs = (line.partition("=") for line in lines if not line.lstrip().startswith("#"))
    properties = {name.strip(): value.strip() for name, _, value in pairs}
    return int(properties.get("max_response_size", MAX_RESPONSE_SIZE))
