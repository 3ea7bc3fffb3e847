"""The promise of this folder is kept by force."""

import socket
import subprocess
import sys
from collections.abc import Callable

import pytest


@pytest.mark.parametrize(
    "forbidden",
    [socket.socket, lambda: subprocess.run([sys.executable, "--version"], check=True)],
    ids=["socket", "process"],
)
def test_a_unit_test_opens_no_socket_and_starts_no_process(
    forbidden: Callable[[], object],
) -> None:
    with pytest.raises(AssertionError, match="a unit test starts no process and opens no socket"):
        forbidden()
