"""The data folder: its lock, its secret, and what runs in it."""

from __future__ import annotations

import fcntl
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fleet.embedded.daemon import Daemon
from fleet.embedded.kafka import Kafka
from fleet.embedded.postgres import BUFFERS_MB, Postgres
from fleet.embedded.valkey import Valkey

# Settings that say where Kafka is and what it asks for.
KAFKA_ACCESS = (
    "kafka_brokers",
    "kafka_security_protocol",
    "kafka_sasl_mechanism",
    "kafka_username",
    "kafka_password",
)


class InUse(Exception):
    """Another process works in the data folder."""


class OtherBroker(Exception):
    """What the data folder keeps belongs to the streams of another broker."""


class HalfRestored(Exception):
    """A restore was broken off in the data folder: its databases do not fit the broker yet."""


class DataFolder:
    """Held by one process at a time, until that process ends."""

    def __init__(self, path: Path, *, restoring: bool = False) -> None:
        """Hold the folder.

        Args:
            path: made where it is not there.
            restoring: whether it is to be restored, so that it may be half restored.

        Raises:
            InUse: another process holds it.
            HalfRestored: a restore of it has begun and has not ended.
        """
        self.path = path.resolve()
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.chmod(0o700)
        self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._lock, 32).decode() or "unknown"
            os.close(self._lock)
            raise InUse(
                f"{path} is in use by another mindweave (pid {holder}): "
                "stop that one, or give another folder with --data."
            ) from None
        os.ftruncate(self._lock, 0)
        os.write(self._lock, str(os.getpid()).encode())
        if self.half_restored and not restoring:
            os.close(self._lock)
            raise HalfRestored(
                f"{path} is half restored, and its databases would give wrong sums:"
                " run `mindweave restore` again."
            )
        self.secret = self._read_secret()

    @property
    def half_restored(self) -> bool:
        """Whether a restore has begun and has not ended."""
        return self._mark.exists()

    def begin_restore(self) -> None:
        """Let nobody else open the folder until ``end_restore``; on the disk when it returns."""
        write_whole(self._mark, b"")
        # Of a platform that was killed: nobody may find its servers by it.
        (self.path / "run.json").unlink(missing_ok=True)

    def end_restore(self) -> None:
        """Let everybody open it again."""
        self._mark.unlink()
        sync_folder(self.path)

    @property
    def _mark(self) -> Path:
        return self.path / "restoring"

    def _read_secret(self) -> str:
        file = self.path / "secret"
        if not file.exists():
            write_whole(file, secrets.token_hex(32).encode())
        return file.read_text().strip()

    def keep_to(self, broker: str) -> None:
        """The databases here keep places in this broker's streams, and in no other's.

        Raises:
            OtherBroker: they keep places in another's.
        """
        file = self.path / "events"
        if not file.exists():
            was = "redis-streams" if (self.path / "broker").exists() else broker
            file.write_text(f"{was}\n")
        kept = file.read_text().strip()
        if kept != broker:
            raise OtherBroker(
                f"{self.path} holds the data of a platform on {kept}, and {broker} is asked for: "
                f"start it with `mindweave up --broker {kept}`, or give another folder with --data."
            )

    def postgres(self, buffers_mb: int = BUFFERS_MB) -> Postgres:
        return self.postgres_as(self.password("postgres"), buffers_mb)

    def postgres_as(self, password: str, buffers_mb: int = BUFFERS_MB) -> Postgres:
        """With another password than the one that follows from the secret."""
        return Postgres(self.path / "postgres", password, buffers_mb)

    def broker(self) -> Valkey:
        return Valkey(self.path / "broker", self.password("broker"), durable=True)

    def cache(self) -> Valkey:
        return Valkey(self.path / "cache", self.password("cache"), durable=False)

    def kafka(self) -> Kafka:
        return Kafka(self.path / "kafka", password=self.password("kafka"))

    def password(self, server: str) -> str:
        """Of the embedded ``server``; the same at every start."""
        return password_of(self.secret, server)

    def write_run(self, facts: dict[str, Any]) -> None:
        """Leave ``run.json`` for those who look for the running platform."""
        file = self.path / "run.json"
        unfinished = file.with_suffix(".new")
        unfinished.touch(mode=0o600)
        unfinished.write_text(json.dumps(facts, indent=2) + "\n")
        unfinished.rename(file)

    def close(self) -> None:
        """Let another process have the folder."""
        (self.path / "run.json").unlink(missing_ok=True)
        os.close(self._lock)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file for its owner alone, whole or not at all; on the disk when it returns."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Returns when the names in a folder are on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def password_of(secret: str, server: str) -> str:
    """Of the embedded ``server`` of a folder with this secret."""
    return hmac.digest(secret.encode(), f"embedded:{server}".encode(), "sha256").hex()


def read_secret(path: Path) -> str | None:
    """The folder's secret; None where it has none yet."""
    try:
        return (path / "secret").read_text().strip()
    except FileNotFoundError:
        return None


def read_run(path: Path) -> dict[str, Any] | None:
    """What the platform that runs in the folder left in ``run.json``; None where none did."""
    try:
        facts: dict[str, Any] = json.loads((path / "run.json").read_text())
    except FileNotFoundError:
        return None
    return facts


def broker_of(run: Mapping[str, Any]) -> dict[str, str]:
    """The settings by which clients reach the Kafka that ``run.json`` names; none without one."""
    if not run.get("kafka_brokers"):
        return {}
    return {name: run[name] for name in KAFKA_ACCESS if run.get(name)}


def start_together(daemons: list[Daemon]) -> None:
    """Start them side by side.

    Raises:
        DidNotStart: one of them did not.
    """
    with ThreadPoolExecutor(max(1, len(daemons))) as pool:
        for started in [pool.submit(daemon.start) for daemon in daemons]:
            started.result()
