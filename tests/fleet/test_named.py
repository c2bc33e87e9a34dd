"""`mindweave NAME…`: which services, which roles, and what ends the start at once."""

from __future__ import annotations

import pytest

from common.background import BOTH, Role
from fleet.__main__ import main
from fleet.named import placed
from fleet.services import UnknownRole, owners, parse_name

pytestmark = pytest.mark.unit

SECRET = "a secret of the tests, longer than needed"


def run(
    names: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[object, str]:
    """The exit code of ``mindweave NAMES`` in this process, and what it said on standard error."""
    monkeypatch.setattr("sys.argv", ["mindweave", *names])
    # What stays as long as a process does; here it is one with other tests.
    monkeypatch.setattr("fleet.__main__.begin", lambda: None)
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, capsys.readouterr().err


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
    environment: dict[str, str],
    complaint: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("DATABASE_URL", "REDIS_URL", "KAFKA_BROKERS", "MINDWEAVE_SECRET"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    code, said = run(["team"], monkeypatch, capsys)

    assert code == 1
    last = said.splitlines()[-1]
    assert last.startswith("mindweave: ")
    assert complaint in last


def test_what_is_no_service_is_no_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = run(["mail"], monkeypatch, capsys)

    assert code == 2
    assert "mail" in said


def test_what_is_no_service_beside_one_is_told_with_those_there_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = run(["team", "mail"], monkeypatch, capsys)

    assert code == 1
    assert said.startswith("mindweave: there is no service mail; there are auth, ")
