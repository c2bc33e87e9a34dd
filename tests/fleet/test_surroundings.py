"""What a platform stands on: which broker, and that a data folder keeps to its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.settings import SettingsError
from fleet.embedded import DataFolder
from fleet.embedded.folder import OtherBroker
from fleet.surroundings import KAFKA, REDIS_STREAMS, surroundings

pytestmark = pytest.mark.unit


def test_a_folder_keeps_to_the_broker_that_it_began_with(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    folder.keep_to(KAFKA)
    folder.keep_to(KAFKA)

    with pytest.raises(OtherBroker, match=r"on kafka, and redis-streams .*--broker kafka.*--data"):
        folder.keep_to(REDIS_STREAMS)
    folder.close()


def test_a_folder_from_before_there_was_a_choice_holds_redis_streams(tmp_path: Path) -> None:
    (tmp_path / "broker").mkdir()
    folder = DataFolder(tmp_path)

    with pytest.raises(OtherBroker, match="on redis-streams"):
        folder.keep_to(KAFKA)
    folder.keep_to(REDIS_STREAMS)
    folder.close()


def test_a_broker_that_is_named_and_another_that_is_asked_for_are_a_contradiction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAFKA_BROKERS", "127.0.0.1:1")

    with (
        pytest.raises(SettingsError, match="KAFKA_BROKERS: is set, and --broker redis-streams"),
        surroundings(tmp_path, REDIS_STREAMS),
    ):
        pass


def test_what_settings_name_is_not_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "DATABASE_URL": "postgresql://127.0.0.1:1/postgres",
        "KAFKA_BROKERS": "127.0.0.1:1",
        "REDIS_CACHE_URL": "redis://127.0.0.1:1",
    }.items():
        monkeypatch.setenv(name, value)

    with surroundings(tmp_path, KAFKA) as found:
        assert found.servers == []
        assert found.facts()["broker"] == KAFKA
        assert found.facts()["kafka_brokers"] == "127.0.0.1:1"
    assert not (tmp_path / "events").exists()
