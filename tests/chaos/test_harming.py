"""The means by which the chaos rounds do harm: they must do it, to whom it is meant for."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil
import pytest

from fleet.ports import free_port
from tests.chaos.disk import mounted
from tests.chaos.faults.hitting import NotHit, replaced, shown, stopped
from tests.chaos.link import HOST, Link, of_processes
from tests.chaos.scene import Hangs
from tests.common.waiting import eventually

pytestmark = pytest.mark.e2e

Talk = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def echo() -> AsyncIterator[Link]:
    """A link to a server that says what it is told."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1024):
            writer.write(data)
        writer.close()

    async with await asyncio.start_server(answer, HOST, 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with Link(free_port(), (HOST, port)) as link:
            yield link


@asynccontextmanager
async def dialled(link: Link) -> AsyncIterator[Talk]:
    reader, writer = await asyncio.open_connection(HOST, link.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def said(talk: Talk, word: bytes) -> bytes:
    """What comes back for a word; nothing where the connection was reset."""
    reader, writer = talk
    try:
        writer.write(word)
        return await reader.read(1024)
    except ConnectionError:
        return b""


async def said_anew(link: Link, word: bytes) -> bytes:
    """The same by a connection of its own."""
    async with dialled(link) as talk:
        return await said(talk, word)


async def test_a_link_forwards_until_it_is_cut_and_after_it_is_mended() -> None:
    async with echo() as link, dialled(link) as talk:
        assert await said(talk, b"one") == b"one"

        assert await link.refuse() == 1
        assert await said(talk, b"two") == b""
        assert await said_anew(link, b"three") == b""
        link.mend()
        assert await said_anew(link, b"four") == b"four"
        assert (link.cuts, link.refusals) == (1, 1)


async def test_a_slow_link_delivers_all_and_counts_what_it_held_up() -> None:
    async with echo() as link, dialled(link) as talk:
        await said(talk, b"one")
        await link.slow(0.01)

        assert await said(talk, b"two") == b"two"
        assert link.delays == 2


async def test_an_answer_that_is_eaten_was_given() -> None:
    async with echo() as link, dialled(link) as talk:
        await said(talk, b"one")
        await link.eat()

        assert await said(talk, b"two") == b""
        assert link.eaten == 1


async def test_only_connections_of_the_processes_that_are_meant_are_cut() -> None:
    async with echo() as link, dialled(link) as talk:
        await said(talk, b"one")

        assert await link.refuse(of_processes(os.getppid())) == 0
        assert await said(talk, b"two") == b"two"
        assert await said_anew(link, b"three") == b"three"
        assert await link.cut(of_processes(os.getpid())) == 1
        assert await said(talk, b"four") == b""


async def test_a_full_disk_takes_nothing_until_it_is_emptied(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk") as disk:
        file = disk.folder / "file"
        file.write_bytes(bytes(100_000))
        # Where nothing may be mounted there is nothing to fill, and the fault says so.
        if disk.own:
            assert disk.fill() == os.strerror(28)
            with pytest.raises(OSError, match="No space left"):
                (disk.folder / "more").write_bytes(bytes(100_000))
            disk.empty()
        (disk.folder / "more").write_bytes(bytes(100_000))
        assert file.stat().st_size == 100_000


@asynccontextmanager
async def sleeping() -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec("sleep", "60")
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_a_stopped_process_is_seen_to_be_and_goes_on() -> None:
    async with sleeping() as process:
        seen = psutil.Process(process.pid)
        async with stopped([process.pid]) as state:
            assert seen.status() == psutil.STATUS_STOPPED
            assert "state T of 1 process" in state
        await eventually(lambda: seen.status() != psutil.STATUS_STOPPED)


async def test_a_kill_that_meets_nobody_did_not_hit() -> None:
    async def nobody(_: str) -> int:
        return 0

    with pytest.raises(NotHit):
        await replaced({"worker": 0}, nobody)
    with pytest.raises(NotHit):
        shown(False, "anything")


async def test_one_that_nobody_replaces_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.chaos.faults.hitting.PATIENCE", 0.2)

    async def nobody(_: str) -> int:
        return 0

    async with sleeping() as process:
        with pytest.raises(Hangs, match="others in place of worker"):
            await replaced({"worker": process.pid}, nobody)
