"""Tests that start no process and open no socket, so that `make test-fast` takes seconds."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REFUSED = {"subprocess.Popen", "os.fork", "os.posix_spawn", "os.system", "socket.__new__"}

_running = False


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Watch a test of this folder and the fixtures that are set up for it."""
    global _running
    _running = item.path.is_relative_to(Path(__file__).parent)
    try:
        return (yield)
    finally:
        _running = False


def _refuse(event: str, _: object) -> None:
    if _running and event in REFUSED:
        raise AssertionError(f"a unit test starts no process and opens no socket: {event}")


sys.addaudithook(_refuse)
