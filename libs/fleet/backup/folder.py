"""A backup as files: a copy of PostgreSQL, records of the broker, and what they are."""

from __future__ import annotations

import hmac
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

import msgspec

from common.events.bus import Record, token_of

_FORMAT = 1
_LENGTH = 4
_MANIFEST = "backup.json"
_encode = msgspec.msgpack.Encoder().encode


class BackupFailed(Exception):
    """A backup could not be made or is of no use here; one line that says why."""


class Manifest(msgspec.Struct, frozen=True):
    """What a backup is; written last, so that one that was broken off has none.

    ``secret`` tells whether a secret is that of the platform, and nothing else of it. ``topics``
    are the partitions of each topic; ``starts`` the place of the ledger in each partition when the
    recording began, ``records`` how many were recorded, by ``TOPIC/PARTITION``.
    """

    version: str
    broker: str
    began_at: datetime
    ended_at: datetime
    secret: str
    topics: dict[str, int]
    starts: dict[str, str | None]
    records: dict[str, int]
    format: int = _FORMAT


class Kept(msgspec.Struct, frozen=True, array_like=True):
    """A record as it was in the broker."""

    token: str
    key: str
    value: bytes
    headers: dict[str, str]


_decode = msgspec.msgpack.Decoder(Kept).decode


class BackupFolder:
    """One backup. Whoever may read it can read everything but what ``MINDWEAVE_SECRET`` seals."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()

    @property
    def postgres(self) -> Path:
        """The copy of PostgreSQL's data directory."""
        return self.path / "postgres"

    def make(self) -> None:
        """Make the folder.

        Raises:
            BackupFailed: there is something in it.
        """
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(self.path.iterdir()):
            raise BackupFailed(f"{self.path} is not empty: give a folder of its own to each backup")
        # One that was there already is as open as whoever made it has left it.
        self.path.chmod(0o700)
        self._records.mkdir(mode=0o700)

    def manifest(self) -> Manifest:
        """What it is.

        Raises:
            BackupFailed: it is no backup, one that was broken off, or of another release's form.
        """
        try:
            found = msgspec.json.decode((self.path / _MANIFEST).read_bytes(), type=Manifest)
        except FileNotFoundError:
            raise BackupFailed(f"{self.path} holds no backup that was finished") from None
        except msgspec.DecodeError as error:
            raise BackupFailed(f"{self.path / _MANIFEST}: {error}") from None
        if found.format != _FORMAT:
            raise BackupFailed(f"{self.path} is of form {found.format}, this is {_FORMAT}")
        return found

    def finish(self, manifest: Manifest) -> None:
        """Make it a backup: everything is on the disk from here on."""
        unfinished = self.path / f"{_MANIFEST}.new"
        with unfinished.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
            _sync(file)
        unfinished.rename(self.path / _MANIFEST)
        for folder in (self._records, self.path):
            opened = os.open(folder, os.O_RDONLY)
            os.fsync(opened)
            os.close(opened)

    def writer(self, topic: str, partition: int) -> Writer:
        return Writer(self._file(topic, partition))

    def records(self, topic: str, partition: int) -> Iterator[Kept]:
        """What was recorded of a partition, in order; nothing of one that was not there.

        Raises:
            BackupFailed: the file is not whole.
        """
        recorded = self.manifest().records.get(name_of(topic, partition))
        if recorded is None:
            return
        found = 0
        with self._file(topic, partition).open("rb") as file:
            while length := file.read(_LENGTH):
                size = int.from_bytes(length)
                data = file.read(size)
                if len(data) < size:
                    break
                found += 1
                yield _decode(data)
        if found != recorded:
            raise BackupFailed(f"{self._file(topic, partition)} is not whole")

    def is_first(self, topic: str, partition: int) -> bool:
        """Whether the recording began before the ledger had a place in the partition."""
        return self.manifest().starts.get(name_of(topic, partition)) is None

    def beyond(self, topic: str, partition: int, place: str | None) -> Iterator[Kept]:
        """Those of the records that are behind a place of the ledger.

        Raises:
            BackupFailed: the place is not among them.
        """
        token = place and token_of(place)
        start = self.manifest().starts.get(name_of(topic, partition))
        passed = token == (start and token_of(start))
        for record in self.records(topic, partition):
            if passed:
                yield record
            passed = passed or record.token == token
        if not passed:
            raise BackupFailed(f"{name_of(topic, partition)}: the backup has no record {token}")

    @property
    def _records(self) -> Path:
        return self.path / "records"

    def _file(self, topic: str, partition: int) -> Path:
        return self._records / f"{topic}-{partition}.msgpack"


class Writer:
    """Appends records of one partition to its file."""

    def __init__(self, path: Path) -> None:
        self.count = 0
        self._file = path.open("wb")

    def write(self, record: Record) -> None:
        data = _encode(Kept(record.token, record.key, record.value, dict(record.headers)))
        self._file.write(len(data).to_bytes(_LENGTH) + data)
        self.count += 1

    def close(self) -> None:
        """Returns when everything is on the disk."""
        with self._file:
            _sync(self._file)


def name_of(topic: str, partition: int) -> str:
    return f"{topic}/{partition}"


def fingerprint(secret: str) -> str:
    """Tells whether two secrets are the same."""
    return hmac.digest(secret.encode(), b"backup", "sha256").hex()[:16]


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
