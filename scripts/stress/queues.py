"""The M/M/c and the M/D/c queue: waits, and the machines that keep them short.

Requests come at random (Poisson) to the one queue of a server's workers. Their service times are
exponential, with a standard deviation equal to the mean, or all the same. Times that vary less
than exponential ones lie between the two; those that vary more need more than either says.
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
        workers: their number, from 1.
        erlangs: the load, the rate times the service time; from the number of workers on, every
            request waits.
    """
    if erlangs >= workers:
        return 1.0
    blocked = 1.0
    for count in range(1, workers + 1):
        blocked = erlangs * blocked / (count + erlangs * blocked)
    return blocked / (1 - erlangs / workers * (1 - blocked))


@dataclass(frozen=True)
class Queue(ABC):
    """The workers of one queue, under load.

    Attributes:
        service_ms: mean time that a worker takes for a request, in milliseconds.
        workers: number of workers.
        rate: requests per second.
    """

    service_ms: float
    workers: int
    rate: float

    @property
    def utilisation(self) -> float:
        """The busy part of the workers' time; from 1 on, the queue grows without end."""
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
        """The answer's time that one request in a hundred exceeds, in milliseconds."""
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

    A request waits with Erlang's probability C, and then exponentially with the rate at which
    busy workers end requests, less that at which requests come. The answer's time is the sum
    of the wait and an exponential service that does not depend on it.
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

    After each service time D, the length M of the queue is max(M + A - c, 0), A being the
    Poisson number of requests that came. Its probabilities solve linear equations, and are
    geometric from some length on: H. Tijms, A First Course in Stochastic Models, 2003, 9.6.2.
    They give the waits: G. J. Franx, A simple solution for the M/D/c waiting time distribution,
    Operations Research Letters 29, 2001.
    """

    @property
    def mean_wait_ms(self) -> float:
        """The mean wait of all requests, in milliseconds; infinite in overload, by Little's law."""
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
        """The probabilities of the queue's lengths, and the ratio of those beyond the last."""
        load, workers = self.utilisation * self.workers, self.workers
        ratio = self._ratio
        last = min(math.ceil(-35 / math.log(ratio)), math.ceil(50 + 15 * math.sqrt(workers)))
        lengths = np.arange(last + 1)
        # Row j, column k: the probability of length j after length k.
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
        """The ratio of the probabilities of a long queue and of one shorter by one."""

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

    That is the most that `jobQueueSize` should say.
    """
    return max(0, math.floor((timeout_ms - service_ms) * workers / service_ms))


def machines(
    service: type[Queue], service_ms: float, workers: int, rate: float, p99_ms: float
) -> int:
    """Return the number of machines, each with a queue of its own and an equal part of the rate.

    Args:
        service: how service times vary.
        service_ms: as in `Queue`.
        workers: of one machine.
        rate: of all requests, per second.
        p99_ms: time in which 99 % of the requests are to be answered.

    Raises:
        ValueError: the service alone takes one request in a hundred longer.
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
