"""On whose behalf a call is made."""

from __future__ import annotations

from collections.abc import Awaitable
from uuid import UUID

from common.errors import Unauthenticated
from common.identity.call import Principal
from common.identity.tokens import TokenVerifier
from common.rpc.contract import Operation
from common.rpc.exchange import Check, Exchange
from common.rpc.metadata import ACTING_FOR, BEARER, PRINCIPAL

# Acts for those outside alone; a call of its own without a credential is an outsider's.
_EDGE = "gateway"


class Principals:
    """Verifies the token that travelled here from the edge.

    Without one, a public operation is called by nobody in particular, and any other by the calling
    service itself.
    """

    def __init__(self, verifier: TokenVerifier) -> None:
        self._verifier = verifier

    def check(self, operation: Operation) -> Check:
        verifier = self._verifier

        def check(exchange: Exchange) -> Awaitable[None] | None:
            call, offered = exchange.call, exchange.metadata.get(PRINCIPAL)
            if offered is None:
                if not operation.public:
                    call.principal = _service(operation, call.caller)
                    call.acting_for = _organizations(exchange.metadata.get(ACTING_FOR, ""))
                return None
            if not offered.startswith(BEARER):
                raise Unauthenticated
            token = offered[len(BEARER) :]
            principal = verifier.known(token)
            if principal is None:
                return verify(exchange, token)
            call.principal = _no_service(principal)
            return None

        async def verify(exchange: Exchange, token: str) -> None:
            exchange.call.principal = _no_service(await verifier.verify(token))

        return check


def _no_service(principal: Principal) -> Principal:
    """A service shows its token as a caller, never as the one it calls for."""
    if principal.kind == "service":
        raise Unauthenticated
    return principal


def _service(operation: Operation, caller: str | None) -> Principal:
    if caller is None or (caller == _EDGE and operation.permission != "service"):
        raise Unauthenticated
    return Principal("service", service=caller)


def _organizations(listed: str) -> tuple[UUID, ...]:
    try:
        return tuple(UUID(org) for org in listed.split(",") if org)
    except ValueError:
        raise Unauthenticated from None
