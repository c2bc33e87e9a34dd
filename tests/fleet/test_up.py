"""`mindweave up` itself: what it tells its processes, and what it does when the supervisor ends."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from http.client import IncompleteRead
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from common.rpc.contract import operations
from common.settings import load_settings
from fleet.embedded import DataFolder, DidNotStart
from fleet.layout import up
from fleet.layout.envoy import fronts
from fleet.layout.processes import placed, scaled
from fleet.layout.supervisor import Remote
from fleet.layout.up import ENVOY, Up
from fleet.surroundings import Surroundings
from tests.common.logs import capture_logs
from tests.common.waiting import eventually

pytestmark = pytest.mark.unit

FILE = """
secret = "a secret of the tests, longer than needed"
kafka_brokers = "127.0.0.1:1"
kafka_username = "mindweave"
database_url = "postgresql://admin:otters@127.0.0.1:1/postgres"
rpc_timeout = 2.5
"""


@pytest.fixture
def platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Up]:
    """One that is configured by a file, and not started."""
    file = tmp_path / "mindweave.toml"
    file.write_text(FILE)
    for name in ("MINDWEAVE_SECRET", "DATABASE_URL", "REDIS_URL", "KAFKA_BROKERS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MINDWEAVE_CONFIG", str(file))
    monkeypatch.setenv("MINDWEAVE_LIMITS__FAILED_LOGINS", "3")

    async def migrated(*_: Any) -> None:
        """There is no database."""

    monkeypatch.setattr(up, "migrate_all", migrated)
    folder = DataFolder(tmp_path / "data")
    processes = placed(scaled([]), {"gateway", "usage_tracker"}, count(20_000))
    yield Up(Surroundings(folder, load_settings(), "kafka"), "127.0.0.1:1", processes, 1)
    folder.close()


def configured(platform: Up, tmp_path: Path) -> Callable[[str], dict[str, Any]]:
    """What is written for a process, or for Envoy itself, by its name."""
    platform.configure(fronts(operations().values()))

    def read(name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((tmp_path / "data" / "up" / name).read_text())
        return found

    return read


def test_a_process_is_told_what_the_file_says_and_neither_the_file_nor_the_administrator(
    platform: Up, tmp_path: Path
) -> None:
    environment = configured(platform, tmp_path)("team-1.json")["environment"]

    assert environment["KAFKA_BROKERS"] == "127.0.0.1:1"
    assert environment["MINDWEAVE_KAFKA_USERNAME"] == "mindweave"
    assert environment["MINDWEAVE_RPC_TIMEOUT"] == "2.5"
    assert json.loads(environment["MINDWEAVE_LIMITS"]) == {"failed_logins": 3}
    assert {name for name in environment if "DATABASE" in name} == {"DATABASE_URL_TEAM"}
    assert "otters" not in str(environment)
    assert "MINDWEAVE_CONFIG" not in environment
    assert "MINDWEAVE_LIMITS__FAILED_LOGINS" not in environment


def test_the_proxy_is_told_no_settings(
    platform: Up, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://admin:otters@127.0.0.1:1/postgres")
    environment = configured(platform, tmp_path)("envoy.json")["environment"]

    assert "PATH" in environment
    assert not [name for name in environment if name.startswith(("MINDWEAVE", "DATABASE"))]


def test_a_process_drains_for_longer_than_the_proxy_takes_to_see_it(
    platform: Up, tmp_path: Path
) -> None:
    read = configured(platform, tmp_path)
    told = float(read("team-1.json")["environment"]["MINDWEAVE_DRAIN_DELAY"])

    for cluster in read("envoy.yaml")["static_resources"]["clusters"]:
        (check,) = cluster["health_checks"]
        seen = sum(float(check[name].rstrip("s")) for name in ("interval", "timeout"))
        assert told > seen


def test_a_supervisor_that_ends_during_the_start_ends_the_start_with_its_last_lines(
    platform: Up, tmp_path: Path
) -> None:
    # Its configuration was never written.
    with pytest.raises(DidNotStart, match=r"The supervisor ended:(?s:.*)supervisord\.conf"):
        asyncio.run(platform.run())

    told = json.loads((tmp_path / "data" / "up" / "supervisord.json").read_text())["environment"]
    assert not [name for name in told if name.startswith("MINDWEAVE")]


class Flaky:
    """Answers half; once it was started again, does not answer, then ends and is whole."""

    def __init__(self) -> None:
        self.remote = self
        self.runs = False
        self.starts = 0
        self.proxies: list[int] = []
        self.looks = 0

    def start(self, name: str = "") -> None:
        if name == ENVOY:
            self.proxies.append(self.starts)
            if self.starts == 2:
                self.runs = self.proxies.count(2) == 1
                raise ConnectionError("it does not answer")
            return
        self.starts += 1
        self.runs = True

    def processes(self) -> list[dict[str, Any]]:
        self.looks += 1
        if self.looks == 1:
            raise IncompleteRead(b"<xml")
        if self.starts == 1:
            self.runs = False
        # Its log is not there yet.
        return [{"name": "team-1", "pid": 0, "statename": "BACKOFF"}]

    def last_lines(self) -> str:
        return ""

    def stop(self, _: float) -> None:
        self.runs = False


def test_what_keeps_the_processes_outlives_whatever_the_supervisor_does(
    platform: Up, monkeypatch: pytest.MonkeyPatch
) -> None:
    flaky = Flaky()

    async def ready(*_: Any) -> bool:
        return True

    async def run() -> None:
        running = asyncio.create_task(platform.run())
        await eventually(lambda: (flaky.starts == 3 and flaky.looks > 5) or running.done())
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    monkeypatch.setattr(platform, "_supervisor", flaky)
    monkeypatch.setattr(up, "_is_ready", ready)
    monkeypatch.setattr(up, "_WATCH_SECONDS", 0.01)
    with capture_logs() as told:
        asyncio.run(run())

    assert flaky.proxies == [1, 2, 2, 3]
    failing = [line["process"] for line in told if line["event"] == "a process does not stay up"]
    assert failing == ["team-1", "team-1"]


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n<?xml",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n<?xml",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n<a/>",
    ],
)
def test_a_supervisor_that_is_killed_in_an_answer_does_not_answer(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        answering = Thread(target=answer_twice, args=(server, answer))
        answering.start()
        with pytest.raises(OSError, match=r"."):
            Remote(f"http://127.0.0.1:{server.getsockname()[1]}/RPC2").processes()
    answering.join()


def answer_twice(server: socket.socket, answer: bytes) -> None:
    """A client asks again where there is no answer at all."""
    for _ in range(1 if answer else 2):
        connection, _ = server.accept()
        with connection:
            connection.recv(65_536)
            connection.sendall(answer)
