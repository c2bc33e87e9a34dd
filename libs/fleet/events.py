"""``mindweave events``: the operator's commands for dead letters."""

from __future__ import annotations

import asyncio
import getpass
import json
import logging
import os
import secrets
import sys
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from common.events.dead_letters import DeadLetters, Letter
    from common.settings import Settings

app = typer.Typer(
    help="Dead letters: events that a consumer could not handle.", no_args_is_help=True
)

Data = Annotated[
    Path, typer.Option(help="The folder of a running platform, whose broker is asked.")
]
Topic = Annotated[str | None, typer.Option(help="Only those of this topic.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="As `list` shows them.")]
Every = Annotated[bool, typer.Option("--all", help="All of the topic that wait.")]
By = Annotated[str | None, typer.Option(help="Who does it; the system's user when absent.")]

_DEFAULT_DATA = Path(".data")


@app.command("list")
def list_letters(
    topic: Topic = None,
    settled: Annotated[
        bool, typer.Option("--all", help="Those that were replayed or discarded, too.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many of each topic.")] = 100,
    as_json: AsJson = False,
    data: Data = _DEFAULT_DATA,
) -> None:
    """List dead letters that wait for somebody."""
    from fleet.letters import listing, summary

    async def look(dead_letters: DeadLetters) -> tuple[list[Letter], int]:
        found: list[Letter] = []
        skipped = 0
        for name in [topic] if topic else await dead_letters.topics():
            newest: deque[Letter] = deque(maxlen=limit)
            count = 0
            async for letter in dead_letters.read(name):
                if settled or letter.state == "waiting":
                    newest.append(letter)
                    count += 1
            found += newest
            skipped += count - len(newest)
        return found, skipped

    letters, skipped = _ask(data, look)
    if as_json:
        print(json.dumps([summary(letter) for letter in letters], indent=2))
        return
    if not letters:
        print("No dead letters wait." if not settled else "There are no dead letters.")
        return
    listing(letters, _console())
    if skipped:
        print(f"{skipped:,} older ones are not shown; see --limit.")


@app.command()
def show(
    letter: Annotated[str, typer.Argument(metavar="ID", help="As `list` shows it.")],
    as_json: AsJson = False,
    data: Data = _DEFAULT_DATA,
) -> None:
    """Show a dead letter: why it failed, where it comes from, and what is in it."""
    from fleet.letters import details, page

    async def look(dead_letters: DeadLetters) -> Letter:
        (found,) = await dead_letters.find([letter])
        return found

    found = _ask(data, look)
    if as_json:
        print(json.dumps(details(found), indent=2))
    else:
        page(found, _console())


@app.command()
def replay(
    ids: Ids = None,
    topic: Topic = None,
    every: Every = False,
    again: Annotated[
        bool, typer.Option("--again", help="Also what was replayed or discarded before.")
    ] = False,
    by: By = None,
    data: Data = _DEFAULT_DATA,
) -> None:
    """Send dead letters once more to the consumer that failed on them."""
    _check_choice(ids, topic, every)
    who = by or _user()

    async def send(dead_letters: DeadLetters) -> int:
        count = 0
        async for letter in _chosen(dead_letters, ids, topic, settled=again):
            await dead_letters.replay(letter, who)
            print(f"replayed {letter.id} to {letter.origin.group}", flush=True)
            count += 1
        return count

    _end_with_a_line(_ask(data, send), "replayed", topic)


@app.command()
def discard(
    reason: Annotated[str, typer.Option(help="Why they are not needed; it is kept.")],
    ids: Ids = None,
    topic: Topic = None,
    every: Every = False,
    by: By = None,
    data: Data = _DEFAULT_DATA,
) -> None:
    """Let dead letters be: they wait no longer."""
    _check_choice(ids, topic, every)
    if not reason.strip():
        raise typer.BadParameter("says nothing", param_hint="--reason")
    who = by or _user()

    async def let_be(dead_letters: DeadLetters) -> int:
        count = 0
        async for letter in _chosen(dead_letters, ids, topic, settled=False):
            await dead_letters.discard(letter, who, reason.strip())
            print(f"discarded {letter.id}", flush=True)
            count += 1
        return count

    _end_with_a_line(_ask(data, let_be), "discarded", topic)


def _check_choice(ids: Sequence[str] | None, topic: str | None, every: bool) -> None:
    if bool(ids) == every or every != (topic is not None):
        raise typer.BadParameter("Give either IDs, or --topic with --all.")


async def _chosen(
    dead_letters: DeadLetters, ids: Sequence[str] | None, topic: str | None, *, settled: bool
) -> AsyncIterator[Letter]:
    if ids:
        for letter in await dead_letters.find(ids, settled=settled):
            yield letter
    elif topic is not None:
        async for letter in dead_letters.waiting(topic):
            yield letter


def _end_with_a_line(count: int, done: str, topic: str | None) -> None:
    if topic is not None:
        print(f"{count:,} {done}." if count else f"No dead letters of {topic} wait.")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False)


def _ask(data: Path, question: Callable[[DeadLetters], Awaitable[Any]]) -> Any:
    from common.telemetry import configure_logs

    configure_logs("warning")
    # What it says of a broker that is down is said once, and in a line of ours.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)

    async def run() -> Any:
        async with _dead_letters(broker_settings(data)) as dead_letters:
            return await question(dead_letters)

    with _told_in_a_line():
        return asyncio.run(run())


@contextmanager
def _told_in_a_line() -> Iterator[None]:
    from common.errors import MindWeaveError
    from common.events.bus import OffsetLost, TopicUnknown
    from common.settings import SettingsError
    from fleet.status import NotRunning

    try:
        yield
    except TopicUnknown as error:
        line = f"No consumer has read {error} yet, so it has no dead letters."
        raise _refused(line) from error
    except OffsetLost as error:
        line = "Their retention ended while they were read; try again."
        raise _refused(line) from error
    except (MindWeaveError, NotRunning, SettingsError) as error:
        raise _refused(str(error)) from error


def _refused(line: str) -> typer.Exit:
    print(f"mindweave: {line}", file=sys.stderr)
    return typer.Exit(1)


@asynccontextmanager
async def _dead_letters(settings: Settings) -> AsyncIterator[DeadLetters]:
    from prometheus_client import CollectorRegistry

    from common.clock import SystemClock
    from common.events.dead_letters import DeadLetters
    from common.events.drivers import bus_for
    from common.telemetry import Metrics, Telemetry, Tracing

    tracing = Tracing(None, version=version("mindweave"))
    telemetry = Telemetry("events", metrics=Metrics(CollectorRegistry()), tracing=tracing)
    bus = bus_for(settings, telemetry=telemetry)
    await bus.start()
    try:
        yield DeadLetters(bus, telemetry=telemetry, clock=SystemClock())
    finally:
        await bus.stop()


def broker_settings(data: Path) -> Settings:
    """Settings that name a broker: that of the environment, or of the platform in ``data``.

    Where that platform runs on Kafka, REDIS_URL alone names its cache and no broker.

    Raises:
        NotRunning: no broker is named, and no platform runs there.
        SettingsError: a setting is wrong.
    """
    from common.settings import PREFIX, load_settings
    from fleet.embedded.folder import broker_of, read_run
    from fleet.status import NotRunning

    given: dict[str, Any] = {}
    if f"{PREFIX}SECRET" not in os.environ:
        # Settings want one; a bus needs none.
        given["secret"] = secrets.token_hex(32)
    settings = load_settings(**given)
    run = read_run(data) or {}
    if settings.kafka_brokers is None and broker_of(run):
        return settings.model_copy(update=broker_of(run))
    if settings.kafka_brokers is None and settings.redis_url is None:
        if not run.get("redis_url"):
            raise NotRunning(
                f"No platform runs in {data}, and neither KAFKA_BROKERS nor REDIS_URL is set."
            )
        return settings.model_copy(update={"redis_url": run["redis_url"]})
    return settings
