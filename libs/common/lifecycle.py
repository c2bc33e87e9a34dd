"""The life of a process: what starts in which order, how it tells that it is ready, how it ends."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from functools import partial

from starlette.applications import Starlette
from starlette.routing import Route

from common.addresses import reachable
from common.background import Background
from common.clock import Clock
from common.database import Database, find_answer, pending
from common.database.housekeeping import housekeeping
from common.database.statistics import statistics
from common.errors import MindWeaveError, NotReady
from common.events.bus import TopicUnknown
from common.events.catalog import event_types
from common.http.edge import Edge
from common.http.health import PartHealth, ServiceHealth, health_pages, metrics_page
from common.http.server import HttpServer
from common.outbox import Relay
from common.rpc.interceptors import Guards
from common.rpc.server import Server
from common.service import Parts, Placed, Role, Runtime, Service
from common.settings import Settings, parse_address
from common.telemetry import Metrics, Telemetry, Tracing

_EDGE = "gateway"
# Seconds in which a dependency answers a probe, and between two probes while it does not.
_PROBE = 2.0
_AGAIN = 0.1
_AGAIN_AT_MOST = 0.5
# Seconds between two lines that tell what is waited for.
_TELL = 10.0
# Anybody may ask for health: the answer stands this long, in seconds.
_REPORT_STANDS = 0.2
# Topics of events that are told one by one have this many partitions; it is stored with them.
_EVENT_PARTITIONS = 2
_LEDGER_PARTITIONS = 4
# Topics of the ledger lose nothing that these groups have not applied, though they start later.
_KEPT_FOR = {"usage.events": ["usage_tracker"], "usage.windows": ["analytics"]}

Probe = Callable[[], Awaitable[object]]


@dataclass
class _Member:
    """A service of this process, with what was built for it."""

    service: Service
    roles: frozenset[Role]
    runtime: Runtime
    parts: Parts
    database: Database | None
    serving: list[Background] = field(default_factory=list)
    working: list[Background] = field(default_factory=list)

    @property
    def tasks(self) -> list[Background]:
        return self.serving + self.working

    @property
    def name(self) -> str:
        return self.service.name


@dataclass(frozen=True, slots=True)
class _Report:
    """What was told of the services in a phase, and until when (loop time) that stands."""

    phase: str
    until: float
    services: list[ServiceHealth]


class Host:
    """Runs services in this process, on one gRPC server and one HTTP server.

    ``rpc_address``, ``http_address`` and ``metrics_address`` are "host:port" once it has started;
    ``http_address`` is empty where no service answers over HTTP.

    Args:
        services: in any order; without roles they do all that they can.
        settings: of the process.
        version: of the code that runs.
        patient: wait without limit for what the services depend on, instead of
            ``startup_timeout``; they call those that are not here by name.
        clock: the machine's when absent.
    """

    def __init__(
        self,
        services: Sequence[Service | Placed],
        settings: Settings,
        *,
        version: str,
        patient: bool = False,
        clock: Clock | None = None,
    ) -> None:
        self._services = [s if isinstance(s, Placed) else Placed(s) for s in services]
        self._settings = settings
        self._version = version
        self._patient = patient
        self._clock = clock
        self._awaited: dict[str, str] = {}
        self._metrics = Metrics.of_process()
        self._tracing = Tracing(settings.otlp_endpoint, version=version)
        self._telemetry = Telemetry("host", metrics=self._metrics, tracing=self._tracing)
        self._rpc = Server(settings.grpc_listen)
        self._http: HttpServer | None = None
        self._metrics_http: HttpServer | None = None
        self._members: list[_Member] = []
        self._runtimes: list[Runtime] = []
        self._started: list[Background] = []
        self._phase = "starting"
        self._told: _Report | None = None
        self._asking: asyncio.Task[list[ServiceHealth]] | None = None
        self.rpc_address = ""
        self.http_address = ""
        self.metrics_address = ""

    async def start(self) -> None:
        """Start everything; returns when every service is ready.

        Raises:
            NotReady: a database, the broker or auth was not there in time.
            OSError: an address is taken.
        """
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        host, _ = parse_address(self._settings.grpc_listen)
        self.rpc_address = f"{reachable(host)}:{self._rpc.bind()}"
        self._metrics_http = HttpServer(
            self._operations(), self._settings.metrics_listen, drain=1.0
        )
        self.metrics_address = await self._metrics_http.start()
        for placed in self._services:
            self._members.append(await self._build(placed))
        await self._rpc.start()
        await self._listen()
        self._telemetry.log.info(
            "listening",
            rpc=self.rpc_address,
            http=self.http_address,
            metrics=self.metrics_address,
        )
        await self._wait_for_dependencies()
        for member in self._members:
            for task in member.tasks:
                self._started.append(task)
                await task.start()
        # What it answers does not wait until its consumers have their places.
        await self._wait("parts that serve", partial(self._require_ready, working=False))
        await self._rpc.serve(True)
        await self._wait("parts", self._require_ready)
        self._phase = "running"
        self._telemetry.log.info("ready", services=[member.name for member in self._members])

    async def stop(self) -> None:
        """Refuse new work, finish what is in hand, end the background work, close; once.

        After ``drain_delay``, in which those who ask for health send their calls elsewhere.
        """
        if self._phase == "stopping":
            return
        was_running = self._phase == "running"
        self._phase = "stopping"
        await self._rpc.serve(False)
        if was_running:
            await asyncio.sleep(self._settings.drain_delay)
        if self._http is not None:
            await self._http.stop()
        stops = (task.stop() for task in self._started)
        outcomes = await asyncio.gather(*stops, return_exceptions=True)
        for task, outcome in zip(self._started, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                self._telemetry.log.error("did not stop", part=task.name, exc_info=outcome)
        await self._rpc.stop(self._settings.drain_timeout)
        if self._metrics_http is not None:
            await self._metrics_http.stop()
        for runtime in reversed(self._runtimes):
            await runtime.close()
        await self._tracing.stop()

    async def health(self) -> list[ServiceHealth]:
        """Every service of this process with its parts, as they were a moment ago at most.

        Whoever asks while the answer is looked for gets the same one.
        """
        told, now = self._told, asyncio.get_running_loop().time()
        if told is not None and told.phase == self._phase and now <= told.until:
            return told.services
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask_health(), context=Context())
        return await asyncio.shield(self._asking)

    async def _ask_health(self) -> list[ServiceHealth]:
        found = await asyncio.gather(*(self._health_of(m) for m in self._members))
        until = asyncio.get_running_loop().time() + _REPORT_STANDS
        self._told = _Report(self._phase, until, found)
        return found

    def dead(self) -> list[ServiceHealth]:
        """The services with parts that only a new process can help, and of their parts these."""
        if self._phase != "running":
            return []
        found = []
        for member in self._members:
            statuses = [(task.name, task.status()) for task in member.tasks]
            parts = [PartHealth(name, False, s.detail, s.lag) for name, s in statuses if not s.live]
            if parts:
                found.append(ServiceHealth(member.name, False, self._version, parts))
        return found

    async def _build(self, placed: Placed) -> _Member:
        service, roles = placed.service, placed.roles
        runtime = Runtime(
            service.name,
            self._settings,
            telemetry=Telemetry(service.name, metrics=self._metrics, tracing=self._tracing),
            version=self._version,
            own_address=self.rpc_address,
            beside=self._served if self._patient else None,
            clock=self._clock,
        )
        self._runtimes.append(runtime)
        runtime.telemetry.gauge(
            "mindweave_build_info", "1, labelled with the version that runs.", ["version"]
        ).of(version=self._version).set(1)
        await runtime.bus.start()
        parts = await service.build(runtime)
        database = await runtime.database() if service.migrations is not None else None
        member = _Member(service, roles, runtime, parts, database)
        if Role.SERVE in roles:
            member.serving += parts.serving
            self._serve(member)
        if Role.WORK in roles:
            member.working += parts.tasks
            if database is not None:
                member.working += [Relay(database, runtime.bus), housekeeping(database)]
                member.working.append(statistics(database))
        return member

    @property
    def _served(self) -> frozenset[str]:
        return frozenset(p.service.name for p in self._services if Role.SERVE in p.roles)

    def _serve(self, member: _Member) -> None:
        if not member.parts.servicers:
            return
        runtime, database = member.runtime, member.database
        guards = Guards(
            telemetry=runtime.telemetry,
            verifier=runtime.verifier,
            access=runtime.access,
            find_answer=partial(find_answer, database) if database is not None else None,
        )
        for name, servicer in member.parts.servicers:
            self._rpc.add(name, servicer, guards)

    async def _listen(self) -> None:
        settings = self._settings
        facing = [
            member
            for member in self._members
            if member.parts.app is not None and Role.SERVE in member.roles
        ]
        if not facing:
            return
        # The gateway's credential checks and limits hold for all that is mounted beside it.
        chosen = next((member for member in facing if member.name == _EDGE), facing[0])
        apps = [member.parts.app for member in facing if member.parts.app is not None]
        edge = Edge(chosen.runtime, apps, self.health, dead=self.dead)
        chosen.serving += edge.tasks
        self._http = HttpServer(
            edge,
            settings.listen,
            drain=settings.drain_timeout,
            trusted_proxies=settings.trusted_proxies,
            connections=settings.limits.connections,
        )
        self.http_address = await self._http.start()

    def _operations(self) -> Starlette:
        """What the orchestrator and Prometheus ask."""
        roles = {placed.service.name: placed.roles for placed in self._services}
        metrics = metrics_page(self._metrics, self.health, roles)
        pages = {"/metrics": metrics, **health_pages(self.health, self.dead)}
        return Starlette(routes=[Route(path, page) for path, page in pages.items()])

    async def _wait_for_dependencies(self) -> None:
        waits = []
        for member in self._members:
            if member.database is not None:
                migrated = partial(_require_migrated, member.database, member.service)
                waits.append(self._wait(f"the database of {member.name}", migrated))
            declared = partial(self._declare_topics, member.runtime)
            waits.append(self._wait(f"the event broker of {member.name}", declared))
            waits.append(self._wait(f"auth for {member.name}", member.runtime.service_token.get))
        await asyncio.gather(*waits)

    async def _declare_topics(self, runtime: Runtime) -> None:
        """Every topic that an event type names exists before anybody publishes."""
        counts = {
            "usage.events": self._settings.partitions or await _as_many_as(runtime, "usage.events"),
            "usage.windows": self._settings.windows_partitions,
        }
        for topic in sorted({event.topic for event in event_types().values()} | counts.keys()):
            partitions = counts.get(topic, _EVENT_PARTITIONS)
            await runtime.bus.declare(topic, partitions, _KEPT_FOR.get(topic, ()))

    async def _require_ready(self, working: bool = True) -> None:
        waiting = [
            f"{member.name} {task.name}: {task.status().detail}"
            for member in self._members
            for task in (member.tasks if working else member.serving)
            if not task.status().ready
        ]
        if waiting:
            raise NotReady(", ".join(waiting))

    async def _wait(self, what: str, probe: Probe) -> None:
        """Ask again until it answers.

        Raises:
            NotReady: it did not in time; with its last complaint.
        """
        now = asyncio.get_running_loop().time
        give_up = math.inf if self._patient else now() + self._settings.startup_timeout
        tell, again = now() + _TELL, _AGAIN
        while True:
            try:
                async with asyncio.timeout(_PROBE):
                    await probe()
                self._awaited.pop(what, None)
                return
            except (MindWeaveError, TimeoutError, NotReady) as error:
                if now() > give_up:
                    raise NotReady(f"{what}: {error or 'no answer'}") from error
                self._awaited[what] = str(error) or "no answer"
            if now() > tell:
                tell = now() + _TELL
                self._telemetry.log.warning("waiting", what=what, error=self._awaited[what])
            await asyncio.sleep(again)
            again = min(2 * again, _AGAIN_AT_MOST)

    async def _health_of(self, member: _Member) -> ServiceHealth:
        if self._phase == "stopping":
            # At once, and whatever the state of the others: who hears it goes elsewhere.
            ending = PartHealth("process", False, "is ending")
            return ServiceHealth(member.name, False, self._version, [ending])
        probes = member.runtime.probes.items()
        parts = list(await asyncio.gather(*(_probe(name, probe) for name, probe in probes)))
        for task in member.tasks:
            status = task.status()
            parts.append(PartHealth(task.name, status.ready, status.detail, status.lag))
        for what, complaint in self._awaited.items():
            parts.append(PartHealth("start", False, f"waits for {what}: {complaint}"))
        ready = self._phase == "running" and all(part.ready for part in parts)
        return ServiceHealth(member.name, ready, self._version, parts)


async def _probe(name: str, probe: Probe) -> PartHealth:
    try:
        async with asyncio.timeout(_PROBE):
            await probe()
    except TimeoutError:
        return PartHealth(name, False, f"no answer within {_PROBE:g} s")
    except MindWeaveError as error:
        return PartHealth(name, False, str(error))
    return PartHealth(name, True, "")


async def _as_many_as(runtime: Runtime, topic: str) -> int:
    """The topic's own number of partitions, or that of a new one."""
    try:
        return await runtime.bus.partitions(topic)
    except TopicUnknown:
        return _LEDGER_PARTITIONS


async def _require_migrated(database: Database, service: Service) -> None:
    missing = await pending(database, service.migrations)
    database.telemetry.gauge(
        "mindweave_migrations_pending", "Migrations that the database lacks, at the start."
    ).of().set(len(missing))
    if missing:
        raise NotReady(f"lacks {', '.join(missing)}; run `mindweave migrate`")
