"""The records of a partition up to its end, which an empty answer is not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from common.errors import Unavailable
from common.events.bus import Bus, Record, token_of
from fleet.backup.folder import name_of

_MOST = 500
# Seconds that one fetch waits for records, and in which some must come before the last one has.
_WAIT = 0.5
_PATIENCE = 60.0


async def read_up_to(
    end: str | None,
    bus: Bus,
    topic: str,
    part: int,
    after: str | None,
    *,
    trimmed: bool = False,
) -> AsyncIterator[list[Record]]:
    """The records behind a place, up to the one that was the last when ``end`` was asked for.

    Args:
        end: the token of the last one; None where there was none.
        bus: with the topic.
        topic: that is read.
        part: of it.
        after: the place.
        trimmed: whether the broker may have dropped all of them, once they were read.

    Raises:
        Unavailable: they did not come.
        OffsetLost: the broker has not all of them.
    """
    now = asyncio.get_running_loop().time
    give_up = now() + _PATIENCE
    while end is not None and (after is None or token_of(after) != end):
        records = await bus.fetch(topic, part, after, max_records=_MOST, wait=_WAIT)
        tokens = [record.token for record in records]
        if end in tokens:
            records = records[: tokens.index(end) + 1]
        if records:
            yield records
            after, give_up = records[-1].place, now() + _PATIENCE
        elif after is None and trimmed:
            return
        elif now() > give_up:
            raise Unavailable(f"{name_of(topic, part)}: the broker keeps its last records back")
