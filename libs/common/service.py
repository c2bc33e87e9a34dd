"""What a service is made of, and what the kit hands to it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import grpc.aio

from common.background import BOTH, Background, PartStatus, Role
from common.clock import Clock, SystemClock
from common.database import Database
from common.events.bus import Bus
from common.events.drivers import bus_for
from common.http.app import RestApp
from common.identity.access import AccessResolver
from common.identity.sealing import Sealer
from common.identity.service_tokens import ServiceTokens, issued_by
from common.identity.tokens import TokenVerifier, published_keys
from common.resilience import Guard
from common.rpc.client import Channel
from common.settings import Settings, rpc_target, sealing_key, service_secret
from common.telemetry import Telemetry
from mindweave.auth.v1.auth_pb2_grpc import AuthServiceStub
from mindweave.team.v1.team_pb2_grpc import TeamServiceStub

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = [
    "BOTH",
    "Background",
    "PartStatus",
    "Parts",
    "Placed",
    "Role",
    "Runtime",
    "Service",
]

S = TypeVar("S")

# Where a service is called in a cluster, whose names lead to it.
_RPC_PORT = 9000


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
        serving: what must run wherever the service answers, such as what keeps a cache true.
        tasks: work that any number of processes share: consumers, relays, sweeps.

    What runs in the background runs from readiness to the drain.
    """

    servicers: Sequence[tuple[str, object]] = ()
    app: RestApp | None = None
    serving: Sequence[Background] = ()
    tasks: Sequence[Background] = ()


@dataclass(frozen=True)
class Placed:
    """A service in a process, with what of it runs there."""

    service: Service
    roles: frozenset[Role] = BOTH


class Runtime:
    """One service's own surroundings; it shares none of them with another service.

    Args:
        name: the service's.
        settings: of the process.
        telemetry: the service's.
        version: of the code that runs.
        own_address: where this process serves gRPC.
        beside: the services that this process serves; None where that is every one. A callee
            that the settings give no address is here or, by its name, on port 9000.
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
        beside: Collection[str] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.name = name
        self.settings = settings
        self.telemetry = telemetry
        self.version = version
        self.clock = clock or SystemClock()
        self._own_address = own_address
        self._beside = beside
        self._channels: dict[str, Channel] = {}
        self._callees: dict[str, Guard] = {}
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
        bus = bus_for(self.settings, telemetry=self.telemetry)
        self._closing.push_async_callback(bus.stop)
        return bus

    @cached_property
    def cache(self) -> Redis:
        """The cache, which may be down: the caller decides what it does without."""
        # A fifth of a start's imports, and most services keep nothing in it.
        from common.cache import open_cache

        cache = open_cache(self.settings.cache_address())
        self._closing.push_async_callback(cache.aclose)
        return cache

    @property
    def probes(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """What the service stands on, by name, and how to ask whether it is there.

        Raises:
            Unavailable: from each; it is not.
        """
        asked: dict[str, Callable[[], Awaitable[None]]] = {}
        if self._database is not None:
            asked["database"] = self._database.ping
        asked["broker"] = self.bus.ping
        if "cache" in vars(self):
            from common.cache import ping

            asked["cache"] = partial(ping, self.cache)
        return asked

    def channel(self, callee: str) -> Channel:
        """A channel to ``callee`` with the kit's client interceptors; made once.

        Raises:
            LookupError: the table of callers does not allow it.
        """
        if callee not in self._channels:
            self._channels[callee] = self._open_channel(callee, self.service_token)
        return self._channels[callee]

    def _open_channel(self, callee: str, tokens: ServiceTokens | None) -> Channel:
        target = self._target(callee)
        guard = self._callees.get(callee)
        if guard is None:
            guard = Guard(callee, self.settings.resilience, self.telemetry)
            self._callees[callee] = guard
        channel = Channel(
            callee,
            target,
            telemetry=self.telemetry,
            tokens=tokens,
            timeout=self.settings.rpc_timeout,
            guard=guard,
            # A process calls itself until it ends, and every server has its first words with auth
            # before either is ready. Behind a name that settings do not resolve, a mesh or a load
            # balancer may choose for each call, and a watch would tell of one server alone.
            watched=tokens is not None and callee in self.settings.addresses,
        )
        self._closing.push_async_callback(channel.close)
        return channel

    def _target(self, callee: str) -> str:
        named = self.settings.addresses.get(callee)
        if named is not None:
            return rpc_target(named)
        if self._beside is None or callee in self._beside:
            return self._own_address
        return f"{callee.replace('_', '-')}:{_RPC_PORT}"

    def stub(self, callee: str, kind: Callable[[grpc.aio.Channel], S]) -> S:
        """A stub of ``callee``, such as ``runtime.stub("team", TeamServiceStub)``."""
        return kind(self.channel(callee))

    async def close(self) -> None:
        """Close every pool, connection and channel, the last one first."""
        await self._closing.aclose()
