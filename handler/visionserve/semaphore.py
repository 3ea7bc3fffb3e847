"""A resource that threads take different amounts of."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import TIMEOUT_MAX, Condition


class WeightedSemaphore:
    """A semaphore whose holders take different amounts.

    Args:
        whole: how much all holders may have together.
    """

    def __init__(self, whole: int) -> None:
        self._whole = self._left = whole
        self._changed = Condition()

    @contextmanager
    def holding(self, amount: int, deadline: float = math.inf) -> Iterator[None]:
        """Wait until an amount is free, and hold it.

        An amount larger than the whole takes the whole, so that nobody waits for ever.

        Args:
            amount: how much.
            deadline: time, by `time.monotonic`, until which to wait.

        Raises:
            TimeoutError: the amount was not free by the deadline.
        """
        amount = min(amount, self._whole)
        with self._changed:
            while self._left < amount:
                # A lock cannot wait for longer than TIMEOUT_MAX, nor for an infinite time.
                patience = min(deadline - time.monotonic(), TIMEOUT_MAX)
                if patience <= 0 or not self._changed.wait(patience):
                    raise TimeoutError
            self._left -= amount
        try:
            yield
        finally:
            with self._changed:
                self._left += amount
                self._changed.notify_all()
