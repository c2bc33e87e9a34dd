"""How long a test waits, by how busy the machine is."""

from __future__ import annotations

import pytest

from tests.common.waiting import while_busy

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("load", "seconds"), [(0.0, 30.0), (2.0, 30.0), (3.0, 45.0), (8.0, 120.0), (50.0, 120.0)]
)
def test_a_limit_is_longer_only_while_the_cores_are_busy_and_at_most_four_times(
    monkeypatch: pytest.MonkeyPatch, load: float, seconds: float
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("os.getloadavg", lambda: (load, 99.0, 99.0))
    assert while_busy(30.0) == seconds
