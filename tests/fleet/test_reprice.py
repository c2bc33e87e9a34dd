"""``mindweave reprice`` where there is nothing to do it with."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest
from typer.testing import CliRunner

from fleet.cli import app

pytestmark = pytest.mark.unit


def run(data: Path, *times: str) -> tuple[int, str]:
    since, until = times
    options = ["--org", str(uuid4()), "--from", since, "--to", until, "--data", str(data)]
    done = CliRunner().invoke(app, ["reprice", *options])
    return done.exit_code, done.output


def test_without_a_platform_it_ends_with_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MINDWEAVE_SECRET", "DATABASE_URL", "MINDWEAVE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    code, told = run(tmp_path, "2026-11-20", "2026-11-21T12:00:00")
    assert code == 1
    assert "No platform runs in" in told


@pytest.mark.parametrize("until", ["2026-11-20", "2026-11-19T23:59:59", "yesterday", "9999-12-31"])
def test_a_period_that_is_none_is_refused(tmp_path: Path, until: str) -> None:
    code, _ = run(tmp_path, "2026-11-20", until)
    assert code == 2
