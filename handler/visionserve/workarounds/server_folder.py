"""Find the folder in which the server was started."""

import os
from pathlib import Path

import psutil


def server_folder() -> Path:
    """Return the frontend's working folder; `visionserve serve` makes it `.torchserve/PROFILE`.

    TorchServe runs a worker in the folder of its unpacked archive, and tells it no other one. The
    frontend is the worker's parent process.

    Raises:
        OSError: the frontend has ended.
    """
    try:
        return Path(psutil.Process(os.getppid()).cwd())
    except psutil.Error as error:
        raise OSError(f"The frontend's folder is not known: {error}") from None
