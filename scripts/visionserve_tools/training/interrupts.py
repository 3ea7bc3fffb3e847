"""Let Ctrl-C reach this process alone, and not those that it starts."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker


@contextmanager
def held_back() -> Iterator[None]:
    """Hold Ctrl-C back until the block ends; processes that start in it never see it.

    A terminal sends it to all of them, and each would print a traceback. They inherit this thread's
    mask. Another thread may still receive the signal, and Python would interrupt this one.
    """
    # Python's tracker of shared memory is started with the first process, and then Python unblocks
    # the signal for those that follow.
    resource_tracker.ensure_running()
    pressed: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    kept = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, kept)
        signal.signal(signal.SIGINT, handler)
    if pressed:
        raise KeyboardInterrupt
