"""The planner against published figures, Erlang's own formula and a simulated queue."""

import heapq
import itertools
import math
import re
import sys
from fractions import Fraction

import numpy as np
import pytest

from visionserve_tools.commands.capacity import WORKERS, main
from visionserve_tools.server.queues import (
    Queue,
    erlang_c,
    machines,
    queue_size,
)


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
    clinic = Queue(service_ms=hour / 3, workers=3, rate=6 / 3600)
    assert clinic.utilisation == pytest.approx(2 / 3)
    assert clinic.waiting == pytest.approx(4 / 9)
    assert clinic.mean_wait_ms / hour == pytest.approx(0.148, abs=0.0005)


def test_the_call_centre_of_erlang_tables() -> None:
    """100 calls in half an hour, of 3 min each, 14 agents: the wait's published figures."""
    centre = Queue(service_ms=180_000, workers=14, rate=100 / 1800)
    assert centre.waiting == pytest.approx(0.174, abs=0.0005)
    assert centre.mean_wait_ms / 1000 == pytest.approx(7.8, abs=0.05)


def test_one_worker_is_the_mm1_queue() -> None:
    """Its answer's time is exponential, with the rate of service less that of requests."""
    queue = Queue(service_ms=40, workers=1, rate=20)
    assert queue.waiting == pytest.approx(0.8)
    assert queue.mean_wait_ms == pytest.approx(160)
    assert queue.p99_wait_ms == pytest.approx(40 / 0.2 * math.log(80))
    assert queue.p99_ms == pytest.approx(40 / 0.2 * math.log(100))


def test_a_few_of_many_workers_answer_in_the_services_own_time() -> None:
    """Where hardly a request waits, one in a hundred takes ln 100 times the mean by itself."""
    busy_half = 10 / 0.008 / 2
    assert Queue(8, 10, busy_half).p99_ms == pytest.approx(36.9, abs=0.1)
    assert Queue(8, 1000, 1).p99_ms == pytest.approx(8 * math.log(100))


@pytest.mark.parametrize(("workers", "load"), [(1, 0.5), (10, 0.8)])
def test_times_are_those_of_a_simulated_queue(workers: int, load: float) -> None:
    queue = Queue(service_ms=40, workers=workers, rate=25 * workers * load)
    random = np.random.default_rng(0)
    count = 400_000
    arrivals = np.cumsum(random.exponential(1000 / queue.rate, count))
    services = random.exponential(queue.service_ms, count)
    free = [0.0] * queue.workers
    waits = np.empty(count)
    for index, (arrival, time) in enumerate(zip(arrivals, services, strict=True)):
        start = max(arrival, free[0])
        waits[index] = start - arrival
        heapq.heapreplace(free, start + time)
    assert np.mean(waits > 1e-6) == pytest.approx(queue.waiting, rel=0.05)
    assert np.mean(waits) == pytest.approx(queue.mean_wait_ms, rel=0.05)
    assert np.quantile(waits, 0.99) == pytest.approx(queue.p99_wait_ms, rel=0.05)
    answers = waits + services
    assert np.quantile(answers, 0.99) == pytest.approx(queue.p99_ms, rel=0.03)
    for time in np.quantile(answers, (0.2, 0.5, 0.9)):
        assert np.mean(answers > time) == pytest.approx(queue.takes_over(float(time)), abs=0.01)


@pytest.mark.parametrize("workers", WORKERS)
def test_waits_grow_with_the_load(workers: int) -> None:
    shares = (0.1, 0.5, 0.7, 0.9, 0.99)
    queues = [Queue(40, workers, share * workers / 0.04) for share in shares]
    for less, more in itertools.pairwise(queues):
        assert less.waiting <= more.waiting
        assert less.mean_wait_ms <= more.mean_wait_ms
        assert less.p99_wait_ms <= more.p99_wait_ms
        assert less.p99_ms <= more.p99_ms


def test_a_shared_queue_waits_less() -> None:
    queues = [Queue(40, workers, 0.8 * workers / 0.04) for workers in WORKERS]
    for smaller, larger in itertools.pairwise(queues):
        assert smaller.p99_wait_ms > larger.p99_wait_ms


@pytest.mark.parametrize("rate", [25, 26])
def test_overload_waits_without_end(rate: float) -> None:
    queue = Queue(service_ms=40, workers=1, rate=rate)
    assert queue.waiting == 1
    assert math.isinf(queue.mean_wait_ms)
    assert math.isinf(queue.p99_wait_ms)
    assert math.isinf(queue.p99_ms)


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
    assert Queue(40, workers, rate / count).p99_ms <= 300
    assert count == 1 or Queue(40, workers, rate / (count - 1)).p99_ms > 300


def test_more_load_or_less_time_takes_more_machines() -> None:
    by_rate = [machines(40, 2, rate, 300) for rate in (10, 100, 1000, 10_000)]
    assert by_rate == sorted(set(by_rate))
    by_time = [machines(40, 2, 1000, p99_ms) for p99_ms in (1000, 300, 190)]
    assert by_time == sorted(set(by_time))


def test_what_takes_longer_than_its_time_cannot_be_planned() -> None:
    with pytest.raises(ValueError, match=r"in 180 ms: .* over 184.2 ms"):
        machines(40, 8, 100, p99_ms=180)


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> str:
        words = ["visionserve capacity", "--service-time-ms", "8", *arguments]
        monkeypatch.setattr(sys, "argv", words)
        assert main() == 0
        return capsys.readouterr().out

    assert "| 10 | 625.0 | 50% | 3.6% | 0.1 ms | 2.1 ms | 36.9 ms | 37,490 |" in run()
    planned = run("--rate", "1000", "--workers", "1", "2", "8", "--p99-ms", "100")
    found = re.findall(r"Machines of (\d) workers that answer 99 % in 100 ms: (\d+)\n", planned)
    assert found == [("1", "13"), ("2", "5"), ("8", "2")]  # As when SciPy found the roots.
    with pytest.raises(SystemExit, match="2"):
        run("--p99-ms", "100")
    refused = capsys.readouterr()
    assert refused.out == ""
    assert refused.err.endswith("error: --p99-ms counts machines, which needs --rate\n")
    with pytest.raises(SystemExit, match="2"):
        run("--rate", "nan")
