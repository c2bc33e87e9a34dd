"""A backup as files: what is refused before anything is touched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from common.events.bus import Record
from fleet.backup import BackupFailed
from fleet.backup.folder import BackupFolder, Manifest, fingerprint, name_of
from fleet.cli import app

pytestmark = pytest.mark.unit

TOPIC = "usage.events"
SECRET = "the secret of one platform, and of no other"
NOW = datetime(2026, 11, 22, tzinfo=UTC)

Make = Callable[..., BackupFolder]


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MINDWEAVE_SECRET", "DATABASE_URL", "REDIS_URL", "KAFKA_BROKERS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A function that makes a backup with these records of partition 0."""

    def made(tokens: Sequence[str] = (), start: str | None = None) -> BackupFolder:
        folder = BackupFolder(tmp_path / "backup")
        folder.make()
        writer = folder.writer(TOPIC, 0)
        for token in tokens:
            writer.write(Record(TOPIC, 0, token, "key", b"value", {"a": "b"}))
        writer.close()
        name = name_of(TOPIC, 0)
        secret = fingerprint(SECRET)
        starts, records = {name: start}, {name: writer.count}
        folder.finish(Manifest("1", "redis-streams", NOW, NOW, secret, {TOPIC: 1}, starts, records))
        return folder

    return made


def behind(folder: BackupFolder, place: str | None) -> list[str]:
    return [record.token for record in folder.beyond(TOPIC, 0, place)]


def test_records_behind_a_place_are_those_that_were_not_counted(make: Make) -> None:
    folder = make(["5-5", "6-6", "7-7"], start="4-4@proof")
    assert behind(folder, "4-4") == ["5-5", "6-6", "7-7"]
    assert behind(folder, "6-6@proof") == ["7-7"]
    assert behind(folder, "7-7") == []


def test_before_the_first_record_was_counted_all_of_them_are_behind(make: Make) -> None:
    assert behind(make(["1-1", "2-2"]), None) == ["1-1", "2-2"]


def test_a_place_that_the_backup_does_not_know_is_refused(make: Make) -> None:
    with pytest.raises(BackupFailed, match="has no record 9-9"):
        behind(make(["5-5"], start="4-4"), "9-9")


@pytest.mark.parametrize("cut", [1, 20])
def test_records_that_are_not_whole_are_refused(make: Make, cut: int) -> None:
    folder = make(["5-5", "6-6"])
    file = folder.path / "records" / f"{TOPIC}-0.msgpack"
    file.write_bytes(file.read_bytes()[:-cut])
    with pytest.raises(BackupFailed, match="is not whole"):
        list(folder.records(TOPIC, 0))


def test_a_backup_that_was_broken_off_is_none(make: Make) -> None:
    folder = make()
    (folder.path / "backup.json").unlink()
    with pytest.raises(BackupFailed, match="no backup that was finished"):
        folder.manifest()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(BackupFailed, match="is not empty"):
        BackupFolder(tmp_path).make()


def refused(folder: BackupFolder, data: Path) -> str:
    result = CliRunner().invoke(app, ["restore", str(folder.path), "--data", str(data)])
    assert result.exit_code == 1
    return result.output


@pytest.mark.parametrize(
    ("secret", "told"), [(None, "put the platform's secret"), (SECRET[::-1], "another platform's")]
)
def test_nothing_is_restored_without_the_platforms_own_secret(
    make: Make, tmp_path: Path, secret: str | None, told: str
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    if secret is not None:
        (data / "secret").write_text(secret)
    before = sorted(data.iterdir())
    assert told in refused(make(), data)
    assert sorted(data.iterdir()) == before


def test_a_server_of_ones_own_gets_its_data_directory_by_ones_own_hand(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINDWEAVE_SECRET", SECRET)
    monkeypatch.setenv("DATABASE_URL", "postgresql://postgres@db.example/postgres")
    assert "mindweave rejoin" in refused(make(), tmp_path / "data")


def test_without_a_platform_that_runs_there_is_nothing_to_back_up(tmp_path: Path) -> None:
    words = ["backup", str(tmp_path / "backup"), "--data", str(tmp_path / "data")]
    result = CliRunner().invoke(app, words)
    assert (result.exit_code, (tmp_path / "backup").exists()) == (1, False)
    assert "No platform runs" in result.output
