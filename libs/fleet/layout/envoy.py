"""Envoy in front: which path belongs to whom, with the limits of the kit's own server."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from common.errors import (
    DeadlineExceeded,
    MindWeaveError,
    NotFound,
    PayloadTooLarge,
    Unavailable,
)
from common.http.edge import REQUEST_SECONDS
from common.http.problems import (
    PROBLEM_TYPE,
    HeadersTooLarge,
    MalformedRequest,
    RequestTimeout,
    problem,
)
from common.http.protocol import HEADER_BYTES, HEADER_FIELDS, HEADER_SECONDS
from common.rpc.contract import Operation
from common.settings import parse_address

GATEWAY = "gateway"
READY = "/health/ready"
# Between two questions whether a process is ready, and until one has no answer.
_ASK_SECONDS = 0.5
_ANSWER_IN_SECONDS = 4 * _ASK_SECONDS
# How long a process tells that it drains: longer than Envoy takes to see it, however busy it is.
DRAIN_SECONDS = 6 * _ASK_SECONDS
_IDLE_SECONDS = 75.0
# Less than the servers' own 75 s, so that no request meets a connection that they close.
_UPSTREAM_IDLE_SECONDS = 30.0
_CONNECT_SECONDS = 1.0
# After the servers' own answer, which says more.
_ANSWER_SECONDS = REQUEST_SECONDS + 5
_CONNECTIONS = 16_384
_UPSTREAM_CONNECTIONS = 1_024
_WAITING = 4_096
_BUFFER_BYTES = 256 * 1024

CONNECTION_MANAGER = "envoy.filters.network.http_connection_manager"
CONNECTION_MANAGER_TYPE = (
    "type.googleapis.com/envoy.extensions.filters.network"
    ".http_connection_manager.v3.HttpConnectionManager"
)
_ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
_UPSTREAM = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_DOWNSTREAM_LIMIT = "envoy.resource_monitors.global_downstream_max_connections"
_LIMIT_TYPE = (
    "type.googleapis.com/envoy.extensions.resource_monitors"
    ".downstream_connections.v3.DownstreamConnectionsConfig"
)

# What Envoy itself may answer, by its status.
_ANSWERS: Mapping[int, type[MindWeaveError]] = {
    400: MalformedRequest,
    404: NotFound,
    408: RequestTimeout,
    413: PayloadTooLarge,
    426: MalformedRequest,
    431: HeadersTooLarge,
    501: MalformedRequest,
    502: Unavailable,
    503: Unavailable,
    504: DeadlineExceeded,
}
# Said before there is a request with a path and an id.
_EARLY = (400, 408, 431)


class SharedPath(Exception):
    """A path does not tell whose it is."""


class Front(NamedTuple):
    """A path, with one method or with all that are not named by themselves."""

    path: str
    method: str | None = None


def fronts(operations: Iterable[Operation]) -> dict[Front, str]:
    """The services that answer REST themselves; "/" is all others, which the gateway has.

    A path is one service's, which also answers that a method is not allowed. Methods of it that the
    gateway has are named by themselves.

    Raises:
        SharedPath: a path is two services', two have one method of it, or it has a parameter.
    """
    owners: dict[str, dict[str, str]] = {}
    shared = set()
    for operation in operations:
        if operation.route is not None:
            methods = owners.setdefault(operation.route.template, {})
            for method in _also(operation.route.verb):
                owner = operation.service if operation.raw else GATEWAY
                if methods.setdefault(method, owner) != owner:
                    shared.add(operation.route.template)
    found = {}
    for path, methods in owners.items():
        names = set(methods.values()) - {GATEWAY}
        if not names:
            continue
        if len(names) > 1 or "{" in path:
            shared.add(path)
        found[Front(path)] = names.pop()
        found |= {Front(path, m): GATEWAY for m, owner in methods.items() if owner == GATEWAY}
    if shared:
        raise SharedPath(f"paths that do not tell whose they are: {sorted(shared)}")
    return found | {Front("/"): GATEWAY}


def _also(verb: str) -> tuple[str, ...]:
    return (verb, "HEAD") if verb == "GET" else (verb,)


def configuration(
    listen: str,
    paths: Mapping[Front, str],
    ports: Mapping[str, Sequence[int]],
    *,
    trusted_hops: int | None = 0,
) -> dict[str, Any]:
    """Envoy's bootstrap.

    Args:
        listen: "host:port" of the public address.
        paths: whose each path is, as ``fronts`` says.
        ports: of each of these services' processes.
        trusted_hops: how many proxies stand before it, each of which adds to X-Forwarded-For whom
            it was reached by. Services are told whom the outermost was reached by, and nothing
            else that a request claims. None: they know the proxies' addresses and judge for
            themselves; whoever connects is added.
    """
    host, port = parse_address(listen)
    return {
        "static_resources": {
            "listeners": [
                {
                    "name": "public",
                    "address": _address(host, port),
                    # Another process on the same port is an error, not a share of its calls.
                    "enable_reuse_port": False,
                    "per_connection_buffer_limit_bytes": _BUFFER_BYTES,
                    "filter_chains": [{"filters": [_connections(paths, trusted_hops)]}],
                }
            ],
            "clusters": [_cluster(name, ports[name]) for name in sorted(set(paths.values()))],
        },
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": _DOWNSTREAM_LIMIT,
                    "typed_config": {
                        "@type": _LIMIT_TYPE,
                        "max_active_downstream_connections": _CONNECTIONS,
                    },
                }
            ]
        },
    }


def _connections(paths: Mapping[Front, str], trusted_hops: int | None) -> dict[str, Any]:
    return {
        "name": CONNECTION_MANAGER,
        "typed_config": {
            "@type": CONNECTION_MANAGER_TYPE,
            "stat_prefix": "public",
            "codec_type": "HTTP1",
            "server_header_transformation": "PASS_THROUGH",
            "use_remote_address": True,
            # Of whoever connects from this machine it would add the machine's own address.
            "skip_xff_append": True,
            "xff_num_trusted_hops": trusted_hops or 0,
            "generate_request_id": True,
            **answers_and_limits(),
            "route_config": {
                "name": "public",
                "virtual_hosts": [
                    {
                        "name": "public",
                        "domains": ["*"],
                        "request_headers_to_add": [_client(trusted_hops)],
                        "routes": [
                            _route(front, paths[front])
                            for front in sorted(paths, key=precedence, reverse=True)
                        ],
                    }
                ],
            },
            "http_filters": [
                {
                    "name": "envoy.filters.http.router",
                    "typed_config": {"@type": _ROUTER, "suppress_envoy_headers": True},
                }
            ],
        },
    }


def answers_and_limits(also: Mapping[int, type[MindWeaveError]] | None = None) -> dict[str, Any]:
    """At every public address: bounds of size and time, and what Envoy itself answers.

    Args:
        also: what it tells in place of a further status.
    """
    answers = {**_ANSWERS, **(also or {})}
    return {
        "max_request_headers_kb": math.ceil(HEADER_BYTES / 1024),
        "request_headers_timeout": _seconds(HEADER_SECONDS),
        "request_timeout": _seconds(_ANSWER_SECONDS),
        "stream_idle_timeout": _seconds(_ANSWER_SECONDS),
        "common_http_protocol_options": {
            "idle_timeout": _seconds(_IDLE_SECONDS),
            "max_headers_count": HEADER_FIELDS,
        },
        "local_reply_config": {"mappers": [_mapper(*item) for item in answers.items()]},
    }


def _client(trusted_hops: int | None) -> dict[str, Any]:
    """Who the client is, in place of what a request says of it; or who connected, behind that."""
    said, action = "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "OVERWRITE_IF_EXISTS_OR_ADD"
    if trusted_hops is None:
        said = "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%"
        action = "APPEND_IF_EXISTS_OR_ADD"
    return {"header": {"key": "x-forwarded-for", "value": said}, "append_action": action}


def precedence(front: Front) -> tuple[int, str, bool]:
    """Of two that match, the greater one decides."""
    return len(front.path), front.path, front.method is not None


def _route(front: Front, service: str) -> dict[str, Any]:
    match: dict[str, Any] = {"prefix" if front.path == "/" else "path": front.path}
    if front.method is not None:
        match["headers"] = [{"name": ":method", "string_match": {"exact": front.method}}]
    return {
        "match": match,
        "route": {"cluster": service, "timeout": _seconds(_ANSWER_SECONDS)},
    }


def _mapper(status: int, kind: type[MindWeaveError]) -> dict[str, Any]:
    """How Envoy tells of a status: as the kit tells of its own errors."""
    error = kind()
    answer = problem(error, instance="", correlation_id="")
    headers = {
        name: value
        for name, value in answer.headers.items()
        if name not in ("content-length", "content-type")
    }
    headers |= {
        "cache-control": "no-store",
        "content-security-policy": "default-src 'none'",
        "x-content-type-options": "nosniff",
    }
    instance, correlation_id = "", "%UNIQUE_ID%"
    if status not in _EARLY:
        instance, correlation_id = "%PATH(NQ)%", "%STREAM_ID%"
        headers["x-correlation-id"] = correlation_id
    return {
        "filter": {
            "status_code_filter": {
                "comparison": {"op": "EQ", "value": {"default_value": status, "runtime_key": "-"}}
            }
        },
        "status_code": error.status,
        "headers_to_add": [
            {
                "header": {"key": name, "value": value},
                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
            }
            for name, value in headers.items()
        ],
        "body_format_override": {
            "content_type": PROBLEM_TYPE,
            "json_format": {
                "type": f"urn:mindweave:problem:{error.code}",
                "title": error.title,
                "status": error.status,
                "detail": error.detail,
                "instance": instance,
                "code": error.code,
                "errors": [],
                "correlation_id": correlation_id,
            },
        },
    }


def _cluster(name: str, ports: Sequence[int]) -> dict[str, Any]:
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": _seconds(_CONNECT_SECONDS),
        "lb_policy": "LEAST_REQUEST",
        # Where none is ready all are asked: each says itself what it lacks.
        "common_lb_config": {"healthy_panic_threshold": {"value": 1}},
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_connections": _UPSTREAM_CONNECTIONS,
                    "max_pending_requests": _WAITING,
                    "max_requests": _WAITING,
                }
            ]
        },
        "health_checks": [
            {
                "timeout": _seconds(_ANSWER_IN_SECONDS),
                "interval": _seconds(_ASK_SECONDS),
                "no_traffic_interval": _seconds(_ASK_SECONDS),
                # Of silence; whoever says that it is not ready is left at once.
                "unhealthy_threshold": 2,
                "healthy_threshold": 1,
                "http_health_check": {"path": READY},
            }
        ],
        "typed_extension_protocol_options": {
            _UPSTREAM: {
                "@type": f"type.googleapis.com/{_UPSTREAM}",
                "common_http_protocol_options": {"idle_timeout": _seconds(_UPSTREAM_IDLE_SECONDS)},
                "explicit_http_config": {"http_protocol_options": {}},
            }
        },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [
                {
                    "lb_endpoints": [
                        {"endpoint": {"address": _address("127.0.0.1", port)}} for port in ports
                    ]
                }
            ],
        },
    }


def _address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


def _seconds(number: float) -> str:
    return f"{number:g}s"
