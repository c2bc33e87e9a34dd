"""What a call to another service takes along from the call that it is made for."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from uuid import UUID, uuid4

from common.errors import DeadlineExceeded
from common.identity.call import Call
from common.rpc.contract import Operation
from common.rpc.metadata import ACTING_FOR, BEARER, IP, PRINCIPAL, USER_AGENT
from common.telemetry import inject

DEFAULT_TIMEOUT = 5.0
# What a hop keeps of the time left, to answer in when its own calls have run out of theirs.
HOP_MARGIN = 0.05
_NOT_PRINTABLE = str.maketrans({chr(code): " " for code in (*range(32), 127)})

_acting_for: ContextVar[tuple[UUID, ...]] = ContextVar("mindweave_acting_for", default=())


@contextmanager
def acting_for(org_ids: Iterable[UUID]) -> Iterator[None]:
    """Calls that a service makes for itself in the block may reach these organizations."""
    token = _acting_for.set(tuple(org_ids))
    try:
        yield
    finally:
        _acting_for.reset(token)


def time_for(call: Call | None, timeout: float) -> float:
    """Seconds that a call may take which is made while ``call`` is served.

    Raises:
        DeadlineExceeded: none are left.
    """
    if call is None or call.deadline is None:
        return timeout
    left = told_exactly(call.deadline - time.monotonic() - HOP_MARGIN)
    if left <= 0:
        raise DeadlineExceeded
    return min(timeout, left)


def told_exactly(seconds: float) -> float:
    """The next smaller time that gRPC sends as it is: it rounds others up, by more than a hop."""
    step = 0.001 if seconds < 1 else 0.1 if seconds < 10 else 1.0
    return math.floor(seconds / step) * step


def travelling(call: Call | None) -> dict[str, str]:
    """Who the call is made for, and where that request came from."""
    headers: dict[str, str] = {}
    inject(headers)
    kind = "anonymous" if call is None else call.principal.kind
    if call is not None and kind not in ("anonymous", "service"):
        headers[PRINCIPAL] = BEARER + call.principal.token
    elif orgs := _acting_for.get() or (call.acting_for if call is not None else ()):
        headers[ACTING_FOR] = ",".join(map(str, orgs))
    if call is not None and call.ip:
        headers[IP] = call.ip
    if call is not None and call.user_agent:
        headers[USER_AGENT] = _plain(call.user_agent)
    return headers


def key_for(call: Call | None, operation: Operation, request: bytes) -> str:
    """The idempotency key of a call that changes something.

    It follows from the key of the call that is served, so that a repeat of that one repeats this
    one too; the same request sent twice in one call counts as two.
    """
    if call is None or not call.idempotency_key:
        return str(uuid4())
    digest = hashlib.sha256(f"{call.idempotency_key}\n{operation.full_name}\n".encode())
    digest.update(request)
    sent = call.sent.get(digest.hexdigest(), 0)
    call.sent[digest.hexdigest()] = sent + 1
    digest.update(f"\n{sent}".encode())
    return digest.hexdigest()


def _plain(text: str) -> str:
    """Metadata holds printable ASCII alone."""
    return text.encode("ascii", "replace").decode().translate(_NOT_PRINTABLE)[:512].strip()
