"""A resource that threads take different amounts of."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition


class Share:
    """A semaphore whose holders take different amounts.

    Args:
        whole: how much all holders may have together.
    """

    def __init__(self, whole: int) -> None:
        self._whole = self._left = whole
        self._changed = Condition()

    @contextmanager
    def holding(self, amount: int) -> Iterator[None]:
        """Wait until an amount is free, and hold it.

        An amount larger than the whole takes the whole, so that nobody waits for ever.
        """
        amount = min(amount, self._whole)
        with self._changed:
            self._changed.wait_for(lambda: self._left >= amount)
            self._left -= amount
        try:
            yield
        finally:
            with self._changed:
                self._left += amount
                self._changed.notify_all()
