"""What a service is made of, and what the kit hands to it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import grpc.aio
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from common.background import Background, PartStatus
from common.clock import Clock, SystemClock
from common.database import Database
from common.events.bus import Bus
from common.events.redis_streams import RedisStreamsBus
from common.http.app import RestApp
from common.identity.access import AccessResolver
from common.identity.sealing import Sealer
from common.identity.service_tokens import ServiceTokens, issued_by
from common.identity.tokens import TokenVerifier, published_keys
from common.rpc.client import Channel
from common.settings import Settings, sealing_key, service_secret
from common.telemetry import Telemetry
from mindweave.auth.v1.auth_pb2_grpc import AuthServiceStub
from mindweave.team.v1.team_pb2_grpc import TeamServiceStub

__all__ = ["Background", "PartStatus", "Parts", "Runtime", "Service"]

S = TypeVar("S")

# Seconds until a cache that does not answer is done without.
_CACHE_TIMEOUT = 0.5


@dataclass(frozen=True)
class Service:
    """A deployable. ``migrations`` is None where the service owns no database."""

    name: str
    build: Callable[[Runtime], Awaitable[Parts]]
    migrations: Path | None


@dataclass
class Parts:
    """What a service runs.

    Attributes:
        servicers: pairs of full gRPC service name, "mindweave.team.v1.TeamService", and servicer.
        app: its own REST handlers.
        tasks: run from readiness to the drain.
    """

    servicers: Sequence[tuple[str, object]] = ()
    app: RestApp | None = None
    tasks: Sequence[Background] = field(default_factory=list)


class Runtime:
    """One service's own surroundings; it shares none of them with another service.

    Args:
        name: the service's.
        settings: of the process.
        telemetry: the service's.
        version: of the code that runs.
        own_address: where this process serves gRPC; callees are there unless settings name
            another address.
        clock: the machine's when absent.
    """

    def __init__(
        self,
        name: str,
        settings: Settings,
        *,
        telemetry: Telemetry,
        version: str,
        own_address: str,
        clock: Clock | None = None,
    ) -> None:
        self.name = name
        self.settings = settings
        self.telemetry = telemetry
        self.version = version
        self.clock = clock or SystemClock()
        self._own_address = own_address
        self._channels: dict[str, Channel] = {}
        self._database: Database | None = None
        self._closing = AsyncExitStack()
        # What needs no token of its own fetches the token and the keys.
        bare = self._open_channel("auth", None)
        auth = AuthServiceStub(bare)
        secret = service_secret(settings, name)
        self.service_token = ServiceTokens(issued_by(auth, name, secret), self.clock)
        self.verifier = TokenVerifier(published_keys(auth), settings.issuer, self.clock)
        self.access = AccessResolver(self.stub("team", TeamServiceStub), self.clock)
        self.sealer = Sealer(sealing_key(settings, name))

    async def database(self) -> Database:
        """This service's pool, as its runtime role; made once."""
        if self._database is None:
            self._database = await Database.open(
                self.settings.runtime_dsn(self.name),
                name=self.name,
                size=self.settings.pool_size,
                clock=self.clock,
                sealer=self.sealer,
                telemetry=self.telemetry,
            )
            self._closing.push_async_callback(self._database.close)
        return self._database

    @cached_property
    def bus(self) -> Bus:
        """The event broker; it may be down, and then its methods raise ``BusUnavailable``."""
        bus = RedisStreamsBus(
            self.settings.broker_url(),
            telemetry=self.telemetry,
            max_records=self.settings.stream_max_records,
        )
        self._closing.push_async_callback(bus.stop)
        return bus

    @cached_property
    def cache(self) -> redis.asyncio.Redis:
        """The cache, which may be down: the caller decides what it does without."""
        cache = redis.asyncio.Redis.from_url(
            self.settings.cache_url or self.settings.broker_url(),
            socket_timeout=_CACHE_TIMEOUT,
            socket_connect_timeout=_CACHE_TIMEOUT,
            retry=Retry(NoBackoff(), 0),
        )
        self._closing.push_async_callback(cache.aclose)
        return cache

    def channel(self, callee: str) -> Channel:
        """A channel to ``callee`` with the kit's client interceptors; made once.

        Raises:
            LookupError: the table of callers does not allow it.
        """
        if callee not in self._channels:
            self._channels[callee] = self._open_channel(callee, self.service_token)
        return self._channels[callee]

    def _open_channel(self, callee: str, tokens: ServiceTokens | None) -> Channel:
        address = self.settings.addresses.get(callee, self._own_address)
        channel = Channel(callee, address, telemetry=self.telemetry, tokens=tokens)
        self._closing.push_async_callback(channel.close)
        return channel

    def stub(self, callee: str, kind: Callable[[grpc.aio.Channel], S]) -> S:
        """A stub of ``callee``, such as ``runtime.stub("team", TeamServiceStub)``."""
        return kind(self.channel(callee))

    async def close(self) -> None:
        """Close every pool, connection and channel, the last one first."""
        await self._closing.aclose()
