"""Whether the process lives, and whether it can do its work: for orchestrators and Prometheus."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from common.http.app import Handler, answer
from common.telemetry import Metrics
from common.telemetry.metrics import CONTENT_TYPE


@dataclass(frozen=True)
class PartHealth:
    """A part of a service; ``lag`` counts records that wait for it."""

    name: str
    ready: bool
    detail: str
    lag: int | None = None


@dataclass(frozen=True)
class ServiceHealth:
    """A service of this process with its parts."""

    name: str
    ready: bool
    version: str
    parts: Sequence[PartHealth] = ()


HealthSource = Callable[[], Awaitable[Sequence[ServiceHealth]]]
# The services with parts that only a new process can help, and of their parts these.
DeadSource = Callable[[], Sequence[ServiceHealth]]


def health_pages(services: HealthSource, dead: DeadSource = tuple) -> dict[str, Handler]:
    """``/health/live`` and ``/health/ready``, by path."""

    async def live(_: Request) -> Response:
        found = dead()
        if found:
            return answer({"status": "unavailable", "services": found}, 503)
        return answer({"status": "ok"})

    async def ready(_: Request) -> Response:
        found = await services()
        whole = bool(found) and all(service.ready for service in found)
        body = {"status": "ok" if whole else "unavailable", "services": found}
        headers = {} if whole else {"Retry-After": "1"}
        return answer(body, 200 if whole else 503, headers)

    return {"/health/live": live, "/health/ready": ready}


def metrics_page(
    metrics: Metrics, services: HealthSource, roles: Mapping[str, Collection[str]]
) -> Handler:
    """``/metrics``: what was counted, and what ``/health/ready`` says just now.

    Args:
        metrics: the process's.
        services: what is there.
        roles: of each service of this process, by its name.
    """
    whole = metrics.gauge(
        "mindweave_ready", "1 for a service that can do its work, else 0; by its roles.", ["role"]
    )
    single = metrics.gauge(
        "mindweave_part_ready", "1 for a part of a service that can do its work, else 0.", ["part"]
    )

    async def page(_: Request) -> Response:
        found = await services()
        # A part that is no more, such as what a start waits for, is not shown any longer.
        whole.clear()
        single.clear()
        for service in found:
            for role in roles[service.name]:
                whole.labels(service=service.name, role=role).set(service.ready)
            for part in service.parts:
                single.labels(service=service.name, part=part.name).set(part.ready)
        return Response(metrics.exposition(), media_type=CONTENT_TYPE)

    return page
