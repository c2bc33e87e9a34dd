"""The load generator, a process of its own: sends batches, keeps the ids that were acknowledged.

It reads a ``Job`` as JSON on standard input and answers with a ``Sent`` on standard output.
"""

from __future__ import annotations

import asyncio
import sys
import time
from datetime import datetime
from pathlib import Path

import msgspec
import numpy as np
import uvloop

from bench.load import HttpConnections, Latencies
from bench.traffic import Bytes, Traffic

_AGAIN = frozenset({429, 503})


class Job(msgspec.Struct, frozen=True):
    """What to send, and how.

    ``batches_per_s`` None: as fast as ``connections`` closed loops can. ``ids`` is the file that
    gets the acknowledged ids, 16 bytes each.
    """

    host: str
    port: int
    key: str
    projects: list[str]
    seconds: float
    batch: int
    connections: int
    seed: int
    ids: str
    batches_per_s: float | None = None


class Sent(msgspec.Struct, frozen=True):
    """What came of it.

    Times are seconds since 1970, latencies milliseconds from when it was due until the 202.
    """

    accepted: int
    refusals: int
    began: float
    ended: float
    accepted_at: datetime
    cpu_seconds: float
    latencies: list[float]


class Generator:
    """Sends one job."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._traffic = Traffic(job.projects, job.seed)
        self._http = HttpConnections(job.host, job.port)
        self._head = (
            f"POST /v1/events HTTP/1.1\r\nHost: {job.host}\r\nAuthorization: Bearer {job.key}\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        ).encode()
        self._ids: list[Bytes] = []
        self._latencies: list[float] = []
        self._refusals = 0
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
        cpu = time.process_time() - cpu
        accepted_at = datetime.fromisoformat(self._accepted_at)
        accepted = sum(map(len, self._ids))
        return Sent(
            accepted, self._refusals, began, ended, accepted_at, cpu, sorted(self._latencies)
        )

    def save(self) -> None:
        """Write the acknowledged ids."""
        Path(self._job.ids).write_bytes(np.concatenate(self._ids).tobytes())

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
        body, ids = self._traffic.body(self._job.batch)
        request = self._head + b"%d\r\n\r\n" % len(body) + body
        while True:
            answer = await self._http.exchange(request)
            if answer.status == 202:
                break
            if answer.status not in _AGAIN:
                raise ConnectionError(f"{answer.status}: {answer.body[:300].decode()}")
            self._refusals += 1
            await asyncio.sleep(float(answer.fields.get(b"retry-after", b"1")))
        self._latencies.append((time.perf_counter() - due) * 1000)
        told = msgspec.json.decode(answer.body)
        if told["accepted"] != self._job.batch:
            raise ConnectionError(f"not all accepted: {answer.body[:300].decode()}")
        self._accepted_at = max(self._accepted_at, told["accepted_at"])
        self._ids.append(ids)


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
