"""The planner against published figures, Erlang's own formula and a simulated queue."""

import heapq
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from scripts.capacity import WORKERS, Server, erlang_c, machines, queue_size


def by_definition(workers: int, erlangs: int) -> Fraction:
    """Erlang's formula as he wrote it, in exact fractions."""
    last = Fraction(erlangs**workers, math.factorial(workers)) * Fraction(
        workers, workers - erlangs
    )
    return last / (sum(Fraction(erlangs**k, math.factorial(k)) for k in range(workers)) + last)


@pytest.mark.parametrize(
    ("workers", "erlangs"), [(1, 0), (2, 1), (3, 2), (5, 4), (10, 8), (20, 16), (100, 95)]
)
def test_erlang_c_is_its_definition(workers: int, erlangs: int) -> None:
    expected = float(by_definition(workers, erlangs))
    assert erlang_c(workers, erlangs) == pytest.approx(expected, rel=1e-12)


def test_a_thousand_workers_are_no_overflow() -> None:
    assert erlang_c(1000, 990) == pytest.approx(float(by_definition(1000, 990)), rel=1e-9)


def test_the_textbook_clinic() -> None:
    """Gross and Harris, Fundamentals of Queueing Theory: 6 patients an hour, 3 doctors, 20 min."""
    hour = 3_600_000
    clinic = Server(service_ms=hour / 3, workers=3, rate=6 / 3600)
    assert clinic.utilisation == pytest.approx(2 / 3)
    assert clinic.waiting == pytest.approx(4 / 9)
    assert clinic.mean_wait_ms / hour == pytest.approx(0.148, abs=0.0005)


def test_the_call_centre_of_erlang_tables() -> None:
    """100 calls in half an hour, of 3 min each, 14 agents: the wait's published figures."""
    centre = Server(service_ms=180_000, workers=14, rate=100 / 1800)
    assert centre.waiting == pytest.approx(0.174, abs=0.0005)
    assert centre.mean_wait_ms / 1000 == pytest.approx(7.8, abs=0.05)


def test_one_worker_is_the_mm1_queue() -> None:
    server = Server(service_ms=40, workers=1, rate=20)
    assert server.waiting == pytest.approx(0.8)
    assert server.mean_wait_ms == pytest.approx(160)
    assert server.p99_wait_ms == pytest.approx(40 / 0.2 * math.log(80))


def test_waits_are_those_of_a_simulated_queue() -> None:
    server = Server(service_ms=40, workers=4, rate=70)
    random = np.random.default_rng(0)
    count = 400_000
    arrivals = np.cumsum(random.exponential(1000 / server.rate, count))
    services = random.exponential(server.service_ms, count)
    free = [0.0] * server.workers
    waits = []
    for arrival, service in zip(arrivals, services, strict=True):
        start = max(arrival, free[0])
        waits.append(start - arrival)
        heapq.heapreplace(free, start + service)
    assert np.mean(np.array(waits) > 0) == pytest.approx(server.waiting, rel=0.05)
    assert np.mean(waits) == pytest.approx(server.mean_wait_ms, rel=0.05)
    assert np.quantile(waits, 0.99) == pytest.approx(server.p99_wait_ms, rel=0.05)


@pytest.mark.parametrize("workers", WORKERS)
def test_waits_grow_with_the_load(workers: int) -> None:
    shares = (0.1, 0.5, 0.7, 0.9, 0.99)
    servers = [Server(40, workers, share * workers / 0.04) for share in shares]
    for less, more in itertools.pairwise(servers):
        assert less.waiting < more.waiting
        assert less.mean_wait_ms < more.mean_wait_ms
        assert less.p99_wait_ms <= more.p99_wait_ms


def test_a_shared_queue_waits_less() -> None:
    servers = [Server(40, workers, 0.8 * workers / 0.04) for workers in WORKERS]
    for smaller, larger in itertools.pairwise(servers):
        assert smaller.p99_wait_ms > larger.p99_wait_ms


@pytest.mark.parametrize("rate", [25, 26])
def test_overload_waits_without_end(rate: float) -> None:
    server = Server(service_ms=40, workers=1, rate=rate)
    assert server.waiting == 1
    assert math.isinf(server.mean_wait_ms)
    assert math.isinf(server.p99_wait_ms)


@pytest.mark.parametrize("workers", WORKERS)
def test_the_last_in_a_full_queue_is_answered_in_time(workers: int) -> None:
    def answered_ms(queued: int) -> float:
        return queued / workers * 40 + 40

    longest = queue_size(40, workers, 30_000)
    assert answered_ms(longest) <= 30_000 < answered_ms(longest + 1)
    assert queue_size(40_000, workers, 30_000) == 0


@pytest.mark.parametrize("rate", [1, 100, 3000])
@pytest.mark.parametrize("workers", [1, 2, 8])
def test_there_are_just_enough_machines(workers: int, rate: int) -> None:
    count = machines(40, workers, rate, p99_ms=300)
    assert Server(40, workers, rate / count).p99_ms <= 300
    assert count == 1 or Server(40, workers, rate / (count - 1)).p99_ms > 300


def test_more_load_or_less_time_takes_more_machines() -> None:
    by_rate = [machines(40, 2, rate, 300) for rate in (10, 100, 1000, 10_000)]
    assert by_rate == sorted(set(by_rate))
    by_time = [machines(40, 2, 1000, p99_ms) for p99_ms in (1000, 300, 100, 50)]
    assert by_time == sorted(set(by_time))


def test_what_takes_longer_than_its_time_cannot_be_planned() -> None:
    with pytest.raises(ValueError, match="30 ms"):
        machines(40, 8, 100, p99_ms=30)
