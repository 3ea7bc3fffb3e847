"""Compute waits in the M/M/c queue (Erlang C), and how many machines keep them short.

Requests arrive at random (as a Poisson process) at the one queue of a server's workers. Service
times are exponential, with a standard deviation equal to the mean. If real ones vary less, waits
are shorter than computed here; if they vary more, longer.
"""

import math
from dataclasses import dataclass

TIMEOUT_MS = 30_000.0
SLOWEST = 0.01


def erlang_c(workers: int, erlangs: float) -> float:
    """Return the probability that a request finds every worker busy.

    Args:
        workers: the number of workers, at least 1.
        erlangs: the load, which is the rate times the service time; if it is not below the number
            of workers, every request waits.
    """
    if erlangs >= workers:
        return 1.0
    blocked = 1.0
    for count in range(1, workers + 1):
        blocked = erlangs * blocked / (count + erlangs * blocked)
    return blocked / (1 - erlangs / workers * (1 - blocked))


@dataclass(frozen=True)
class Queue:
    """One M/M/c queue and its workers, under a given load.

    A request has to wait with the probability that Erlang's C formula gives. The wait is then
    exponential. Its rate is the rate at which busy workers complete requests, minus the rate at
    which requests arrive. The time to an answer is the sum of the wait and an exponential service
    time that is independent of it.

    Attributes:
        service_ms: the mean time that a worker takes for a request, in milliseconds.
        workers: number of workers.
        rate: requests per second.
    """

    service_ms: float
    workers: int
    rate: float

    @property
    def utilisation(self) -> float:
        """The share of time that workers are busy; at 1 or above, the queue grows without end."""
        return self.rate * self.service_ms / 1000 / self.workers

    @property
    def waiting(self) -> float:
        """The probability that a request waits."""
        return erlang_c(self.workers, self.utilisation * self.workers)

    @property
    def mean_wait_ms(self) -> float:
        """The mean wait of all requests, in milliseconds; infinite in overload."""
        return self.waiting / self._draining if self._draining > 0 else math.inf

    @property
    def p99_wait_ms(self) -> float:
        """The wait that one request in a hundred exceeds, in milliseconds; infinite in overload."""
        if self._draining <= 0:
            return math.inf
        return math.log(max(1, self.waiting / SLOWEST)) / self._draining

    @property
    def p99_ms(self) -> float:
        """The time to an answer that one request in a hundred exceeds, in milliseconds."""
        if self._draining <= 0:
            return math.inf
        least, most = 0.0, self.service_ms
        while self.takes_over(most) > SLOWEST:
            least, most = most, 2 * most
        while most - least > 1e-9 * most:
            middle = (least + most) / 2
            least, most = (middle, most) if self.takes_over(middle) > SLOWEST else (least, middle)
        return most

    def takes_over(self, milliseconds: float) -> float:
        """Return the probability that an answer, wait and service together, takes longer."""
        if self._draining <= 0:
            return 1.0
        served, drained = 1 / self.service_ms, self._draining
        alone = math.exp(-served * milliseconds)
        if math.isclose(served, drained, rel_tol=1e-6):
            waited = alone * (1 + served * milliseconds)
        else:
            drain = math.exp(-drained * milliseconds)
            waited = (drained * alone - served * drain) / (drained - served)
        return (1 - self.waiting) * alone + self.waiting * waited

    @property
    def _draining(self) -> float:
        """The rate at which a full queue becomes shorter, per millisecond."""
        return self.workers * (1 - self.utilisation) / self.service_ms


def queue_size(service_ms: float, workers: int, timeout_ms: float = TIMEOUT_MS) -> int:
    """Return the longest queue whose last request is answered before nginx gives up.

    `jobQueueSize` should be at most that, because requests behind it would wait in vain.
    """
    return max(0, math.floor((timeout_ms - service_ms) * workers / service_ms))


def machines(service_ms: float, workers: int, rate: float, p99_ms: float) -> int:
    """Return how many machines answer 99 % of the requests in a given time.

    Each machine has a queue of its own and gets an equal share of the requests.

    Args:
        service_ms: the mean service time, as in `Queue`.
        workers: the number of workers of each machine.
        rate: the number of requests per second, for all machines together.
        p99_ms: the time in which 99 % of the requests are to be answered, in milliseconds.

    Raises:
        ValueError: even without a wait, more than one request in a hundred takes longer.
    """
    alone = Queue(service_ms, workers, 1e-9).p99_ms
    if p99_ms < alone:
        raise ValueError(
            f"No number of machines answers 99 % in {p99_ms:g} ms: without any wait, one request "
            f"in a hundred takes over {alone:.4g} ms."
        )
    count = max(1, math.ceil(rate * service_ms / 1000 / workers))
    while Queue(service_ms, workers, rate / count).p99_ms > p99_ms:
        count += 1
    return count
