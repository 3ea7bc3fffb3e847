"""Compute waits in the M/M/c and the M/D/c queue, and how many machines keep them short.

Requests arrive at random (as a Poisson process) at the one queue of a server's workers. In the
M/M/c queue, service times are exponential, with a standard deviation equal to the mean. In the
M/D/c queue, they are all the same. If real service times vary less than exponential ones, the
waits lie between the two models. If they vary more, the waits are longer than in either.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.linalg import solve
from scipy.optimize import brentq

TIMEOUT_MS = 30_000.0


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
class Queue(ABC):
    """One queue and its workers, under a given load.

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
    @abstractmethod
    def mean_wait_ms(self) -> float:
        """The mean wait of all requests, in milliseconds; infinite in overload."""

    @abstractmethod
    def waits_over(self, milliseconds: float) -> float:
        """Return the probability that a request waits longer."""

    @abstractmethod
    def takes_over(self, milliseconds: float) -> float:
        """Return the probability that its answer, wait and service together, takes longer."""

    @property
    def waiting(self) -> float:
        """The probability that a request waits."""
        return self.waits_over(0)

    @property
    def p99_wait_ms(self) -> float:
        """The wait that one request in a hundred exceeds, in milliseconds; infinite in overload."""
        return self._exceeded_by_one_in_a_hundred(self.waits_over)

    @property
    def p99_ms(self) -> float:
        """The time to an answer that one request in a hundred exceeds, in milliseconds."""
        return self._exceeded_by_one_in_a_hundred(self.takes_over)

    def _exceeded_by_one_in_a_hundred(self, over: Callable[[float], float]) -> float:
        if self.utilisation >= 1:
            return math.inf
        if over(0) <= 0.01:
            return 0.0
        longest = self.service_ms
        while over(longest) > 0.01:
            longest *= 2
        return float(brentq(lambda time: over(time) - 0.01, 0, longest, xtol=1e-9, rtol=1e-12))


class ExponentialService(Queue):
    """The M/M/c queue.

    A request has to wait with the probability that Erlang's C formula gives. The wait is then
    exponential. Its rate is the rate at which busy workers complete requests, minus the rate at
    which requests arrive. The time to an answer is the sum of the wait and an exponential service
    time that is independent of it.
    """

    @property
    def mean_wait_ms(self) -> float:
        """The mean wait of all requests, in milliseconds; infinite in overload."""
        return self.waiting / self._draining if self._draining > 0 else math.inf

    def waits_over(self, milliseconds: float) -> float:
        """Return the probability that a request waits longer."""
        if self.utilisation >= 1:
            return 1.0
        waiting = erlang_c(self.workers, self.utilisation * self.workers)
        return waiting * math.exp(-self._draining * milliseconds)

    def takes_over(self, milliseconds: float) -> float:
        """Return the probability that its answer, wait and service together, takes longer."""
        if self.utilisation >= 1:
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


class ConstantService(Queue):
    """The M/D/c queue.

    In each service time D, the length of the queue changes from M to max(M + A - c, 0), where c is
    the number of workers and A the Poisson number of requests that arrived. The probabilities of
    the lengths solve linear equations, and form a geometric series from some length on (H. Tijms,
    A First Course in Stochastic Models, 2003, 9.6.2). The distribution of the waits follows from
    them (G. J. Franx, A simple solution for the M/D/c waiting time distribution, Operations
    Research Letters 29, 2001).
    """

    @property
    def mean_wait_ms(self) -> float:
        """The mean wait of all requests by Little's law, in milliseconds; infinite in overload."""
        if self.utilisation >= 1:
            return math.inf
        lengths, ratio = self._lengths
        tail = lengths[-1] * ratio / (1 - ratio)
        beyond = tail * (len(lengths) - 1 + 1 / (1 - ratio))
        return float((np.arange(len(lengths)) @ lengths + beyond) / self.rate * 1000)

    def waits_over(self, milliseconds: float) -> float:
        """Return the probability that a request waits longer."""
        if self.utilisation >= 1:
            return 1.0
        lengths, ratio = self._lengths
        rounds = int(milliseconds / self.service_ms) + 1
        ahead = rounds * self.workers - 1
        coming = self.rate * (rounds * self.service_ms - milliseconds) / 1000
        arrivals = np.arange(ahead + 1)
        within = ahead - arrivals
        known = 1 - np.cumsum(lengths)
        last = len(lengths) - 1
        longer = np.where(
            within <= last,
            known[np.minimum(within, last)],
            known[last] * ratio ** np.maximum(within - last, 0.0),
        )
        more = stats.poisson.sf(ahead, coming)
        return float(stats.poisson.pmf(arrivals, coming) @ longer + more)

    def takes_over(self, milliseconds: float) -> float:
        """Return the probability that its answer, wait and service together, takes longer."""
        wait = milliseconds - self.service_ms
        return 1.0 if wait < 0 else self.waits_over(wait)

    @cached_property
    def _lengths(self) -> tuple[NDArray[np.float64], float]:
        """The probabilities of the queue's lengths up to some length, and the ratio after it.

        The probability of each further length is the one before times the ratio.
        """
        load, workers = self.utilisation * self.workers, self.workers
        ratio = self._ratio
        last = min(math.ceil(-35 / math.log(ratio)), math.ceil(50 + 15 * math.sqrt(workers)))
        lengths = np.arange(last + 1)
        # Row j, column k holds the probability that length j follows length k.
        moves = stats.poisson.pmf(workers + lengths[:, None] - lengths, load)
        beyond = ratio ** np.arange(1, workers + 1)
        for length in range(max(1, last - workers + 1), last + 1):
            above = np.arange(1, workers + length - last + 1)
            moves[length, -1] += stats.poisson.pmf(above[::-1] - 1, load) @ beyond[: len(above)]
        equations = moves - np.eye(last + 1)
        equations[0] = 1.0
        equations[0, -1] += ratio / (1 - ratio)
        return solve(equations, np.eye(last + 1)[0]), ratio

    @property
    def _ratio(self) -> float:
        """The probability of a long queue divided by the probability of one shorter by one."""

        def fault(excess: float) -> float:
            return self.utilisation * excess - math.log1p(excess)

        longest = 1.0
        while fault(longest) < 0:
            longest *= 2
        least = 1 / self.utilisation - 1
        return 1 / (1 + float(brentq(fault, least, max(longest, 2 * least), xtol=1e-15)))


SERVICES: dict[str, type[Queue]] = {"exponential": ExponentialService, "constant": ConstantService}


def queue_size(service_ms: float, workers: int, timeout_ms: float = TIMEOUT_MS) -> int:
    """Return the longest queue whose last request is answered before nginx gives up.

    `jobQueueSize` should be at most that, because requests behind it would wait in vain.
    """
    return max(0, math.floor((timeout_ms - service_ms) * workers / service_ms))


def machines(
    service: type[Queue], service_ms: float, workers: int, rate: float, p99_ms: float
) -> int:
    """Return how many machines answer 99 % of the requests in a given time.

    Each machine has a queue of its own and gets an equal share of the requests.

    Args:
        service: the model of the service times.
        service_ms: the mean service time, as in `Queue`.
        workers: the number of workers of each machine.
        rate: the number of requests per second, for all machines together.
        p99_ms: the time in which 99 % of the requests are to be answered, in milliseconds.

    Raises:
        ValueError: even without a wait, more than one request in a hundred takes longer.
    """
    alone = service(service_ms, workers, 1e-9).p99_ms
    if p99_ms < alone:
        raise ValueError(
            f"No number of machines answers 99 % in {p99_ms:g} ms: without any wait, one request "
            f"in a hundred takes over {alone:.4g} ms."
        )
    count = max(1, math.ceil(rate * service_ms / 1000 / workers))
    while service(service_ms, workers, rate / count).p99_ms > p99_ms:
        count += 1
    return count
