"""What stands before every handler, one meaning a file, and in which order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from common.identity.access import AccessResolver
from common.identity.tokens import TokenVerifier
from common.rpc.contract import Operation
from common.rpc.exchange import Check, Exchange, Handler, Interceptor, Judge
from common.rpc.interceptors.caller import Caller
from common.rpc.interceptors.conditions import note_expected_version, tell_version
from common.rpc.interceptors.deadline import Deadline
from common.rpc.interceptors.errors import Errors
from common.rpc.interceptors.idempotency import FindAnswer, Idempotency
from common.rpc.interceptors.metrics import Metrics
from common.rpc.interceptors.permission import Permission, demand_authorized
from common.rpc.interceptors.principal import Principals
from common.rpc.interceptors.tracing import Tracing
from common.rpc.interceptors.validation import Validation
from common.telemetry import Telemetry

if TYPE_CHECKING:
    from protovalidate import Validator

__all__ = ["FindAnswer", "Guards", "guarded"]

DEFAULT_DEADLINE = 10.0


def _validator() -> Validator:
    # A tenth of a start's imports, for those that serve no rpc, too.
    from protovalidate import Validator

    return Validator()


@dataclass(frozen=True, slots=True)
class Guards:
    """What the interceptors of one service ask.

    ``find_answer`` looks up answers in the service's database; ``deadline`` is in seconds, for
    calls that bring none.
    """

    telemetry: Telemetry
    verifier: TokenVerifier
    access: AccessResolver
    find_answer: FindAnswer | None = None
    deadline: float = DEFAULT_DEADLINE
    validator: Validator = field(default_factory=_validator)


def guarded(operation: Operation, handler: Handler, guards: Guards) -> Handler:
    """The handler of an operation, behind everything that stands before it.

    A call is judged in the order of api.md: who calls (401), the request's shape (422), whether
    the caller may (404, 403), then the handler (409, 412). The repeat of a call that was answered
    is not judged again by what has changed since: it may have deleted its own organization.
    """
    permission = Permission(guards.access)
    judges: tuple[Judge, ...] = (
        Caller(guards.verifier),
        Principals(guards.verifier),
        Validation(guards.validator),
    )
    shaped = tuple(filter(None, (judge.check(operation) for judge in judges)))
    allowed = (permission.check(operation), note_expected_version)
    handled = permission.wrap(operation, handler)

    async def served(exchange: Exchange) -> bytes:
        await _pass(allowed, exchange)
        answer = await handled(exchange)
        demand_authorized(operation, exchange)
        return answer

    once = Idempotency(guards.find_answer).wrap(operation, served)

    async def judged_first(exchange: Exchange) -> bytes:
        await _pass(shaped, exchange)
        answer = await once(exchange)
        tell_version(exchange)
        return answer

    around: tuple[Interceptor, ...] = (
        Tracing(guards.telemetry),
        Metrics(guards.telemetry),
        Errors(guards.telemetry),
        Deadline(guards.deadline),
    )
    whole: Handler = judged_first
    for interceptor in reversed(around):
        whole = interceptor.wrap(operation, whole)
    return whole


async def _pass(checks: Iterable[Check], exchange: Exchange) -> None:
    for check in checks:
        waiting = check(exchange)
        if waiting is not None:
            await waiting
