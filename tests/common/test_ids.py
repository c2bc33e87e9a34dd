"""Identifiers sort by time and never repeat."""

from __future__ import annotations

from uuid import RFC_4122

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.ids import uuid7

pytestmark = pytest.mark.unit

moments = st.integers(0, (1 << 48) * 1_000_000 - 10**12 - 1)


@given(moments)
def test_an_id_holds_its_version_variant_and_milliseconds(nanoseconds: int) -> None:
    made = uuid7(nanoseconds)
    assert (made.version, made.variant) == (7, RFC_4122)
    assert made.int >> 80 == nanoseconds // 1_000_000


@given(moments, st.integers(1_000, 10**12))
def test_an_id_of_a_later_microsecond_sorts_later(nanoseconds: int, later: int) -> None:
    assert uuid7(nanoseconds) < uuid7(nanoseconds + later)


def test_ids_of_the_same_moment_differ() -> None:
    assert len({uuid7(0) for _ in range(1000)}) == 1000
