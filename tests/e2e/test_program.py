"""The program `mindweave`: it starts, tells how it is, stops in order, and finds its data again."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from fleet.process import Platform
from fleet.services import SERVICES
from tests.e2e.own import free_port, own_platform
from tests.e2e.tenant import PASSWORD, register

pytestmark = pytest.mark.e2e

MEMORY = 600 * 1024 * 1024


@pytest.fixture(scope="module")
def unhurt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """One for all tests that leave it as it is."""
    with own_platform(tmp_path_factory.mktemp("program") / "data") as platform:
        yield platform


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    with own_platform(tmp_path / "data") as platform:
        yield platform


def mindweave(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fleet", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def log_in(platform: Platform, email: str) -> int:
    body = {"email": email, "password": PASSWORD}
    return httpx.post(f"{platform.address}/auth/login", json=body, timeout=30).status_code


def test_it_prints_where_it_is_and_leaves_it_in_its_folder(unhurt: Platform) -> None:
    run = json.loads((unhurt.data / "run.json").read_text())

    assert run["address"] == unhurt.address
    assert run["pid"] == unhurt.process.pid
    assert unhurt.address in unhurt.log.read_text()
    assert {psutil.Process(pid).pid for pid in run["servers"].values()}
    assert stat.S_IMODE(unhurt.data.stat().st_mode) == 0o700


def test_it_takes_no_more_memory_than_promised(unhurt: Platform) -> None:
    _, proportional = unhurt.memory()

    assert proportional < MEMORY


def test_status_shows_every_service_and_fails_when_the_platform_is_down(
    platform: Platform,
) -> None:
    up = mindweave("status", "--data", str(platform.data))
    platform.stop()
    down = mindweave("status", "--address", platform.address)

    assert up.returncode == 0, up.stdout + up.stderr
    for name in SERVICES:
        assert name in up.stdout
    assert down.returncode == 1
    assert "Nothing answers" in down.stderr


def test_a_second_one_on_the_same_folder_is_refused_with_a_clear_line(
    unhurt: Platform,
) -> None:
    second = mindweave("all", "--data", str(unhurt.data), "--listen", f"127.0.0.1:{free_port()}")

    assert second.returncode == 1
    assert "is in use by another mindweave" in second.stderr
    assert str(unhurt.process.pid) in second.stderr
    assert second.stderr.count("\n") == 1
    assert httpx.get(f"{unhurt.address}/health/ready").status_code == 200


def test_it_stops_in_order_and_finds_its_data_again(platform: Platform) -> None:
    user = register(platform.address)
    servers = [p for p in platform.processes() if p.pid != platform.process.pid]

    assert platform.stop() == 0
    _, left_behind = psutil.wait_procs(servers, timeout=30)
    assert left_behind == []
    assert not (platform.data / "run.json").exists()

    platform.start()
    platform.wait_until_ready()
    assert log_in(platform, user.email) == 200


def test_a_stop_while_it_starts_leaves_nothing_behind(tmp_path: Path) -> None:
    starting = Platform(tmp_path / "data", f"127.0.0.1:{free_port()}")
    starting.start()
    while not (starting.data / "postgres.pid").exists():
        assert starting.process.poll() is None, starting.last_lines()
        time.sleep(0.01)

    assert starting.stop() == 0, starting.last_lines()
    assert starting.processes() == []


def test_it_finds_its_data_again_after_a_kill_of_everything(platform: Platform) -> None:
    user = register(platform.address)
    for process in platform.processes():
        process.kill()
    platform.process.wait()

    platform.start()
    platform.wait_until_ready()

    assert log_in(platform, user.email) == 200


def test_it_adopts_the_servers_that_a_kill_left_behind(platform: Platform) -> None:
    before = json.loads((platform.data / "run.json").read_text())["servers"]
    user = register(platform.address)
    platform.kill()

    platform.start()
    platform.wait_until_ready()

    assert json.loads((platform.data / "run.json").read_text())["servers"] == before
    assert log_in(platform, user.email) == 200


def test_an_embedded_server_that_dies_is_started_again(platform: Platform) -> None:
    servers = json.loads((platform.data / "run.json").read_text())["servers"]
    user = register(platform.address)
    for name in ("postgres", "broker", "cache"):
        psutil.Process(servers[name]).kill()

    # Readiness may tell for a moment what was true before the kill.
    deadline = time.monotonic() + 60
    while (answered := log_in(platform, user.email)) != 200 and time.monotonic() < deadline:
        assert answered in (503, 504)
        time.sleep(0.2)
    assert answered == 200
    platform.wait_until_ready()
    alive = {process.pid for process in platform.processes()}
    assert len(alive) >= 4
    assert not alive & set(servers.values())


def test_it_uses_the_servers_that_are_named(platform: Platform, tmp_path: Path) -> None:
    run = json.loads((platform.data / "run.json").read_text())
    platform.kill()
    named = {
        "DATABASE_URL": run["database_url"],
        "REDIS_URL": run["redis_url"],
        "REDIS_CACHE_URL": run["cache_url"],
    }
    other = Platform(
        tmp_path / "other",
        f"127.0.0.1:{free_port()}",
        named | {"MINDWEAVE_SECRET": (platform.data / "secret").read_text()},
    )
    with other:
        other.wait_until_ready()
        assert json.loads((other.data / "run.json").read_text())["servers"] == {}
        register(other.address)


def test_migrate_says_what_it_applied(tmp_path: Path) -> None:
    data = str(tmp_path / "data")

    first, again = mindweave("migrate", "--data", data), mindweave("migrate", "--data", data)

    assert first.returncode == 0, first.stderr
    (told,) = (line for line in first.stdout.splitlines() if line.startswith("team: "))
    assert told.startswith("team: kit/0001_kit.sql, kit/0002_members.sql, ")
    assert ", team/0001_" in told
    assert "team: up to date" in again.stdout
