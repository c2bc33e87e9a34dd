from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest
import redis

from fleet.embedded import DataFolder, DidNotStart, InUse, Postgres, Valkey
from fleet.embedded.folder import read_run, start_together
from tests.common.waiting import eventually

pytestmark = pytest.mark.store

# Starts a broker in a folder, and dies just before it does something with the file of its pid.
KILLED = """
import os, signal, sys
from pathlib import Path
from fleet.embedded import Valkey

folder, event = sys.argv[1:]

def die(told, given):
    if told == event and str(given[0]).endswith("broker.new"):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(die)
Valkey(Path(folder) / "broker", "password", durable=True).start()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[DataFolder]:
    made = DataFolder(tmp_path / "data")
    yield made
    for server in (made.postgres(), made.broker(), made.cache()):
        server.stop()
    made.close()


async def _run(server: Postgres, statement: str) -> object:
    connection = await asyncpg.connect(server.admin_dsn)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


def _kill(pid: int | None) -> None:
    assert pid is not None
    process = psutil.Process(pid)
    process.kill()
    psutil.wait_procs([process], 10)


async def test_postgres_keeps_its_data_over_a_stop(folder: DataFolder) -> None:
    first = folder.postgres()
    first.start()
    await _run(first, "CREATE TABLE kept AS SELECT 42 AS answer")
    first.stop()

    again = folder.postgres()
    again.start()

    assert await _run(again, "SELECT answer FROM kept") == 42
    assert first.pid is not None


async def test_postgres_confirms_only_what_is_on_disk(folder: DataFolder) -> None:
    server = folder.postgres()
    server.start()

    for setting in ("fsync", "synchronous_commit", "full_page_writes"):
        assert await _run(server, f"SHOW {setting}") == "on"
    assert str(await _run(server, "SHOW server_version")).startswith("18")


async def test_postgres_lets_nobody_in_without_its_password(folder: DataFolder) -> None:
    server = folder.postgres()
    server.start()

    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(server.admin_dsn.replace(folder.password("postgres"), "guess"))


@pytest.mark.parametrize("event", ["open", "os.rename"])
async def test_a_server_whose_parent_is_killed_before_it_has_noted_it_does_not_run_on(
    event: str, tmp_path: Path
) -> None:
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", KILLED, tmp_path, event], check=False, timeout=60
    )
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "broker.pid").exists()
    await eventually(lambda: not _working_in(tmp_path))


def _working_in(folder: Path) -> list[int]:
    lines = ((p.pid, p.info["cmdline"]) for p in psutil.process_iter(["cmdline"]))
    return [pid for pid, line in lines if any(str(folder) in word for word in line or ())]


async def test_a_server_that_outlived_its_parent_is_adopted(folder: DataFolder) -> None:
    left_behind = [folder.postgres(), folder.broker()]
    start_together(left_behind)

    again = [folder.postgres(), folder.broker()]
    start_together(again)

    assert [server.pid for server in again] == [server.pid for server in left_behind]


async def test_postgres_recovers_from_a_kill(folder: DataFolder) -> None:
    server = folder.postgres()
    server.start()
    await _run(server, "CREATE TABLE kept AS SELECT 42 AS answer")
    _kill(server.pid)

    server.start()

    assert await _run(server, "SELECT answer FROM kept") == 42


def test_the_broker_keeps_what_it_acknowledged_over_a_kill(folder: DataFolder) -> None:
    server = folder.broker()
    server.start()
    with redis.Redis.from_url(server.url) as client:
        client.set("kept", "42")
        assert client.config_get("appendfsync") == {"appendfsync": "always"}
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    _kill(server.pid)

    server.start()

    with redis.Redis.from_url(server.url) as client:
        assert client.get("kept") == b"42"


def test_a_server_is_told_nothing_of_our_environment_but_what_it_needs(
    folder: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINDWEAVE_SECRET", "for our own processes alone")
    monkeypatch.setenv("LC_TIME", "C")
    server = folder.broker()
    server.start()

    environment = psutil.Process(server.pid).environ()
    assert environment["PATH"] == os.environ["PATH"]
    assert environment["LC_TIME"] == "C"
    assert not [name for name in environment if name.startswith(("MINDWEAVE_", "PYTEST_"))]


def test_the_cache_is_another_process_that_forgets(folder: DataFolder) -> None:
    broker, cache = folder.broker(), folder.cache()
    start_together([broker, cache])

    with redis.Redis.from_url(cache.url) as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "allkeys-lru"}
        assert client.config_get("appendonly") == {"appendonly": "no"}
    assert cache.pid != broker.pid


def test_a_server_that_does_not_answer_any_more_is_replaced(folder: DataFolder) -> None:
    stuck = folder.broker()
    stuck.start()
    before = stuck.pid
    assert before is not None
    os.kill(before, signal.SIGSTOP)

    again = folder.broker()
    again.start()

    assert again.pid != before
    with redis.Redis.from_url(again.url) as client:
        assert client.ping()


def test_a_pid_file_that_names_a_stranger_ends_nobody(folder: DataFolder) -> None:
    stranger = os.getpid()
    (folder.path / "broker.pid").write_text(str(stranger))
    server = folder.broker()

    assert server.process is None
    server.start()

    assert server.pid not in (None, stranger)


async def test_a_folder_too_deep_for_a_socket_is_served_by_loopback(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / ("deep" * 30))
    postgres, broker = folder.postgres(), folder.broker()
    start_together([postgres, broker])
    try:
        assert "127.0.0.1" in postgres.admin_dsn
        assert await _run(postgres, "SELECT 1") == 1
        with redis.Redis.from_url(broker.url) as client:
            assert client.ping()
        again = folder.postgres()
        again.start()
        assert again.admin_dsn == postgres.admin_dsn
    finally:
        postgres.stop()
        broker.stop()
        folder.close()


def test_a_server_that_cannot_start_says_why(folder: DataFolder) -> None:
    server = folder.postgres()
    server.folder.mkdir()
    (server.folder / "PG_VERSION").write_text("12\n")

    with pytest.raises(DidNotStart, match="PostgreSQL 12"):
        server.start()


def test_a_wrong_configuration_shows_the_last_lines_of_the_log(folder: DataFolder) -> None:
    server = Valkey(folder.path / "broker", "pass word", durable=True)

    with pytest.raises(DidNotStart, match="requirepass"):
        server.start(timeout=3)


def test_a_data_folder_belongs_to_one_process_at_a_time(tmp_path: Path) -> None:
    first = DataFolder(tmp_path / "data")

    with pytest.raises(InUse, match=str(os.getpid())):
        DataFolder(tmp_path / "data")

    first.close()
    DataFolder(tmp_path / "data").close()


def test_a_data_folder_is_closed_to_others_and_its_secret_stays(tmp_path: Path) -> None:
    first = DataFolder(tmp_path / "data")
    secret = first.secret
    first.close()
    again = DataFolder(tmp_path / "data")
    again.close()

    assert again.secret == secret
    assert len(secret) == 64
    assert stat.S_IMODE(again.path.stat().st_mode) == 0o700
    assert stat.S_IMODE((again.path / "secret").stat().st_mode) == 0o600


def test_what_runs_is_told_only_while_it_runs(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    assert read_run(folder.path) is None

    folder.write_run({"address": "127.0.0.1:8080"})
    assert read_run(folder.path) == {"address": "127.0.0.1:8080"}
    assert stat.S_IMODE((folder.path / "run.json").stat().st_mode) == 0o600

    folder.close()
    assert read_run(folder.path) is None
