"""Any process may start first: it lives, says what it waits for, and is ready when that comes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from fleet.embedded import DataFolder
from tests.e2e.faults.watching import until
from tests.e2e.own import free_port
from tests.e2e.processes import health, report

pytestmark = pytest.mark.e2e


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[DataFolder]:
    folder = DataFolder(tmp_path / "data")
    yield folder
    folder.close()


@contextmanager
def started(name: str, environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """A named process, as run.json would tell of it; ends in order."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fleet", name], env={**os.environ, **environment}
    )
    try:
        yield {"name": name, "metrics": environment["MINDWEAVE_METRICS_LISTEN"]}
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0


def test_a_service_that_is_first_waits_for_database_broker_and_auth_one_after_the_other(
    folder: DataFolder,
) -> None:
    postgres, broker = folder.postgres(), folder.broker()
    at = {name: f"127.0.0.1:{free_port()}" for name in ("team", "auth")}
    common = {
        "DATABASE_URL": postgres.admin_dsn,
        "REDIS_URL": broker.url,
        "MINDWEAVE_SECRET": folder.secret,
        "MINDWEAVE_ADDRESSES": json.dumps(at),
    }

    def of(name: str) -> dict[str, str]:
        own = {"GRPC_LISTEN": at[name], "METRICS_LISTEN": f"127.0.0.1:{free_port()}"}
        return common | {f"MINDWEAVE_{setting}": value for setting, value in own.items()}

    def waits(for_what: str, process: dict[str, str]) -> bool:
        return health(process, "live") == 200 and for_what in report(process)

    with ExitStack() as running:
        team = running.enter_context(started("team", of("team")))
        until(lambda: waits("waits for the database of team", team))
        postgres.start()
        running.callback(postgres.stop)
        until(lambda: waits("waits for the event broker of team", team))
        migrated = subprocess.run(
            [sys.executable, "-m", "fleet", "migrate"],
            env={**os.environ, **common},
            check=False,
        )
        assert migrated.returncode == 0
        broker.start()
        running.callback(broker.stop)
        until(lambda: waits("waits for auth", team) and "broker of team" not in report(team))
        auth = running.enter_context(started("auth", of("auth")))

        until(lambda: health(team, "ready") == 200)
        # It answers team as soon as it can, which is before it is ready itself.
        until(lambda: health(auth, "ready") == 200)
        assert "waits for" not in report(team)
