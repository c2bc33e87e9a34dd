"""Which service called which, as the spans of its calls say."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from common.identity.callers import may_call
from tests.common.otlp import ReceivedSpan, Receiver

CLIENT = 3
Edge = tuple[str, str]


def edges(spans: Iterable[ReceivedSpan]) -> set[Edge]:
    """Caller and callee of each gRPC call among the spans."""
    return {
        (span.service, span.attributes["rpc.service"].split(".")[1])
        for span in spans
        if span.kind == CLIENT and "rpc.service" in span.attributes
    }


def forbidden(seen: Iterable[Edge]) -> set[Edge]:
    """Those that the table of callers does not allow."""
    return {edge for edge in seen if not may_call(*edge)}


def told(seen: Iterable[Edge]) -> str:
    """All of them in a line."""
    return ", ".join(f"{caller} → {callee}" for caller, callee in sorted(seen))


@dataclass
class EdgeReceiver(Receiver):
    """Keeps of what it is sent which edges there are, and nothing else."""

    seen: set[Edge] = field(default_factory=set)

    def take(self, path: str, body: bytes) -> None:
        one = Receiver()
        one.take(path, body)
        self.seen |= edges(one.spans)
