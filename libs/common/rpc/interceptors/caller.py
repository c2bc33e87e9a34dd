"""Which service is calling, and whether it may call this one."""

from __future__ import annotations

from collections.abc import Awaitable

from common.errors import PermissionDenied, Unauthenticated
from common.identity.call import Principal
from common.identity.callers import may_call
from common.identity.tokens import TokenVerifier
from common.rpc.contract import Operation
from common.rpc.exchange import Check, Exchange
from common.rpc.metadata import CALLER, WITHOUT_CALLER

# The calling service's own credential is wrong: nothing that its user could change.
CALLER_UNKNOWN = "caller_unknown"
CALLER_NOT_PERMITTED = "caller_not_permitted"


class Caller:
    """Lets in the services that the table of callers names, by the token auth gave them."""

    def __init__(self, verifier: TokenVerifier) -> None:
        self._verifier = verifier

    def check(self, operation: Operation) -> Check | None:
        if operation.full_name in WITHOUT_CALLER:
            return None
        verifier, callee = self._verifier, operation.service

        def check(exchange: Exchange) -> Awaitable[None] | None:
            token = exchange.metadata.get(CALLER)
            if not token:
                raise _unknown()
            principal = verifier.known(token)
            if principal is None:
                return verify(exchange, token)
            exchange.call.caller = _admitted(principal, callee)
            return None

        async def verify(exchange: Exchange, token: str) -> None:
            try:
                principal = await verifier.verify(token)
            except Unauthenticated as error:
                raise _unknown() from error
            exchange.call.caller = _admitted(principal, callee)

        return check


def _admitted(principal: Principal, callee: str) -> str:
    if principal.service is None:
        raise _unknown()
    if not may_call(principal.service, callee):
        raise PermissionDenied(
            f"{principal.service} may not call {callee}.", code=CALLER_NOT_PERMITTED
        )
    return principal.service


def _unknown() -> Unauthenticated:
    return Unauthenticated("Only services that are known may call this.", code=CALLER_UNKNOWN)
