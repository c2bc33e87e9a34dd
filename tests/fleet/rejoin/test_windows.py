"""Windows of a ledger that is gone: which are applied, and which are passed over."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import pytest

from common.database import Database
from common.errors import Unavailable
from common.events.bus import Bus, Record
from common.events.ledger import Places
from common.settings import Settings
from fleet.backup import BackupFailed
from fleet.backup.reading import read_up_to
from services.analytics.consumer import TOPIC as WINDOWS
from tests.fleet.rejoin.conftest import PART, Sent, forget_topics, held, told

pytestmark = pytest.mark.store


async def test_windows_are_applied_up_to_the_restored_ledger_however_often_it_is_run(
    settings: Settings, tracker: Database, analytics: Database, sent: Sent, tmp_path: Path
) -> None:
    for backup in (None, sent.backup(tmp_path / "backup", settings)):
        await told(settings, backup)
        await sent.require_counted(analytics)
        place = (await Places(analytics, WINDOWS).read())[PART].place
        assert place == sent.tokens[-1]
    assert await held(tracker) + await held(analytics) == 0


async def test_windows_that_the_broker_has_lost_are_those_that_the_backup_has_recorded(
    settings: Settings, analytics: Database, sent: Sent, tmp_path: Path
) -> None:
    backup = sent.backup(tmp_path / "backup", settings)
    await forget_topics(settings)
    with pytest.raises(BackupFailed, match="no backup is given that has recorded it"):
        await told(settings)
    await told(settings, backup)
    await sent.require_counted(analytics)


async def test_windows_with_a_gap_before_them_are_refused(
    settings: Settings, analytics: Database, sent: Sent, tmp_path: Path
) -> None:
    short = sent.backup(tmp_path / "short", settings, end=2)
    await forget_topics(settings)
    with pytest.raises(BackupFailed, match="has sent delta 4 of part 0, and analytics comes to 3"):
        await told(settings, short)
    before = (await Places(analytics, WINDOWS).read())[PART]
    assert before.place == sent.tokens[0]
    # Of another place than the backup's.
    async with analytics.session() as connection:
        await connection.execute("UPDATE offsets SET token = '1-1'")
    with pytest.raises(BackupFailed, match="the backup has no record 1-1"):
        await told(settings, sent.backup(tmp_path / "backup", settings))


async def test_an_empty_answer_of_the_broker_is_not_taken_for_the_end(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = Sent()
    await sent.publish(bus)
    fetch, asked = bus.fetch, count()

    async def hesitant(*args: Any, **given: Any) -> list[Record]:
        return [] if next(asked) % 2 == 0 else (await fetch(*args, **given))[:1]

    monkeypatch.setattr(bus, "fetch", hesitant)
    end = await bus.end(WINDOWS, PART)
    found = [r.token async for some in read_up_to(end, bus, WINDOWS, PART, None) for r in some]
    assert found == sent.tokens
    monkeypatch.setattr("fleet.backup.reading._PATIENCE", 0.1)
    monkeypatch.setattr(bus, "fetch", fetch)
    with pytest.raises(Unavailable, match="keeps its last records back"):
        async for _ in read_up_to("9-9", bus, WINDOWS, PART, sent.tokens[-1]):
            pass
