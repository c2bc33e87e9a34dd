"""The telemetry of one service."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

from opentelemetry.context import attach, detach
from opentelemetry.trace import (
    INVALID_SPAN,
    Span,
    SpanKind,
    Status,
    StatusCode,
    set_span_in_context,
)
from opentelemetry.util.types import AttributeValue
from prometheus_client import Counter, Gauge, Histogram

from common.telemetry.correlation import (
    CORRELATION_HEADER,
    accepted_correlation_id,
    bind_correlation_id,
)
from common.telemetry.logs import Log
from common.telemetry.metrics import LATENCY_SECONDS, Family, Metrics
from common.telemetry.tracing import Tracing, carry, extract, let_go


class Telemetry:
    """Logs, metrics and traces that name one service.

    Args:
        service: the service's name.
        metrics: of the process; services in one process share it.
        tracing: of the process.
    """

    def __init__(self, service: str, *, metrics: Metrics, tracing: Tracing) -> None:
        self.service = service
        self.metrics = metrics
        self.tracing = tracing
        self._tracer = tracing.tracer(service)
        self.log = Log(service)

    def counter(self, name: str, documentation: str, labels: Sequence[str] = ()) -> Family[Counter]:
        """A count of what happened in this service; its name ends in ``_total``."""
        return Family(self.metrics.counter(name, documentation, labels), self.service)

    def gauge(self, name: str, documentation: str, labels: Sequence[str] = ()) -> Family[Gauge]:
        """A value of this service that goes up and down."""
        return Family(self.metrics.gauge(name, documentation, labels), self.service)

    def histogram(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str] = (),
        buckets: Sequence[float] = LATENCY_SECONDS,
    ) -> Family[Histogram]:
        """A distribution of this service."""
        metric = self.metrics.histogram(name, documentation, labels, buckets)
        return Family(metric, self.service)

    @property
    def records(self) -> bool:
        """Whether spans are recorded."""
        return self._tracer is not None

    def span(
        self,
        name: str,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Mapping[str, AttributeValue] | None = None,
    ) -> AbstractContextManager[Span]:
        """A span around the block; an error that leaves it marks it by its type alone.

        Args:
            name: of low cardinality, such as the operation's.
            kind: on which side of a call or a message the block stands.
            attributes: by the names of OpenTelemetry's conventions.
        """
        if self._tracer is None:
            return _Unrecorded(None)
        return _Recorded(self._tracer.start_span(name, None, kind, attributes))

    def below(
        self,
        headers: Mapping[str, str],
        name: str,
        *,
        kind: SpanKind,
        attributes: Mapping[str, AttributeValue] | None = None,
    ) -> AbstractContextManager[Span]:
        """A span that goes on where the sender of ``headers`` (lower-case names) stood."""
        if self._tracer is None:
            return _Unrecorded(headers)
        return _Recorded(self._tracer.start_span(name, extract(headers), kind, attributes))

    @contextmanager
    def continued(
        self,
        headers: Mapping[str, str],
        name: str,
        *,
        kind: SpanKind = SpanKind.CONSUMER,
        attributes: Mapping[str, AttributeValue] | None = None,
    ) -> Iterator[Span]:
        """As ``below``, and under the correlation id of the sender."""
        bind_correlation_id(accepted_correlation_id(headers.get(CORRELATION_HEADER)))
        with self.below(headers, name, kind=kind, attributes=attributes) as span:
            yield span


class _Unrecorded(AbstractContextManager[Span]):
    """Goes on in a trace, without a span in it."""

    __slots__ = ("_headers", "_token")

    def __init__(self, headers: Mapping[str, str] | None) -> None:
        self._headers = headers

    def __enter__(self) -> Span:
        self._token = carry(self._headers)
        return INVALID_SPAN

    def __exit__(self, *_: object) -> None:
        let_go(self._token)


class _Recorded(AbstractContextManager[Span]):
    __slots__ = ("_span", "_token")

    def __init__(self, span: Span) -> None:
        self._span = span

    def __enter__(self) -> Span:
        self._token = attach(set_span_in_context(self._span))
        return self._span

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        detach(self._token)
        if kind is not None:
            self._span.set_attribute("error.type", kind.__name__)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()
