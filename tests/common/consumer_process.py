"""A member of a group in a process of its own, that writes down what it handles.

Its arguments are one JSON object: driver, address, lease, topic, group, file, pause, and perhaps
options, of the bus. For each record it writes a line ``start PARTITION VALUE``, works for
``pause`` seconds, and writes ``done PARTITION VALUE``.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

from common.events.bus import Record
from tests.common.brokers import DRIVERS


async def consume(given: dict[str, Any]) -> None:
    _, make = DRIVERS[given["driver"]]
    bus = make(given["address"], lease=given["lease"], **given.get("options", {}))
    out = os.open(given["file"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    async def handle(record: Record) -> None:
        line = f"{record.partition} {record.value.decode()}\n"
        os.write(out, f"start {line}".encode())
        await asyncio.sleep(given["pause"])
        os.write(out, f"done {line}".encode())

    await bus.start()
    await bus.subscribe([given["topic"]], given["group"], handle).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(consume(json.loads(sys.argv[1])))
