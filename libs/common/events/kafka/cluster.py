"""The connections to the brokers, what the brokers know of topics, and what failures mean."""

from __future__ import annotations

import asyncio
import logging
import math
import ssl
from collections.abc import Callable, Coroutine, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any, TypeVar
from uuid import UUID

from aiokafka.client import AIOKafkaClient
from aiokafka.conn import CloseReason, create_conn
from aiokafka.errors import KafkaConnectionError, KafkaError, NoError, for_code
from aiokafka.protocol.coordination import FindCoordinatorRequest
from aiokafka.protocol.metadata import MetadataRequest

from common.certificates import refusal
from common.events.bus import BusUnavailable, TopicUnknown
from common.events.kafka.protocol import TopicsRequest
from common.events.worker import cut

T = TypeVar("T")

# Seconds that a broker has to answer, beside what a request lets it wait.
ANSWER_TIMEOUT = 5.0
_CONNECT_TIMEOUT = 5.0
_CLOSE_TIMEOUT = 2.0
# Seconds after which aiokafka gives up by itself; our own limits are shorter.
_LIBRARY_TIMEOUT = 60.0
_RETRY_EVERY = 0.1
_NONE, _UNKNOWN_TOPIC = 0, 3
_COORDINATOR_LOADING, _NO_COORDINATOR, _NOT_COORDINATOR = 14, 15, 16
_COORDINATOR_MOVES = (_COORDINATOR_LOADING, _NO_COORDINATOR, _NOT_COORDINATOR)
_GROUP = 0
# Error codes: unknown, no leave for the topic or the group. People mend these meanwhile.
MENDED_OUTSIDE = (-1, 29, 30)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Access:
    """How brokers are reached: addresses ("host:port,…") and what they ask of clients."""

    bootstrap: str
    protocol: str = "PLAINTEXT"
    mechanism: str | None = None
    username: str | None = None
    password: str | None = None
    ca_file: str | None = None

    def options(self) -> dict[str, Any]:
        """As aiokafka wants them."""
        found: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap,
            "security_protocol": self.protocol,
        }
        if self.protocol.endswith("SSL"):
            found["ssl_context"] = ssl.create_default_context(cafile=self.ca_file)
        if self.protocol.startswith("SASL"):
            found |= {
                "sasl_mechanism": self.mechanism,
                "sasl_plain_username": self.username,
                "sasl_plain_password": self.password,
            }
        return found


class Client(AIOKafkaClient):
    """A client that says when one of its connections was lost."""

    def __init__(self, lost: Callable[[], None], *, bootstrap_servers: str, **options: Any) -> None:
        super().__init__(
            bootstrap_servers=bootstrap_servers, connections_max_idle_ms=None, **options
        )
        self._lost = lost
        self._options = options
        # Requests without an answer yet, and connections that are being made for them.
        self._under_way: set[asyncio.Task[Any]] = set()

    async def bootstrap(self) -> None:
        """Learn of the brokers; the library's own leaves a connection behind when cancelled."""
        for host, port, _ in self.hosts:
            try:
                conn = await create_conn(host, port, **self._options)
                try:
                    self.cluster.update_metadata(await conn.send(MetadataRequest([])))
                finally:
                    conn.close()
                break
            except (KafkaError, OSError, TimeoutError) as error:
                if (why := refusal(error, "MINDWEAVE_KAFKA_CA_FILE")) is not None:
                    _logger.error(
                        "the certificate of Kafka at %s:%s is refused: %s", host, port, why
                    )
        else:
            raise KafkaConnectionError(f"no broker answers at {self._bootstrap_servers}")
        self._sync_task = asyncio.create_task(self._md_synchronizer())

    def request(self, node: int | None, request: Any, lane: Hashable) -> asyncio.Task[Any]:
        """Send a request; the answer is read from the connection even where nobody waits."""
        task = asyncio.create_task(self.send(node, request, group=lane))
        self._under_way.add(task)
        task.add_done_callback(self._answered)
        return task

    def _answered(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _logger.debug("a request has failed: %r", error)

    async def end(self) -> None:
        """Close every connection, those in the making too, which ``close`` would leave behind."""
        await cut(*self._under_way)
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await self.close()

    def _on_connection_closed(self, conn: Any, reason: CloseReason) -> None:
        self._lost()
        super()._on_connection_closed(conn, reason)


def connected(access: Access, name: str, lost: Callable[[], None]) -> Client:
    """A client, still to be bootstrapped; brokers see it as ``name``."""
    return Client(
        lost,
        client_id=f"mindweave-{name}",
        request_timeout_ms=int(_LIBRARY_TIMEOUT * 1000),
        **access.options(),
    )


@dataclass(frozen=True)
class Topic:
    """A topic as the brokers know it: its id, made with it, and each partition's leader."""

    name: str
    id: UUID
    leaders: tuple[int, ...]


class Unready(BusUnavailable):
    """A broker answered that it cannot serve this now; another place or moment may."""


class Refused(Exception):
    """A broker answered with an error that waiting does not mend."""

    def __init__(self, what: str, code: int) -> None:
        self.code = code
        super().__init__(f"{what}: {for_code(code).__name__} ({code})")


class Cluster:
    """Asks brokers, each question within a time limit.

    The connections are thrown away together as soon as one question has failed: aiokafka's own
    recovery has stalled before, and a new start from the addresses takes milliseconds.
    """

    def __init__(self, access: Access, name: str) -> None:
        # Each failure reaches the caller; the library repeats it at level error.
        logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
        self.access = access
        self.name = name
        # Counts the lost connections: what was known before may not hold any more.
        self.losses = 0
        self._client: Client | None = None
        self._closed = False
        self._connecting: asyncio.Task[Client] | None = None
        self._topics: dict[str, tuple[float, Topic]] = {}
        self._coordinators: dict[str, int] = {}
        self._slots: dict[int, set[int]] = {}
        self._background: set[asyncio.Task[Any]] = set()

    async def close(self) -> None:
        self._closed = True
        if self._connecting is not None:
            await asyncio.wait([self._connecting])
        self.reset()
        while self._background:
            await asyncio.wait(self._background)

    async def ask(
        self,
        node: int | None,
        request: Any,
        *,
        lane: Hashable = "short",
        wait: float = 0.0,
    ) -> Any:
        """The answer of a broker.

        Args:
            node: the broker's id; None asks any.
            request: one of aiokafka's or of ``protocol``.
            lane: questions in one lane share a connection, and a broker answers them in turn.
            wait: seconds that the broker may take over its usual time.

        Raises:
            BusUnavailable: none came in time.
        """
        client = await self._connected()
        chosen = client.get_random_node() if node is None else node
        sent = client.request(chosen, request, lane)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT + wait):
                await asyncio.wait([sent])
                if sent.cancelled():
                    raise BusUnavailable
                return sent.result()
        except (KafkaError, OSError, TimeoutError) as error:
            _logger.info("Kafka at %s does not answer: %r", self.access.bootstrap, error)
            self._discard(client)
            raise BusUnavailable from error

    async def ask_waiting(self, node: int, request: Any, wait: float) -> Any:
        """As ``ask``, in a lane that nobody else waits in."""
        taken = self._slots.setdefault(node, set())
        slot = next(n for n in range(len(taken) + 1) if n not in taken)
        taken.add(slot)
        lane = ("waiting", slot)
        asking = self._background_task(self.ask(node, request, lane=lane, wait=wait))
        # A caller that is cancelled leaves the answer behind, which still has to come.
        asking.add_done_callback(lambda _: taken.discard(slot))
        return await asyncio.shield(asking)

    async def ask_coordinator(
        self,
        group: str,
        request: Any,
        code: Callable[[Any], int],
        *,
        lane: Hashable = "short",
        wait: float = 0.0,
    ) -> Any:
        """The answer of the broker that keeps a group, found anew where it has moved.

        Args:
            group: the group's id in Kafka.
            request: as for ``ask``.
            code: reads the error code of an answer.
            lane: as for ``ask``.
            wait: as for ``ask``.

        Raises:
            BusUnavailable: the group's broker is not known or does not answer.
        """
        deadline = monotonic() + ANSWER_TIMEOUT
        while True:
            node = self._coordinators.get(group)
            if node is None:
                found = await self.ask(None, FindCoordinatorRequest(group, _GROUP))
                failed, node = found.error_code, found.coordinator_id
            else:
                failed = _NONE
            if failed == _NONE:
                answer = await self.ask(node, request, lane=lane, wait=wait)
                failed = code(answer)
                if failed not in _COORDINATOR_MOVES:
                    self._coordinators[group] = node
                    return answer
            self._coordinators.pop(group, None)
            if failed not in _COORDINATOR_MOVES:
                raise Refused(f"coordinator of {group}", failed)
            if monotonic() > deadline:
                raise Unready(f"No broker keeps the group {group} now.")
            await asyncio.sleep(_RETRY_EVERY)

    async def topic(self, name: str, age: float = math.inf) -> Topic:
        """What the brokers knew of a topic at most ``age`` seconds ago.

        Raises:
            TopicUnknown: it does not exist.
            BusUnavailable: the brokers do not answer, or a partition has no leader now.
        """
        found_at, known = self._topics.get(name, (0.0, None))
        if known is not None and monotonic() - found_at <= age:
            return known
        return await self.look_up(name)

    async def look_up(self, name: str) -> Topic:
        """As ``topic``, never from memory."""
        losses, asked = self.losses, monotonic()
        answer = await self.ask(None, TopicsRequest([name]))
        ((code, _, topic_id, _, partitions, _, _),) = answer.topics
        if code == _UNKNOWN_TOPIC:
            self.forget(name)
            raise TopicUnknown(name)
        leaders = {number: leader for error, number, leader, *_ in partitions if error == _NONE}
        if code != _NONE or not leaders or set(leaders) != set(range(len(partitions))):
            raise Unready(f"{name} has no leader now.")
        topic = Topic(name, topic_id, tuple(leaders[n] for n in range(len(partitions))))
        if losses == self.losses:
            self._topics[name] = asked, topic
        return topic

    def forget(self, name: str) -> None:
        """Ask again for a topic whose partitions may have moved."""
        self._topics.pop(name, None)

    async def ping(self) -> None:
        """Ask any broker whether it is there."""
        await self.ask(None, TopicsRequest([]))

    def reset(self) -> None:
        """Begin anew with every connection."""
        if self._client is not None:
            self._discard(self._client)

    def check(self, what: str, code: int, name: str) -> None:
        """See to the error code of an answer about a topic.

        Raises:
            BusUnavailable: its partitions have moved, or are not served now.
            Refused: any other error.
        """
        error = for_code(code)
        if error is NoError:
            return
        self.forget(name)
        if error.retriable or error.invalid_metadata or code in MENDED_OUTSIDE:
            raise Unready(f"{what}: {error.__name__}")
        raise Refused(what, code)

    async def _connected(self) -> Client:
        if self._client is not None:
            return self._client
        if self._closed:
            raise BusUnavailable("This bus is closed.")
        # All who wait share one attempt: one after the other they would wait for ever longer.
        if self._connecting is None:
            self._connecting = self._background_task(self._connect())
        return await asyncio.shield(self._connecting)

    async def _connect(self) -> Client:
        client = connected(self.access, self.name, self._on_lost)
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT):
                await client.bootstrap()
        except (KafkaError, OSError, TimeoutError) as error:
            _logger.info("Kafka at %s: no connection: %r", self.access.bootstrap, error)
            self._background_task(client.end())
            raise BusUnavailable from error
        else:
            self._client = client
            return client
        finally:
            self._connecting = None

    def _on_lost(self) -> None:
        self.losses += 1
        self._topics.clear()
        self._coordinators.clear()

    def _discard(self, client: Client) -> None:
        if client is not self._client:
            return
        self._client = None
        self._on_lost()
        self._background_task(client.end())

    def _background_task(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        # Who asked may have gone before the answer: then nobody else takes note of an error.
        if not task.cancelled() and (error := task.exception()) is not None:
            _logger.debug("an answer came too late: %r", error)


def partition_errors(topics: Sequence[Any]) -> int:
    """The first error code among partitions, in answers of the shape (topic, [(…, code)])."""
    return next((part[-1] for _, parts in topics for part in parts if part[-1]), _NONE)
