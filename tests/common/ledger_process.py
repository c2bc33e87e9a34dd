"""A PartitionConsumer in a process of its own, to be killed in the middle of its work.

Its arguments are one JSON object: driver, address, dsn, topic, owner, lease, file, pause. ``apply``
inserts its records into the table ``applied``, writes a line ``applied PART`` to ``file``, and
waits for ``pause`` seconds before it lets the transaction commit.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

from common.clock import SystemClock
from common.database import Connection, Database
from common.events.bus import Record
from common.events.ledger import PartitionConsumer
from common.identity.sealing import Sealer
from common.testing import silent_telemetry
from tests.common.brokers import DRIVERS

INSERT = "INSERT INTO applied (topic, part, n) SELECT $1, $2, unnest($3::int[])"


async def work(given: dict[str, Any]) -> None:
    _, make = DRIVERS[given["driver"]]
    bus = make(given["address"])
    out = os.open(given["file"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    async def apply(connection: Connection, part: int, records: list[Record]) -> None:
        await connection.execute(INSERT, given["topic"], part, [int(r.value) for r in records])
        os.write(out, f"applied {part}\n".encode())
        await asyncio.sleep(given["pause"])

    db = await Database.open(
        given["dsn"],
        name="ledger",
        size=4,
        clock=SystemClock(),
        sealer=Sealer(bytes(32)),
        telemetry=silent_telemetry(),
    )
    consumer = PartitionConsumer(
        bus=bus,
        db=db,
        topic=given["topic"],
        group="ledger",
        owner=given["owner"],
        apply=apply,
        max_records=4,
        lease=given["lease"],
    )
    await consumer.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(work(json.loads(sys.argv[1])))
