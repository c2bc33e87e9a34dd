"""What stands between the socket and every handler of a process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic, perf_counter
from typing import Protocol, TypeVar

import grpc.aio
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.addresses import address_line
from common.background import Background
from common.errors import (
    DeadlineExceeded,
    FieldError,
    Invalid,
    MindWeaveError,
    NotFound,
    RateLimited,
    Unauthenticated,
)
from common.events.bus import Bus
from common.http.app import Handler, RestApp
from common.http.credentials import Credentials
from common.http.health import DeadSource, HealthSource, health_pages
from common.http.limits import Allowance, Limiter, RatePolicy
from common.http.problems import MethodNotAllowed, problem
from common.http.routing import Endpoint, Match, RouteTable
from common.identity.call import ANONYMOUS, Call, Principal, set_call
from common.identity.tokens import TokenVerifier
from common.rpc.contract import operations
from common.settings import Settings
from common.telemetry import SpanKind, Telemetry, correlation_id, inject
from mindweave.auth.v1.auth_pb2_grpc import AuthServiceStub

REQUEST_SECONDS = 30.0
_REGISTER = "/mindweave.auth.v1.AuthService/Register"
_LONGEST_AGENT = 512
# It may have ended the session, which the event would tell a moment later.
_OF_CALLER = "self:write"
# What was refused by its shape alone did not register anybody.
_SHAPE = frozenset({408, 413, 415, 422})
_EXPOSED = (
    "ETag",
    "Idempotent-Replayed",
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "X-Correlation-Id",
    "X-RateLimit-Limit",
    "X-RateLimit-Remaining",
    "X-RateLimit-Reset",
)

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class _Guesses:
    """Credentials of an address that auth did not know; told of in an answer that they stop."""

    exchange: _Exchange
    limiter: Limiter
    policy: RatePolicy
    address: str

    def check(self) -> None:
        allowance = self.limiter.peek(self.policy, self.address)
        if not allowance.allowed:
            self.exchange.allowance = allowance
            raise _limited(allowance)

    def count(self) -> None:
        self.limiter.take(self.policy, self.address)


class EdgeRuntime(Protocol):
    """What the edge takes of a service's runtime."""

    @property
    def settings(self) -> Settings: ...
    @property
    def telemetry(self) -> Telemetry: ...
    @property
    def verifier(self) -> TokenVerifier: ...
    @property
    def bus(self) -> Bus: ...
    def stub(self, callee: str, kind: Callable[[grpc.aio.Channel], S]) -> S: ...


@dataclass(slots=True)
class _Exchange:
    """A request, and what is known of its answer so far."""

    scope: Scope
    receive: Receive
    send_on: Send
    headers: Headers
    deadline: float
    allowance: Allowance | None = None
    subject: str = ""
    status: int = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(raw=message["headers"])
            ours: dict[str, str] = {}
            inject(ours)
            headers.update(ours)
            headers.setdefault("cache-control", "no-store")
            headers.setdefault("content-security-policy", "default-src 'none'")
            headers["x-content-type-options"] = "nosniff"
            if self.allowance is not None:
                self.allowance.describe(headers)
        await self.send_on(message)

    @property
    def address(self) -> str:
        client = self.scope.get("client")
        return client[0] if client else ""


class Edge:
    """The process's ASGI app: one over all its services' REST apps.

    It finds the operation of a route, checks the credential before the body is read, limits the
    rate, binds ``current_call()``, keeps time, counts, and tells every error as problem details.
    ``tasks`` keep its caches true; the host starts them with the services' own.

    Args:
        runtime: the gateway's where it is among the services, else the only service's.
        apps: ``Parts.app`` of each service that has one.
        health: reports on every service of the process.
        dead: tells of those that only a new process can help.
        seconds: until a request is given up, its body included.
    """

    def __init__(
        self,
        runtime: EdgeRuntime,
        apps: Sequence[RestApp],
        health: HealthSource,
        *,
        dead: DeadSource = tuple,
        seconds: float = REQUEST_SECONDS,
    ) -> None:
        settings = runtime.settings
        self._telemetry = runtime.telemetry
        self._seconds = seconds
        self._routes = RouteTable(
            _routes(apps, health_pages(health, dead)),
            ((o.route.verb, o.route.template) for o in operations().values() if o.route),
        )
        self._credentials = Credentials(runtime.verifier, runtime.stub("auth", AuthServiceStub))
        self._limiter = Limiter()
        self._requests = RatePolicy("requests", settings.limits.requests_per_second, 1)
        self._registrations = RatePolicy(
            "registrations", settings.limits.registrations_per_minute, 60
        )
        self._failures = RatePolicy(
            "failed-credentials", settings.limits.failed_credentials_per_minute, 60
        )
        self._durations = runtime.telemetry.histogram(
            "mindweave_http_server_duration_seconds",
            "Time from the head of a request to the end of its answer.",
            ("method", "route", "status"),
        )
        self._app: ASGIApp = self._serve
        if settings.cors_origins:
            self._app = CORSMiddleware(
                self._serve,
                allow_origins=list(settings.cors_origins),
                allow_methods=["GET", "POST", "PATCH", "DELETE"],
                allow_headers=["*"],
                expose_headers=list(_EXPOSED),
            )
        self.tasks: list[Background] = [self._credentials.listen(runtime.bus)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._app(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = perf_counter()
        exchange = _Exchange(
            scope, receive, send, Headers(scope=scope), monotonic() + self._seconds
        )
        method = scope["method"]
        match = self._routes.match(method, scope["raw_path"].decode("latin-1"))
        endpoint = match.endpoint if match is not None else None
        route = endpoint.template if endpoint is not None else "unknown"
        with self._telemetry.continued(
            exchange.headers,
            f"{method} {route}",
            kind=SpanKind.SERVER,
            attributes={"http.request.method": method, "http.route": route},
        ) as span:
            try:
                await self._keep_time(exchange, match)
            finally:
                span.set_attribute("http.response.status_code", exchange.status)
                self._durations.of(
                    method=method if endpoint is not None else "other",
                    route=route,
                    status=str(exchange.status),
                ).observe(perf_counter() - began)

    async def _keep_time(self, exchange: _Exchange, match: Match | None) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                response = await self._answer(exchange, match)
                await response(exchange.scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            return
        except MindWeaveError as error:
            await self._tell(exchange, error)
        except TimeoutError:
            await self._tell(exchange, DeadlineExceeded())
        except Exception:
            if exchange.status:
                raise
            self._telemetry.log.exception("request failed", path=exchange.scope["path"])
            await self._tell(
                exchange, MindWeaveError("The correlation id names what happened in our logs.")
            )

    async def _answer(self, exchange: _Exchange, match: Match | None) -> Response:
        if match is None:
            raise NotFound("There is no such route.", code="route_not_found")
        endpoint = match.endpoint
        if endpoint is None:
            return self._other_method(exchange, match)
        principal = await self._admit(exchange, endpoint)
        scope = exchange.scope
        scope["path_params"] = match.parameters
        if match.undecodable:
            raise Invalid(
                fields=[
                    FieldError(f"/{name}", "invalid_value", "must be UTF-8, percent-encoded")
                    for name in match.undecodable
                ]
            )
        set_call(_call(exchange, endpoint, principal))
        try:
            return await endpoint.handler(Request(scope, exchange.receive, exchange.send))
        finally:
            if endpoint.operation is not None and endpoint.operation.permission == _OF_CALLER:
                self._credentials.forget(session_id=principal.session_id)

    async def _admit(self, exchange: _Exchange, endpoint: Endpoint) -> Principal:
        """Who calls, where the rate allows it; addresses are counted where nobody is known."""
        if not endpoint.limited:
            return ANONYMOUS
        if endpoint.public:
            name = endpoint.operation.full_name if endpoint.operation is not None else ""
            policy = self._registrations if name == _REGISTER else self._requests
            self._take(exchange, policy, address_line(exchange.address))
            return ANONYMOUS
        address = address_line(exchange.address)
        guesses = _Guesses(exchange, self._limiter, self._failures, address)
        try:
            principal = await self._credentials.principal(exchange.headers, guesses)
        except Unauthenticated:
            self._take(exchange, self._requests, address)
            raise
        credential = principal.api_key_id or principal.session_id
        self._take(exchange, self._requests, str(credential))
        return principal

    def _take(self, exchange: _Exchange, policy: RatePolicy, subject: str) -> None:
        exchange.subject = subject
        exchange.allowance = self._limiter.take(policy, subject)
        if not exchange.allowance.allowed:
            raise _limited(exchange.allowance)

    def _other_method(self, exchange: _Exchange, match: Match) -> Response:
        headers = {"Allow": match.allow}
        if exchange.scope["method"] == "OPTIONS":
            return Response(status_code=204, headers=headers)
        error = MethodNotAllowed(f"This path takes {match.allow}.")
        response = self._problem(exchange, error)
        response.headers.update(headers)
        return response

    async def _tell(self, exchange: _Exchange, error: MindWeaveError) -> None:
        if not exchange.status:
            self._correct_count(exchange, error)
            response = self._problem(exchange, error)
            await response(exchange.scope, exchange.receive, exchange.send)

    def _correct_count(self, exchange: _Exchange, error: MindWeaveError) -> None:
        """Tell of registrations as auth counts them, which keeps the count for all gateways."""
        allowance = exchange.allowance
        if allowance is None or allowance.policy is not self._registrations:
            return
        if error.status in _SHAPE:
            self._limiter.give_back(allowance.policy, exchange.subject)
        elif isinstance(error, RateLimited) and allowance.allowed:
            exchange.allowance = Allowance(
                allowance.policy, False, 0, error.retry_after or allowance.reset
            )

    def _problem(self, exchange: _Exchange, error: MindWeaveError) -> Response:
        return problem(error, instance=exchange.scope["path"], correlation_id=correlation_id())


def _limited(allowance: Allowance) -> RateLimited:
    policy = allowance.policy
    return RateLimited(
        f"The limit is {policy.quota} {policy.name.replace('-', ' ')} in {policy.seconds} s.",
        retry_after=allowance.reset,
    )


def _routes(
    apps: Sequence[RestApp], health: Mapping[str, Handler]
) -> Iterator[tuple[str, Endpoint]]:
    known = operations()
    for app in apps:
        for name, handler in app.handlers.items():
            operation = known[name]
            if operation.route is None:
                raise ValueError(f"{name} has no REST route")
            route = operation.route
            yield route.verb, Endpoint(route.template, handler, operation)
        for path, handler in app.pages.items():
            yield "GET", Endpoint(path, handler)
    for path, handler in health.items():
        yield "GET", Endpoint(path, handler, limited=False)


def _call(exchange: _Exchange, endpoint: Endpoint, principal: Principal) -> Call | None:
    operation = endpoint.operation
    if operation is None:
        return None
    agent = exchange.headers.get("user-agent")
    changes = exchange.scope["method"] not in ("GET", "HEAD")
    return Call(
        operation=operation.name,
        principal=principal,
        permission=operation.permission,
        idempotency_key=_idempotency_key(exchange.headers) if changes else None,
        audited=operation.audited,
        ip=exchange.address or None,
        user_agent=agent[:_LONGEST_AGENT] if agent else None,
        correlation_id=correlation_id(),
        deadline=exchange.deadline,
    )


def _idempotency_key(headers: Headers) -> str | None:
    offered = headers.getlist("idempotency-key")
    if not offered:
        return None
    key = offered[0]
    if len(offered) > 1 or not 0 < len(key) <= 255 or not all("!" <= c <= "~" for c in key):
        raise Invalid(
            "Idempotency-Key must be one field of 1 to 255 visible ASCII characters.",
            code="invalid_idempotency_key",
        )
    return key
