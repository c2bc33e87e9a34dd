"""Whether the caller may do this, where it asks to do it."""

from __future__ import annotations

from uuid import UUID

from common.errors import NotFound, PermissionDenied, Unauthenticated
from common.identity.access import AccessResolver
from common.identity.call import Call, permitted
from common.identity.permissions import ROLES
from common.rpc.contract import Operation, tenant_reader
from common.rpc.exchange import Check, Exchange, Handler

_BY_ROLE = frozenset().union(*ROLES.values())


class Permission:
    """Checks the permission of an operation on the tenant that its proto names.

    The handler of an operation with ``tenant: "resource"`` calls ``current_call().authorize`` once
    it has found the row; see ``demand_authorized``.
    """

    def __init__(self, access: AccessResolver) -> None:
        self._access = access

    def check(self, operation: Operation) -> Check:
        if operation.public:
            return _anyone
        if operation.permission == "service":
            return _services
        if operation.tenant == "none":
            return self._of_caller(operation)
        if operation.tenant == "resource":
            return self._of_resource(operation)
        return self._of_field(operation)

    def wrap(self, operation: Operation, handler: Handler) -> Handler:
        """Ask team anew where a resource is not found: its caller may have joined just now."""
        if operation.tenant != "resource":
            return handler

        async def found(exchange: Exchange) -> bytes:
            try:
                return await handler(exchange)
            except NotFound:
                if not await self._learns(exchange.call, operation):
                    raise
            return await handler(exchange)

        return found

    async def _learns(self, call: Call, operation: Operation) -> bool:
        known = call.roles.keys()
        call.roles = await self._access.resolve(
            call.principal, reads=operation.reads, anew=True, acting_for=call.acting_for
        )
        return not call.roles.keys() <= known

    def _of_caller(self, operation: Operation) -> Check:
        by_role = operation.permission in _BY_ROLE

        async def check(exchange: Exchange) -> None:
            call = exchange.call
            _demand(permitted(call.principal, None, operation.permission), operation)
            if by_role:
                # It lists what the caller has, also what it has since a moment ago.
                call.roles = await self._access.resolve(
                    call.principal, reads=operation.reads, anew=True
                )
            call.authorized = True

        return check

    def _of_resource(self, operation: Operation) -> Check:
        async def check(exchange: Exchange) -> None:
            call = exchange.call
            _demand(_in_scope(call, operation), operation)
            call.roles = await self._access.resolve(
                call.principal, reads=operation.reads, acting_for=call.acting_for
            )

        return check

    def _of_field(self, operation: Operation) -> Check:
        read = tenant_reader(operation)

        async def check(exchange: Exchange) -> None:
            call, named = exchange.call, read(exchange.request)
            org_id = UUID(named) if named else None
            call.roles = await self._access.resolve(
                call.principal, org_id, reads=operation.reads, acting_for=call.acting_for
            )
            if org_id is not None:
                call.authorize(org_id)
                return
            _demand(_in_scope(call, operation), operation)
            _demand(not call.roles or bool(call.permitted_orgs), operation)
            call.authorized = True

        return check


def demand_authorized(operation: Operation, exchange: Exchange) -> None:
    """Keep back the answer of a handler that has not authorized what it found.

    Raises:
        RuntimeError: so it is; an error of ours.
    """
    if not exchange.call.authorized:
        raise RuntimeError(f"{operation.name} did not authorize what it found")


def _anyone(exchange: Exchange) -> None:
    exchange.call.authorized = True


def _services(exchange: Exchange) -> None:
    if exchange.call.caller is None:
        raise Unauthenticated
    exchange.call.authorized = True


def _in_scope(call: Call, operation: Operation) -> bool:
    """Whether a key's scopes name the permission; those who are no keys are not bound by any."""
    return call.principal.api_key_id is None or operation.permission in call.principal.scopes


def _demand(holds: bool, operation: Operation) -> None:
    if not holds:
        raise PermissionDenied(f"This needs the permission {operation.permission}.")
