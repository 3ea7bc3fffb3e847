"""What holds for every test: one thread, SIGINT as in a terminal, no process that stays."""

import gc
import logging
import os
import signal
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from visionserve_tools import paths

# OpenMP's threads spin while they wait, and take four times the processor time where other
# processes, such as a TorchServe, want the cores. What a test starts has one thread, too. PyTorch
# reads it when it is imported, which only the processes that run tests do.
os.environ["OMP_NUM_THREADS"] = "1"

# A shell that starts the tests in the background lets them ignore SIGINT, and so would commands
# that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# All that a run starts inherits this, the processes of pytest-xdist among them.
RUN = "VISIONSERVE_TEST_RUN"
os.environ.setdefault(RUN, str(os.getpid()))

# The files that take longest are begun first, so that no process works alone at the end.
LONGEST = (
    *("test_page", "test_evaluate", "test_truth", "test_own_model", "test_nginx", "test_chaos"),
    *("test_train", "test_readmes", "test_serve", "test_heads", "test_runtimes", "test_properties"),
    *("test_models", "test_build", "test_checkpoints", "test_service", "test_device", "test_locks"),
    *("test_attacks", "test_work", "test_samples", "test_bench", "test_self_check"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest."""
    items.sort(key=lambda item: (*LONGEST, item.path.stem).index(item.path.stem))


def pytest_collection_finish() -> None:
    """Make each test cheaper, of which there are thousands, by a third of a unit test's time.

    pytest adds a handler to each logger that does not pass on what it logs, of which PyTorch has
    45, in each phase of each test; and what is imported by now is garbage at no time.
    """
    for logger in logging.root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger) and logger.name.startswith("torch"):
            logger.propagate = True
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """End what is left: pytest-xdist kills its processes at Ctrl-C, and their servers stay."""
    if os.environ[RUN] == str(os.getpid()):
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.pid != os.getpid() and process.environ().get(RUN) == os.environ[RUN]:
                    process.kill()


@pytest.fixture(scope="session")
def samples() -> list[Path]:
    """Real photographs; the first three digits of a name are the class index."""
    found = sorted(paths.PHOTOGRAPHS.glob("*.JPEG"))
    if not found:
        pytest.skip(f"{paths.PHOTOGRAPHS} is absent")
    return found
