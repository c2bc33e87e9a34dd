from __future__ import annotations

import pytest

from common.addresses import address_line

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("host", "line"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::9", "2001:db8:1:3::/64"),
        ("testclient", "testclient"),
        ("", ""),
    ],
)
def test_an_address_counts_as_the_line_it_comes_from(host: str, line: str) -> None:
    assert address_line(host) == line
