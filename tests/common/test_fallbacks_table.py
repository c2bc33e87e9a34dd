"""docs/fallbacks.md names, for each of its rows, tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
ROWS = [
    line
    for line in (ROOT / "docs" / "fallbacks.md").read_text().splitlines()
    if line.startswith("| ")
    and " → " in line.split("|")[1]
    and not line.startswith(("| caller →", "| service →"))
]


def test_the_table_has_rows() -> None:
    edges = {row.split("|")[1].strip() for row in ROWS}
    assert {"gateway → auth", "account → team", "usage_tracker → project"} <= edges


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_a_row_is_shown_by_tests_that_exist(row: str) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row.split("|")[-2])
    assert named
    for file, name in named:
        source = (ROOT / file).read_text()
        assert re.search(rf"^(async )?def {name}\(", source, re.MULTILINE), (file, name)
