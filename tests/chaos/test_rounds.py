"""Which faults a round has."""

from __future__ import annotations

from random import Random

import pytest

from fleet.surroundings import BROKERS
from tests.chaos.faults.catalog import FAULTS, beside, short_round, whole_round

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("broker", BROKERS)
def test_a_short_round_has_many_kinds_once_and_short_rounds_together_have_all(broker: str) -> None:
    rounds = [short_round(broker, Random(seed)) for seed in range(100)]

    assert all(len(set(names)) == len(names) >= 12 for names in rounds)
    assert set().union(*rounds) == set(whole_round(broker, Random(1)))
    assert short_round(broker, Random(7)) == short_round(broker, Random(7))


def test_both_brokers_together_have_every_fault() -> None:
    assert {name for b in BROKERS for name in whole_round(b, Random(1))} == set(FAULTS)


@pytest.mark.parametrize("broker", BROKERS)
def test_what_is_killed_in_the_middle_of_a_fault_is_there_and_another_server(broker: str) -> None:
    there = whole_round(broker, Random(1))
    for name in there:
        for seed in range(20):
            other = beside(name, broker, Random(seed))
            assert other is None or other in there
            assert other is None or other.split()[-1] not in name
