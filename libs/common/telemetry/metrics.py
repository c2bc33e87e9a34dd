"""Metrics of a process, in the Prometheus text format; each series names its service."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LATENCY_SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip

Kind = TypeVar("Kind", bound=MetricWrapperBase)


class Family(Generic[Kind]):
    """The series of one metric that belong to one service."""

    def __init__(self, metric: Kind, service: str) -> None:
        self._metric = metric
        self._service = service
        self._series: dict[tuple[tuple[str, str], ...], Kind] = {}

    def of(self, **labels: str) -> Kind:
        """The series with these labels, shown from now on."""
        named = tuple(labels.items())
        series = self._series.get(named)
        if series is None:
            series = self._metric.labels(service=self._service, **labels)
            self._series[named] = series
        return series

    def forget(self, **labels: str) -> None:
        """Stop to show the series with these labels."""
        self._series.clear()
        self._metric.remove_by_labels({"service": self._service, **labels})


class Metrics:
    """The metrics of one process; services that share it share each metric's name and meaning."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._known: dict[str, tuple[tuple[object, ...], object]] = {}

    @classmethod
    def of_process(cls) -> Metrics:
        """Metrics with those of the process itself: memory, processor time, file descriptors."""
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        return cls(registry)

    def counter(self, name: str, documentation: str, labels: Sequence[str] = ()) -> Counter:
        """A count of what happened; its name ends in ``_total``."""
        return self._get(Counter, name, documentation, labels, ())

    def gauge(self, name: str, documentation: str, labels: Sequence[str] = ()) -> Gauge:
        """A value that goes up and down, in the base unit that its name ends in."""
        return self._get(Gauge, name, documentation, labels, ())

    def histogram(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str] = (),
        buckets: Sequence[float] = LATENCY_SECONDS,
    ) -> Histogram:
        """A distribution; its name ends in its base unit, such as ``_seconds``."""
        return self._get(Histogram, name, documentation, labels, tuple(buckets))

    def exposition(self) -> bytes:
        """Every series, in the text format of ``CONTENT_TYPE``."""
        return generate_latest(self.registry)

    def _get(
        self,
        kind: Callable[..., Kind],
        name: str,
        documentation: str,
        labels: Sequence[str],
        buckets: tuple[float, ...],
    ) -> Kind:
        shape = (kind, tuple(labels), buckets)
        known = self._known.get(name)
        if known is not None:
            if known[0] != shape:
                raise ValueError(f"the metric {name} exists with another kind, labels or buckets")
            return cast(Kind, known[1])
        options: dict[str, Any] = {"buckets": buckets} if buckets else {}
        made = kind(name, documentation, ("service", *labels), registry=self.registry, **options)
        self._known[name] = (shape, made)
        return made
