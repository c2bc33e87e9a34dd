"""A backup from the middle of a replay restores to exact sums: with the broker, and without."""

from __future__ import annotations

import asyncio

import pytest

from tests.e2e.drill import TRACE, Report, drill

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    assert TRACE.is_file(), f"the real trace is not at {TRACE}; set MINDWEAVE_TRACE"
    return asyncio.run(drill(tmp_path_factory.mktemp("drill"), TRACE, "all", ()))


def test_without_the_database_nothing_is_lost_or_doubled_and_every_sum_is_exact(
    report: Report,
) -> None:
    found = report.without_database
    assert report.accepted > 15_000
    assert found.wrong == []
    assert (found.lost, found.doubled, found.nano_dollars_off) == (0, 0, 0)


def test_without_anything_else_the_backup_restores_what_was_accepted_before_it(
    report: Report,
) -> None:
    found = report.without_anything
    assert found.wrong == []
    assert 0 < found.lost <= report.accepted - report.backed_up
    assert (found.doubled, found.nano_dollars_off) == (0, 0)
