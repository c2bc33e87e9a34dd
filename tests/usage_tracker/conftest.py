"""What the tests of usage_tracker share: events as they are recorded, and a running ingest."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar, cast
from uuid import UUID, uuid4

import grpc.aio
import httpx
import msgspec
import pytest

from common.background import PartStatus
from common.clock import ManualClock
from common.errors import Unavailable
from common.events.bus import Bus, Handler, Outgoing, Record, Subscription
from common.events.envelope import PACKED_HEADERS, Envelope, pack, unpack
from common.http.edge import Edge
from common.http.health import ServiceHealth
from common.http.server import HttpServer
from common.identity.api_keys import new_secret
from common.identity.call import Principal, current_call
from common.identity.tokens import TokenVerifier
from common.settings import Settings, load_settings
from common.telemetry import Telemetry
from common.testing import FakeAccess, Served, a_project_key, a_user, serve, silent_telemetry
from mindweave.auth.v1.auth_pb2 import CheckSessionResponse, ExchangeApiKeyResponse
from mindweave.project.v1.project_pb2 import (
    ResolvedProject,
    ResolveProjectsRequest,
    ResolveProjectsResponse,
)
from mindweave.project.v1.project_pb2_grpc import ProjectServiceStub
from services.usage_tracker.actions.ingest import Ingest
from services.usage_tracker.actions.layout import Layouts, Repartitioning
from services.usage_tracker.actions.projects import Projects
from services.usage_tracker.actions.turns import Shares, Turns
from services.usage_tracker.consumer.forgetting import eviction
from services.usage_tracker.domain.columns import columns_of
from services.usage_tracker.domain.judging import Row, microseconds
from services.usage_tracker.domain.layout import Layout, State
from services.usage_tracker.domain.records import EVENTS_TOPIC, UsageEvents
from services.usage_tracker.http import UsageRoutes
from tests.usage_tracker.plain import Arrived, events_of

S = TypeVar("S")
NOW = datetime(2026, 11, 21, 12, 0, 30, tzinfo=UTC)
ORG, OTHER = UUID(int=1), UUID(int=2)
PROJECT, OTHERS_PROJECT, TEAM = UUID(int=11), UUID(int=12), UUID(int=21)
SECRET = "a secret of the tests, longer than needed"
MakeArrived = Callable[..., Arrived]
MakeRecord = Callable[..., Record]


@pytest.fixture(scope="session")
def arrived() -> MakeArrived:
    """Makes an event that has arrived; every field may be given."""

    def make(received_at: datetime = NOW, api_key_id: UUID | None = None, **fields: Any) -> Arrived:
        row: dict[str, Any] = {
            "event_id": uuid4(),
            "org_id": UUID(int=1),
            "team_id": None,
            "at": NOW,
            "event_type": "api_call",
            "project_id": None,
            "user_id": None,
            "model": "claude-haiku-4-5",
            "status": "ok",
            "input_tokens": 1000,
            "output_tokens": 100,
            "cache_read_tokens": 0,
            "cache_write_5m_tokens": 0,
            "cache_write_1h_tokens": 0,
            "digest": b"the same digest!",
            **fields,
        }
        row = {k: v.bytes if isinstance(v, UUID) else v for k, v in row.items()}
        row["at"] = microseconds(row["at"])
        whole = Row(**{name: row.get(name) for name in Row._fields})
        key = api_key_id.bytes if api_key_id is not None else None
        return Arrived(whole, microseconds(received_at), key)

    return make


@pytest.fixture(scope="session")
def record() -> MakeRecord:
    """Makes a record of ``usage.events`` of events that arrived with one request."""

    def make(
        *events: Arrived,
        part: int = 0,
        number: int = 1,
        kind: str = EVENTS_TOPIC,
        partitions: int | None = None,
    ) -> Record:
        first = events[0]
        columns = columns_of([e.row for e in events])
        data = UsageEvents(first.received_at, first.api_key_id, columns, partitions)
        envelope = Envelope(
            id=uuid4(),
            type=kind,
            source="usage_tracker",
            timestamp=NOW,
            data=msgspec.msgpack.encode(data),
        )
        return Record(EVENTS_TOPIC, part, f"1-{number}", "", pack(envelope), PACKED_HEADERS)

    return make


class FixedLayouts:
    """A layout that stays as it is, unless a test sets it; None is one that is being changed."""

    def __init__(self, partitions: int) -> None:
        self.layout: Layout | None = Layout(partitions, 1, State.OPEN, None)

    async def read_in(self, _: object) -> Layout | None:
        return self.layout

    def open(self) -> Layout:
        if self.layout is None:
            raise Repartitioning
        return self.layout

    def confirm(self, layout: Layout) -> None:
        if self.open() != layout:
            raise Repartitioning

    async def read(self) -> Layout:
        return self.open()


def layouts_of(partitions: int) -> Layouts:
    """A layout of so many partitions that stays as it is."""
    return cast(Layouts, FixedLayouts(partitions))


class RecordingBus:
    """Takes what is published, unless it is full or down."""

    name = "recording"

    def __init__(self) -> None:
        self.published: list[list[Outgoing]] = []
        self.failure: Exception | None = None

    async def publish(self, topic: str, records: Sequence[Outgoing]) -> list[str]:
        assert topic == "usage.events"
        if self.failure is not None:
            raise self.failure
        self.published.append(list(records))
        return [str(n) for n, _ in enumerate(records)]

    async def ping(self) -> None:
        if self.failure is not None:
            raise self.failure

    def tail(self, topics: Sequence[str], handler: Handler) -> Subscription:
        return _Tail()

    def data(self) -> list[UsageEvents]:
        return [unpack(r.value, UsageEvents)[1] for records in self.published for r in records]

    def rows(self) -> list[Row]:
        return [event.row for data in self.data() for event in events_of(data)]


class _Tail:
    name = "tail"

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def status(self) -> PartStatus:
        return PartStatus(True)


class Servicer:
    """Has every rpc; those that a test does not expect fail."""

    def __getattr__(self, name: str) -> Any:
        if not name[:1].isupper():
            raise AttributeError(name)

        async def unexpected(request: Any, context: Any) -> Any:
            raise AssertionError(name)

        return unexpected


class Auth(Servicer):
    def __init__(self) -> None:
        self.tokens: dict[str, str] = {}

    async def check(self, request: Any, context: Any) -> CheckSessionResponse:
        return CheckSessionResponse()

    async def exchange(self, request: Any, context: Any) -> ExchangeApiKeyResponse:
        return ExchangeApiKeyResponse(token=self.tokens[request.key])

    CheckSession, ExchangeApiKey = check, exchange


class ProjectService(Servicer):
    def __init__(self) -> None:
        self.projects: dict[UUID, tuple[UUID, UUID | None]] = {
            PROJECT: (ORG, TEAM),
            OTHERS_PROJECT: (OTHER, None),
        }
        self.asked: list[list[str]] = []
        self.down = False

    async def resolve(
        self, request: ResolveProjectsRequest, context: Any
    ) -> ResolveProjectsResponse:
        assert current_call().caller == "usage_tracker"
        if self.down:
            raise Unavailable("down")
        self.asked.append(list(request.ids))
        found = [(i, self.projects[UUID(i)]) for i in request.ids if UUID(i) in self.projects]
        return ResolveProjectsResponse(
            projects=[
                ResolvedProject(id=i, org_id=str(org), team_id=str(team) if team else None)
                for i, (org, team) in found
            ]
        )

    ResolveProjects = resolve


@dataclass
class EdgeRuntime:
    settings: Settings
    telemetry: Telemetry
    verifier: TokenVerifier
    bus: Bus
    served: Served

    def stub(self, callee: str, kind: Callable[[grpc.aio.Channel], S]) -> S:
        return kind(cast(grpc.aio.Channel, self.served.channel(callee, "usage_tracker")))


@dataclass
class World:
    """A running ingest.

    Attributes:
        key: a project's key; ``owner`` and ``stranger`` are users, ``viewer`` may only read.
        evict: what every new platform event is shown to.
        layouts: tells where events go.
    """

    http: httpx.AsyncClient
    bus: RecordingBus
    clock: ManualClock
    projects: ProjectService
    access: FakeAccess
    auth: Auth
    served: Served
    evict: Callable[[Record], Any]
    layouts: FixedLayouts
    key: Principal
    owner: Principal
    viewer: Principal
    stranger: Principal
    keys: dict[UUID | None, str] = field(default_factory=dict)

    def credential(self, principal: Principal) -> dict[str, str]:
        token = self.served.signer.signed(principal).token
        if principal.kind == "user":
            return {"Authorization": f"Bearer {token}"}
        key = self.keys.setdefault(principal.api_key_id, new_secret("project"))
        self.auth.tokens[key] = token
        return {"X-API-Key": key}

    async def send(
        self, *events: Any, as_: Principal | None = None, body: bytes | None = None, **headers: str
    ) -> httpx.Response:
        content = json.dumps({"events": events}).encode() if body is None else body
        return await self.http.post(
            "/v1/events",
            content=content,
            headers={
                "content-type": "application/json",
                **self.credential(as_ or self.key),
                **{name.replace("_", "-"): value for name, value in headers.items()},
            },
        )

    async def track(
        self, event: Any, as_: Principal | None = None, idempotency_key: str | None = None
    ) -> httpx.Response:
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return await self.http.post(
            "/v1/track", json=event, headers={**self.credential(as_ or self.key), **headers}
        )


@pytest.fixture
async def world() -> AsyncIterator[World]:
    clock, bus, access = ManualClock(NOW.replace(second=0)), RecordingBus(), FakeAccess()
    auth, project = Auth(), ProjectService()
    settings = load_settings(secret=SECRET, limits={"requests_per_second": 100_000})
    async with AsyncExitStack() as closing:
        served = await closing.enter_async_context(
            serve(
                [
                    ("mindweave.auth.v1.AuthService", auth),
                    ("mindweave.project.v1.ProjectService", project),
                ],
                clock=clock,
            )
        )
        telemetry = silent_telemetry("usage_tracker")
        runtime = EdgeRuntime(settings, telemetry, served.signer.verifier(), cast(Bus, bus), served)
        projects = Projects(runtime.stub("project", ProjectServiceStub), clock)
        layouts = FixedLayouts(4)
        ingest = Ingest(
            bus=cast(Bus, bus),
            access=access,
            projects=projects,
            clock=clock,
            telemetry=telemetry,
            layouts=cast(Layouts, layouts),
            raw_retention=timedelta(days=7),
            turns=Turns(at_once=2, shares=Shares(60_000_000, 12_000_000, 8_000_000)),
        )

        async def health() -> list[ServiceHealth]:
            return []

        async def repeats() -> dict[str, int]:
            return {"duplicate": 7, "conflict": 2}

        routes = UsageRoutes(ingest, cast(Bus, bus), telemetry, repeats)
        server = HttpServer(Edge(runtime, [routes.app()], health), "127.0.0.1:0", drain=1)
        address = await server.start()
        closing.push_async_callback(server.stop)
        http = httpx.AsyncClient(base_url=f"http://{address}", timeout=30, trust_env=False)
        await closing.enter_async_context(http)
        owner, viewer, stranger = a_user(), a_user(), a_user()
        access.grant(owner, ORG, "owner")
        access.grant(viewer, ORG, "viewer")
        access.grant(stranger, OTHER, "owner")
        key = a_project_key(ORG, PROJECT, ["events:write"])
        yield World(
            http=http,
            bus=bus,
            clock=clock,
            projects=project,
            access=access,
            auth=auth,
            served=served,
            evict=eviction(projects, access),
            layouts=layouts,
            key=key,
            owner=owner,
            viewer=viewer,
            stranger=stranger,
        )


def an_event(**fields: Any) -> dict[str, Any]:
    return {
        "event_id": str(uuid4()),
        "timestamp": "2026-11-21T11:59:00Z",
        "event_type": "api_call",
        "model": "claude-haiku-4-5",
        **fields,
    }


def codes(answer: httpx.Response) -> list[tuple[int, str, str | None]]:
    return [(r["index"], r["code"], r["field"]) for r in answer.json()["rejected"]]
