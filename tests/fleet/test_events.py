"""`mindweave events`, as an operator runs it, on every broker."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest
from typer.testing import CliRunner, Result

from common.events.bus import Bus, DeadLetter, Outgoing, Record
from common.events.envelope import Envelope, encode
from fleet.cli import app
from tests.common.brokers import DRIVERS, Broker
from tests.common.waiting import eventually

pytestmark = pytest.mark.bus

VARIABLES = {"redis-streams": "REDIS_URL", "kafka": "KAFKA_BROKERS"}
RUN_KEYS = {"redis-streams": "redis_url", "kafka": "kafka_brokers"}


@pytest.fixture(scope="module", params=DRIVERS)
def broker(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Broker]:
    server = DRIVERS[request.param][0](tmp_path_factory.mktemp("events"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def _own_logs() -> Iterator[None]:
    """The command takes the logs of its process over; here it shares one with other tests."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


def events(*arguments: str, broker: Broker | None = None, at: str = "") -> Result:
    """Run the command, with the broker named in the environment where one is given."""
    environment: dict[str, str | None] = dict.fromkeys(VARIABLES.values())
    if broker is not None:
        environment[VARIABLES[broker.driver]] = at or broker.address
    return CliRunner().invoke(app, ["events", *arguments], env=environment)


def envelope() -> Envelope:
    return Envelope(
        id=uuid4(), type="org.deleted", source="test", timestamp=datetime.now(UTC), data={}
    )


async def with_bus(broker: Broker, work: Callable[[Bus], Awaitable[None]]) -> None:
    bus = DRIVERS[broker.driver][1](broker.address, lease=1.0)
    await bus.start()
    try:
        await work(bus)
    finally:
        await bus.stop()


@pytest.fixture
def topic(broker: Broker) -> str:
    """A topic with three dead letters of the group ``readers``."""
    name = f"topic-{uuid4().hex[:12]}"

    async def refuse(_: Record) -> None:
        raise DeadLetter("cannot be")

    async def bury(bus: Bus) -> None:
        await bus.declare(name, 1, ["readers"])
        await bus.publish(name, [Outgoing(encode(envelope())) for _ in range(2)])
        await bus.publish(name, [Outgoing(b"noise")])
        reading = bus.subscribe([name], "readers", refuse)
        await reading.start()

        async def done() -> bool:
            return await bus.lag(name, "readers") == 0

        await eventually(done)
        await reading.stop()

    asyncio.run(with_bus(broker, bury))
    return name


def ids(broker: Broker, topic: str, *options: str) -> list[str]:
    listed = events("list", "--topic", topic, "--json", *options, broker=broker)
    assert listed.exit_code == 0, listed.stderr
    return [letter["id"] for letter in json.loads(listed.stdout)]


def test_letters_are_listed_shown_replayed_and_discarded(broker: Broker, topic: str) -> None:
    plain = events("list", "--topic", topic, broker=broker)
    assert plain.exit_code == 0, plain.stderr
    first, second, third = ids(broker, topic)
    for letter in (first, second, third):
        assert f"  {letter}\n" in plain.stdout

    shown = events("show", first, broker=broker)
    assert "DeadLetter: cannot be" in shown.stdout
    assert '"type": "org.deleted"' in shown.stdout
    whole = json.loads(events("show", third, "--json", broker=broker).stdout)
    assert (whole["group"], whole["attempts"], whole["value"]) == ("readers", 1, "noise")

    replayed = events("replay", second, "--by", "ada", broker=broker)
    assert replayed.stdout == f"replayed {second} to readers\n"
    (told,) = [json.loads(line) for line in replayed.stderr.splitlines()]
    assert told["event"] == "a dead letter is settled"
    assert (told["by"], told["group"], told["topic"]) == ("ada", "readers", topic)
    assert (told["event_type"], told["outcome"]) == ("org.deleted", "replayed")
    discarded = events("discard", third, "--reason", "a test", broker=broker)
    assert discarded.stdout == f"discarded {third}\n"

    assert ids(broker, topic) == [first]
    assert ids(broker, topic, "--all") == [first, second, third]
    history = events("show", third, broker=broker).stdout
    assert "discarded by" in history
    assert "a test" in history


def test_what_is_settled_is_refused_unless_a_replay_is_asked_for_again(
    broker: Broker, topic: str
) -> None:
    first, second, _ = ids(broker, topic)
    assert events("replay", first, "--by", "ada", broker=broker).exit_code == 0
    for refused in (
        events("replay", second, first, broker=broker),
        events("discard", first, "--reason", "a test", broker=broker),
    ):
        assert refused.exit_code == 1
        assert refused.stdout == ""
        assert refused.stderr.startswith(f"mindweave: {first} was replayed by ada at ")
        assert refused.stderr.count("\n") == 1
    assert second in ids(broker, topic)
    assert events("replay", first, "--again", broker=broker).exit_code == 0


def test_all_that_wait_in_a_topic_are_settled_at_once(broker: Broker, topic: str) -> None:
    first, *_ = ids(broker, topic)
    assert events("discard", first, "--reason", "a test", broker=broker).exit_code == 0
    rest = events("replay", "--topic", topic, "--all", broker=broker)
    assert rest.stdout.splitlines()[-1] == "2 replayed."
    assert first not in rest.stdout
    none = events("discard", "--topic", topic, "--all", "--reason", "a test", broker=broker)
    assert (none.exit_code, none.stdout) == (0, f"No dead letters of {topic} wait.\n")
    assert events("list", "--topic", topic, broker=broker).stdout == "No dead letters wait.\n"


def test_only_the_newest_are_listed_where_there_are_many(broker: Broker, topic: str) -> None:
    letters = ids(broker, topic)
    assert ids(broker, topic, "--limit", "2") == letters[1:]
    plain = events("list", "--topic", topic, "--limit", "2", broker=broker).stdout
    assert plain.endswith("1 older ones are not shown; see --limit.\n")


def test_what_is_not_there_is_refused_in_a_line(broker: Broker, topic: str) -> None:
    unknown = f"{topic}.dead/0/99-99"
    for refused, line in (
        (events("show", unknown, broker=broker), f"There is no dead letter {unknown}."),
        (events("replay", "nonsense", broker=broker), "There is no dead letter nonsense."),
        (
            events("list", "--topic", "of-nobody", broker=broker),
            "No consumer has read of-nobody.dead yet, so it has no dead letters.",
        ),
    ):
        assert (refused.exit_code, refused.stdout) == (1, "")
        assert refused.stderr == f"mindweave: {line}\n"


def test_every_topic_of_the_catalog_is_listed(broker: Broker) -> None:
    listed = events("list", "--json", broker=broker)
    assert (listed.exit_code, json.loads(listed.stdout)) == (0, [])


def test_a_broker_that_is_down_is_told_in_a_line(broker: Broker) -> None:
    scheme = "redis://" if broker.driver == "redis-streams" else ""
    down = events("list", broker=broker, at=f"{scheme}127.0.0.1:1")
    assert (down.exit_code, down.stdout) == (1, "")
    assert down.stderr == "mindweave: The event broker is not available.\n"


def test_the_broker_of_the_platform_in_the_folder_is_asked(
    broker: Broker, topic: str, tmp_path: Path
) -> None:
    run = {"broker": broker.driver, RUN_KEYS[broker.driver]: broker.address}
    (tmp_path / "run.json").write_text(json.dumps(run))
    found = events("list", "--topic", topic, "--data", str(tmp_path))
    assert found.stdout.count(f"{topic}.dead/0/") == 3, found.stderr


def test_without_any_broker_it_says_what_to_set(tmp_path: Path) -> None:
    lost = events("list", "--data", str(tmp_path))
    assert lost.exit_code == 1
    assert "neither KAFKA_BROKERS nor REDIS_URL is set" in lost.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["replay"],
        ["replay", "an-id", "--topic", "t", "--all"],
        ["replay", "--topic", "t"],
        ["replay", "--all"],
        ["discard", "an-id"],
        ["discard", "an-id", "--reason", " "],
    ],
)
def test_half_a_command_does_nothing(arguments: list[str]) -> None:
    assert events(*arguments).exit_code == 2
