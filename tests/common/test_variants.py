from __future__ import annotations

import pytest

from tests import variants

pytestmark = pytest.mark.unit


def test_what_ran_and_what_did_not_is_told_by_the_servers_that_are_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable in variants.VARIABLES.values():
        monkeypatch.delenv(variable, raising=False)
    assert variants.told() == (
        "variants: ran plain; not run: timescaledb (no TIMESCALE_DSN), citus (no CITUS_DSN),"
        " a further node of citus (no CITUS_DSN)"
    )
    monkeypatch.setenv("CITUS_DSN", "postgresql://postgres@127.0.0.1/postgres")
    assert variants.given() == {"citus": "postgresql://postgres@127.0.0.1/postgres"}
    assert variants.told() == (
        "variants: ran plain, citus, a further node of citus;"
        " not run: timescaledb (no TIMESCALE_DSN)"
    )
    monkeypatch.setenv("TIMESCALE_DSN", "postgresql://postgres@127.0.0.1/postgres")
    assert variants.told() == (
        "variants: ran plain, timescaledb, citus, a further node of citus; not run: none"
    )
