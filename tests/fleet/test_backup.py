"""A backup as files: what is refused before anything is touched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from common.events.bus import Record
from fleet.backup import BackupFailed
from fleet.backup.folder import BackupFolder, Manifest, fingerprint, name_of
from fleet.backup.postgres import without_password
from fleet.cli import app
from fleet.embedded import DataFolder
from fleet.embedded.folder import HalfRestored
from fleet.embedded.postgres import VERSION
from fleet.surroundings import own_database, surroundings

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

    def made(tokens: Sequence[str] = (), start: str | None = None, **given: str) -> BackupFolder:
        folder = BackupFolder(tmp_path / "backup")
        folder.make()
        writer = folder.writer(TOPIC, 0)
        for token in tokens:
            writer.write(Record(TOPIC, 0, token, "key", b"value", {"a": "b"}))
        writer.close()
        name = name_of(TOPIC, 0)
        starts, records = {name: start}, {name: writer.count}
        made_by = given.get("release", version("mindweave"))
        secret, topics = fingerprint(SECRET), {TOPIC: 1}
        folder.finish(Manifest(made_by, "redis-streams", NOW, NOW, secret, topics, starts, records))
        folder.postgres.mkdir()
        (folder.postgres / "PG_VERSION").write_text(given.get("postgres", VERSION))
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


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"release": "99.0.0"}, "made by MindWeave 99.0.0"),
        ({"postgres": "17"}, "is of PostgreSQL 17"),
    ],
)
def test_a_backup_of_another_release_is_refused_before_anything_is_touched(
    make: Make, tmp_path: Path, given: dict[str, str], told: str
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "secret").write_text(SECRET)
    assert told in refused(make(**given), data)
    assert [path.name for path in data.iterdir()] == ["secret"]


@pytest.mark.parametrize(
    ("setting", "value", "told"),
    [
        ("MINDWEAVE_SECRET", SECRET[::-1], "another platform's"),
        ("KAFKA_BROKERS", "kafka.example:9092", "of a platform on redis-streams"),
    ],
)
def test_databases_are_not_joined_with_the_backup_of_another_platform(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, value: str, told: str
) -> None:
    monkeypatch.setenv("MINDWEAVE_SECRET", SECRET)
    monkeypatch.setenv("DATABASE_URL", "postgresql://postgres@db.example/postgres")
    monkeypatch.setenv("REDIS_URL", "redis://redis.example")
    monkeypatch.setenv(setting, value)
    words = ["rejoin", str(make().path), "--data", str(tmp_path / "data")]
    result = CliRunner().invoke(app, words)
    assert (result.exit_code, told in result.output) == (1, True)


def test_a_folder_that_is_half_restored_is_opened_by_a_restore_alone(tmp_path: Path) -> None:
    with closing(DataFolder(tmp_path)) as folder:
        folder.begin_restore()
    for opened in (surroundings, own_database):
        with pytest.raises(HalfRestored, match="run `mindweave restore` again"), opened(tmp_path):
            pass
    with closing(DataFolder(tmp_path, restoring=True)) as folder:
        assert folder.half_restored
        folder.end_restore()
    DataFolder(tmp_path).close()


def test_postgres_of_a_platform_is_not_replaced(make: Make, tmp_path: Path) -> None:
    precious = tmp_path / "data" / "postgres" / "precious"
    precious.parent.mkdir(parents=True)
    precious.touch()
    (tmp_path / "data" / "secret").write_text(SECRET)
    assert "move it away first" in refused(make(), tmp_path / "data")
    with closing(DataFolder(tmp_path / "data")):
        assert "is in use" in refused(BackupFolder(tmp_path / "backup"), tmp_path / "data")
    assert precious.exists()


def test_a_folder_that_others_may_read_is_closed_before_anything_is_in_it(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    BackupFolder(tmp_path).make()
    assert tmp_path.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://me:pa%2Fss@db.example/postgres?sslmode=require",
        "postgresql://me@db.example/postgres?password=pa%2Fss&sslmode=require",
    ],
)
def test_no_argument_of_a_program_holds_the_password(dsn: str) -> None:
    shown, password = without_password(dsn)
    assert shown == "postgresql://me@db.example/postgres?sslmode=require"
    assert password == "pa/ss"


def test_without_a_platform_that_runs_there_is_nothing_to_back_up(tmp_path: Path) -> None:
    words = ["backup", str(tmp_path / "backup"), "--data", str(tmp_path / "data")]
    result = CliRunner().invoke(app, words)
    assert (result.exit_code, (tmp_path / "backup").exists()) == (1, False)
    assert "No platform runs" in result.output
