"""The load generator, a process of its own: sends batches, keeps the ids that were acknowledged.

It reads a ``Job`` as JSON on standard input and answers with a ``Sent`` on standard output.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from itertools import cycle
from pathlib import Path

import msgspec
import numpy as np
import uvloop

from bench.load import HttpConnections, Latencies
from bench.repeats import Repeats
from bench.tenant import Tenant
from bench.traffic import ROW_BYTES, USERS, Bytes, Traffic, body_bytes, body_of

# What tells an event: the number of its organization, from 1, and its id.
EVENT = np.dtype("S18")
_AGAIN = frozenset({429, 503})
# Of all organizations, and at least of each.
_POOL, _LEAST = 30_000, 200


class Job(msgspec.Struct, frozen=True):
    """What to send, and how.

    Requests are of one organization each, in turns. ``batches_per_s`` None: as fast as
    ``connections`` closed loops can. ``ids`` is the file that gets, as ``EVENT``, what was
    acknowledged and is new; ``stored`` one of rows that were stored before, of shape
    (organizations, rows, bytes).
    """

    host: str
    port: int
    tenants: Sequence[Tenant]
    seconds: float
    batch: int
    connections: int
    seed: int
    ids: str
    stored: str | None = None
    batches_per_s: float | None = None


class Sent(msgspec.Struct, frozen=True):
    """What came of it; ``accepted`` are those acknowledged that are no ``repeats``.

    Times are seconds since 1970, latencies milliseconds from when it was due until the 202,
    ``refused`` those from a request that was refused until the answer that said so.
    """

    accepted: int
    repeats: int
    refusals: int
    began: float
    ended: float
    accepted_at: datetime
    cpu_seconds: float
    latencies: list[float]
    refused: list[float]


class Source:
    """The requests of one organization, and what of them was acknowledged."""

    def __init__(self, job: Job, number: int, stored: Bytes) -> None:
        tenant, share = job.tenants[number], len(job.tenants)
        seed = job.seed * share + number
        self._traffic = Traffic(
            tenant.projects, seed, users=max(1, USERS // share), pool=max(_LEAST, _POOL // share)
        )
        self._repeats = Repeats(stored, seed)
        self._head = (
            f"POST /v1/events HTTP/1.1\r\nHost: {job.host}\r\n"
            f"Authorization: Bearer {tenant.key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {body_bytes(job.batch)}\r\n\r\n"
        ).encode()
        self._batch = job.batch
        self._ids: list[Bytes] = []
        self._number = number
        self.repeats = 0

    @property
    def accepted(self) -> int:
        return sum(map(len, self._ids))

    def request(self) -> tuple[bytes, Bytes, Bytes]:
        """A whole request, and the rows and ids in it that are new."""
        rows, ids = self._traffic.rows(self._batch)
        again = self._repeats.choose(self._batch)
        rows[: len(again)] = again
        return body_of(rows, self._head), rows[len(again) :], ids[len(again) :]

    def acknowledged(self, rows: Bytes, ids: Bytes) -> None:
        """Note what is new in a request that was acknowledged."""
        self._ids.append(ids)
        self._repeats.keep(rows)
        self.repeats += self._batch - len(ids)

    def events(self) -> Bytes:
        """All that was acknowledged and is new, as ``EVENT``."""
        found = np.empty((self.accepted, EVENT.itemsize), np.uint8)
        found[:, :2] = divmod(self._number + 1, 256)
        found[:, 2:] = np.concatenate(self._ids) if self._ids else 0
        return found


class Generator:
    """Sends one job."""

    def __init__(self, job: Job) -> None:
        self._job = job
        count = len(job.tenants)
        stored = np.empty((count, 0, ROW_BYTES), np.uint8)
        if job.stored is not None:
            stored = np.load(job.stored, mmap_mode="r")
        self._sources = [Source(job, number, stored[number]) for number in range(count)]
        self._turns = cycle(self._sources)
        self._http = HttpConnections(job.host, job.port)
        self._latencies: list[float] = []
        self._refused: list[float] = []
        self._accepted_at = ""

    async def run(self) -> Sent:
        job = self._job
        cpu, began = time.process_time(), time.time()
        if job.batches_per_s is None:
            await asyncio.gather(*(self._loop() for _ in range(job.connections)))
        else:
            await self._at_rate(job.batches_per_s)
        ended = time.time()
        await self._http.close()
        return Sent(
            accepted=sum(source.accepted for source in self._sources),
            repeats=sum(source.repeats for source in self._sources),
            refusals=len(self._refused),
            began=began,
            ended=ended,
            accepted_at=datetime.fromisoformat(self._accepted_at),
            cpu_seconds=time.process_time() - cpu,
            latencies=sorted(self._latencies),
            refused=sorted(self._refused),
        )

    def save(self) -> None:
        """Write what was acknowledged and is new."""
        with Path(self._job.ids).open("wb") as file:
            for source in self._sources:
                file.write(source.events().data)

    async def _loop(self) -> None:
        end = time.perf_counter() + self._job.seconds
        while (now := time.perf_counter()) < end:
            await self._send(now)

    async def _at_rate(self, rate: float) -> None:
        begun = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in range(max(1, round(rate * self._job.seconds))):
                due = begun + number / rate
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                group.create_task(self._send(due))

    async def _send(self, due: float) -> None:
        """Until it is acknowledged; a refusal is obeyed and the same body sent again."""
        source = next(self._turns)
        request, rows, ids = source.request()
        while True:
            sent = time.perf_counter()
            answer = await self._http.exchange(request)
            if answer.status == 202:
                break
            if answer.status not in _AGAIN:
                raise ConnectionError(f"{answer.status}: {answer.body[:300].decode()}")
            self._refused.append((time.perf_counter() - sent) * 1000)
            await asyncio.sleep(float(answer.fields.get(b"retry-after", b"1")))
        self._latencies.append((time.perf_counter() - due) * 1000)
        told = msgspec.json.decode(answer.body)
        if told["accepted"] != self._job.batch:
            raise ConnectionError(f"not all accepted: {answer.body[:300].decode()}")
        self._accepted_at = max(self._accepted_at, told["accepted_at"])
        source.acknowledged(rows, ids)


async def send(job: Job) -> Sent:
    """Run the job in a process of its own.

    Raises:
        ConnectionError: it failed; its own words follow.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.generator",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate(msgspec.json.encode(job))
    if process.returncode != 0:
        raise ConnectionError(errors.decode()[-2000:])
    return msgspec.json.decode(output, type=Sent)


def latencies(sent: Sent) -> Latencies:
    return Latencies(sent.latencies)


def main() -> None:
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    generator = Generator(job)
    sent = uvloop.run(generator.run())
    generator.save()
    sys.stdout.buffer.write(msgspec.json.encode(sent))


if __name__ == "__main__":
    main()
