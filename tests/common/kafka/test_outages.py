"""A broker that is frozen, gone, or asks for a password."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from common.events.bus import Bus, BusUnavailable, Outgoing
from common.events.kafka import Access, KafkaBus
from fleet.embedded import Kafka
from tests.common.brokers import OwnKafka
from tests.common.kafka.conftest import MakeBus
from tests.common.waiting import eventually

pytestmark = pytest.mark.bus
on_kafka = pytest.mark.parametrize("server", ["kafka"], indirect=True)

SASL = {
    "listener.security.protocol.map": "PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT",
    "sasl.enabled.mechanisms": "PLAIN",
    "sasl.mechanism.inter.broker.protocol": "PLAIN",
    "listener.name.plaintext.plain.sasl.jaas.config": (
        "org.apache.kafka.common.security.plain.PlainLoginModule required "
        'username="mindweave" password="otters" user_mindweave="otters";'
    ),
}


async def published(bus: Bus, topic: str) -> bool:
    try:
        await bus.publish(topic, [Outgoing(b"y")])
    except BusUnavailable:
        return False
    return True


@on_kafka
async def test_a_broker_that_does_not_answer_is_unavailable_to_all_at_once(
    bus: KafkaBus, broker: OwnKafka, topic: str
) -> None:
    await bus.declare(topic, 1)
    await bus.publish(topic, [Outgoing(b"x")])
    process = broker.process
    process.send_signal(signal.SIGSTOP)
    try:
        # Until one of its threads has taken the signal, the others go on and answer.
        await eventually(lambda: process.status() == psutil.STATUS_STOPPED)
        async with asyncio.timeout(25):
            answers = await asyncio.gather(
                *(bus.publish(topic, [Outgoing(b"x")]) for _ in range(20)),
                *(bus.end(topic, 0) for _ in range(20)),
                bus.fetch(topic, 0, None, max_records=1, wait=1),
                bus.ping(),
                return_exceptions=True,
            )
    finally:
        process.send_signal(signal.SIGCONT)
    assert {type(answer) for answer in answers} == {BusUnavailable}
    await eventually(lambda: published(bus, topic))


@on_kafka
async def test_a_broker_that_is_not_there_costs_nothing_that_stays(make_bus: MakeBus) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        bus = await make_bus(access=f"127.0.0.1:{nobody.getsockname()[1]}")

        async def refused(times: int) -> tuple[int, int]:
            for _ in range(times):
                with pytest.raises(BusUnavailable):
                    await bus.ping()
            return len(asyncio.all_tasks()), psutil.Process().num_fds()

        tasks, files = await refused(5)
        more_tasks, more_files = await refused(50)
    assert more_tasks <= tasks + 2
    assert more_files <= files + 2


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Kafka]:
    """A broker that asks for a password; it need not answer those who have none."""
    server = Guarded(tmp_path / "kafka", SASL)
    server.start()
    yield server
    server.stop()


class Guarded(Kafka):
    def answers(self) -> bool:
        with socket.socket() as connection:
            return connection.connect_ex(("127.0.0.1", int(self.bootstrap.split(":")[1]))) == 0


async def test_a_broker_lets_in_who_knows_its_password(guarded: Kafka) -> None:
    from common.testing import silent_telemetry

    def bus(password: str) -> KafkaBus:
        access = Access(guarded.bootstrap, "SASL_PLAINTEXT", "PLAIN", "mindweave", password)
        return KafkaBus(access, telemetry=silent_telemetry())

    known, stranger = bus("otters"), bus("weasels")

    async def answers() -> bool:
        try:
            await known.ping()
        except BusUnavailable:
            return False
        return True

    await eventually(answers)
    await known.declare("topic", 1)
    assert await known.publish("topic", [Outgoing(b"x")])
    with pytest.raises(BusUnavailable):
        await stranger.ping()
    await known.stop()
    await stranger.stop()
