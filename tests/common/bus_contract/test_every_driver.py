"""No driver is left out."""

from __future__ import annotations

import sys
from collections import Counter

import pytest

from tests.common.brokers import DRIVERS

pytestmark = pytest.mark.bus


def test_every_driver_ran(
    ran: Counter[str], capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    with capsys.disabled():
        for driver, tests in sorted(ran.items()):
            sys.stdout.write(f"\nbus contract: {driver}: {tests} tests\n")
    assert {driver.split(" ")[0] for driver in ran} == set(DRIVERS)
