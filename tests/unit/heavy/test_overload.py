"""What an overload is judged by."""

import math
from dataclasses import replace

import pytest

from tests.stress.clients import Sent
from tests.stress.overload import Overload, least
from tests.stress.watch import Reading

# 100 requests, one each 0.1 s, each answered after 2 s: the last one at 11.9 s.
ANSWERED = [Sent(0.1 * number, 2.0, (), "right") for number in range(100)]
SHED = Sent(1.0, 0.01, ("503",), "refused")
LATER = Sent(12.5, 0.5, (), "right")
SEEN = Overload([*ANSWERED, SHED, SHED], [], [LATER], end=12.0)


def test_requests_are_answered_shed_or_failed() -> None:
    assert (len(SEEN.answered), SEEN.shed, SEEN.failed) == (100, 2, 0)
    lost = Sent(1.0, 60.0, ("ReadTimeout",), "lost")
    assert replace(SEEN, account=[*SEEN.account, lost], patient=[lost]).failed == 2


def test_a_full_queue_takes_the_time_of_its_requests() -> None:
    """Two workers answer 101 requests in 11.9 s, and so 52 in 52 / 101 of that."""
    assert SEEN.service == pytest.approx(2 * 11.9 / 101)
    assert SEEN.bound == pytest.approx(52 / 101 * 11.9)


def test_one_answer_in_a_hundred_is_slower_than_the_p99() -> None:
    slow = [Sent(0.0, float(number), (), "right") for number in range(1, 101)]
    assert 99 < replace(SEEN, account=[*slow, SHED]).p99 <= 100


def test_the_server_recovers_with_its_first_later_answer() -> None:
    assert SEEN.recovery == pytest.approx(1.0)
    assert replace(SEEN, probed=[Sent(11.0, 2.0, (), "right")]).recovery == math.inf


def test_memory_is_the_least_of_each_second() -> None:
    megabytes = [90, 78, 95, 79, 92, 80, 96, 96, 96, 96]
    assert least([Reading(0, one, 9) for one in megabytes]) == [78, 80]
