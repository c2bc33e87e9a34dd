"""What a platform stands on: which broker, and that a data folder keeps to its own."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
import pytest

from common.settings import SettingsError, load_settings
from fleet import surroundings as module
from fleet.embedded import DataFolder, Valkey
from fleet.embedded.folder import OtherBroker
from fleet.environment import variables_of
from fleet.events import broker_settings
from fleet.surroundings import KAFKA, REDIS_STREAMS, Surroundings, surroundings, watch
from tests.common.waiting import eventually

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


SERVERS = {
    "DATABASE_URL": "postgresql://127.0.0.1:1/postgres",
    "KAFKA_BROKERS": "127.0.0.1:1",
    "REDIS_CACHE_URL": "redis://127.0.0.1:1",
}


@pytest.fixture
def _named_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SERVERS.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("_named_servers")
def test_what_settings_name_is_not_started(tmp_path: Path) -> None:
    with surroundings(tmp_path, KAFKA) as found:
        assert found.servers == []
        assert found.facts()["broker"] == KAFKA
        assert found.facts()["kafka_brokers"] == "127.0.0.1:1"
    assert not (tmp_path / "events").exists()


def test_the_kafka_of_a_folder_asks_for_a_password_that_the_commands_find(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in SERVERS:
        monkeypatch.delenv(name, raising=False)
    folder = DataFolder(tmp_path)
    found = Surroundings(folder, load_settings(secret="x" * 40), KAFKA, [folder.kafka()])
    found.name_servers()
    folder.write_run(found.facts())

    settings = broker_settings(tmp_path)

    assert settings.kafka_brokers == found.settings.kafka_brokers
    assert settings.kafka_security_protocol == "SASL_PLAINTEXT"
    assert settings.kafka_password == folder.password("kafka")
    folder.close()


@pytest.mark.usefixtures("_named_servers")
@pytest.mark.parametrize("said", ["environment", "file", "nowhere"])
def test_the_secret_of_the_folder_is_for_where_no_other_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    secret = "one that is shared with other machines"
    file = tmp_path / "mindweave.toml"
    file.write_text('log_level = "error"\n' + (f'secret = "{secret}"\n' if said == "file" else ""))
    monkeypatch.setenv("MINDWEAVE_CONFIG", str(file))
    monkeypatch.delenv("MINDWEAVE_SECRET", raising=False)
    if said == "environment":
        monkeypatch.setenv("MINDWEAVE_SECRET", secret)

    with surroundings(tmp_path / "data") as found:
        assert found.settings.log_level == "error"
        assert found.settings.secret == (found.folder.secret if said == "nowhere" else secret)


def test_settings_are_the_same_when_another_process_reads_them_as_variables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = load_settings(
        secret="x" * 40,
        cache_url="redis://127.0.0.1:1",
        kafka_username="me",
        limits={"failed_logins": 3},
        addresses={"team": "127.0.0.1:1,127.0.0.1:2"},
        cors_origins=("https://a.test",),
        rpc_timeout=2.5,
        partitions=7,
    )
    variables = variables_of(settings, but={"kafka_username"})
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert load_settings() == settings.model_copy(update={"kafka_username": None})
    assert len(variables) == 7


async def test_a_server_that_cannot_be_looked_at_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WATCH_SECONDS", 0.01)

    class Server(Valkey):
        looks = 0
        started = False

        @property
        def process(self) -> psutil.Process | None:
            self.looks += 1
            if self.looks == 1:
                raise psutil.NoSuchProcess(1)
            return None

        def start(self, timeout: float = 120.0) -> None:
            self.started = True

    server = Server(tmp_path / "broker", "password", durable=True)
    watching = asyncio.create_task(watch([server]))
    await eventually(lambda: server.started or watching.done())
    watching.cancel()
    assert server.started
