"""`mindweave NAME…`: which services, which roles, and what ends the start at once."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from common.background import BOTH, Role
from fleet.cli import app
from fleet.named import placed
from fleet.services import UnknownRole, owners, parse_name

pytestmark = pytest.mark.unit

SECRET = "a secret of the tests, longer than needed"


def test_a_name_stands_for_both_roles_and_may_name_one() -> None:
    assert parse_name("team") == ("team", BOTH)
    assert parse_name("usage_tracker:work") == ("usage_tracker", frozenset({Role.WORK}))
    with pytest.raises(UnknownRole, match="team:sleep: a role is serve or work"):
        parse_name("team:sleep")


def test_several_services_share_a_process_and_roles_of_one_add_up() -> None:
    found = {p.service.name: p.roles for p in placed(["team", "auth:serve", "auth:work"])}

    assert found == {"team": BOTH, "auth": BOTH}


def test_those_that_own_a_database_are_known_without_their_code() -> None:
    by_name = {owner.name: owner.migrations for owner in owners()}

    assert set(by_name) == {"auth", "account", "team", "project", "usage_tracker", "analytics"}
    assert all([*folder.glob("0001_*.sql")] for folder in by_name.values())


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        ({}, "MINDWEAVE_SECRET: "),
        ({"MINDWEAVE_SECRET": SECRET, "MINDWEAVE_ADDRESSES": '{"auth": "here"}'}, "ADDRESSES"),
        ({"MINDWEAVE_SECRET": SECRET}, "KAFKA_BROKERS or REDIS_URL: is needed"),
        (
            {"MINDWEAVE_SECRET": SECRET, "REDIS_URL": "redis://127.0.0.1:1"},
            "DATABASE_URL or DATABASE_URL_TEAM: is needed",
        ),
    ],
)
def test_a_setting_that_is_wrong_or_missing_ends_the_start_with_one_line(
    environment: dict[str, str], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DATABASE_URL", "REDIS_URL", "KAFKA_BROKERS", "MINDWEAVE_SECRET"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    result = CliRunner().invoke(app, ["team"])

    assert result.exit_code == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("mindweave: ")
    assert complaint in last


def test_what_is_no_service_is_no_command() -> None:
    result = CliRunner().invoke(app, ["mail"])

    assert result.exit_code == 2
    assert "mail" in result.stderr
