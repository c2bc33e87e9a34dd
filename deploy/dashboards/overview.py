"""The fleet at a glance: objectives, requests, calls, processes."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.dashboards.shapes import (
    EVERY,
    FAILURES,
    REQUESTS,
    Query,
    dashboard,
    graph,
    number,
    quantile,
    quantiles,
    rate,
    share,
)

_HTTP = "mindweave_http_server_duration_seconds"
_SERVER = "mindweave_rpc_server_duration_seconds"
_CLIENT = "mindweave_rpc_client_duration_seconds"
_OURS = "on (job, instance) group_left () count by (job, instance) (mindweave_build_info)"
_LEFT = """1 - sum_over_time(mindweave:slo_bad:rate5m[30d])
  / sum_over_time(mindweave:slo_total:rate5m[30d]) / (1 - mindweave:slo_objective:ratio)"""


def made() -> Dashboard:
    objectives = [
        number(
            "Budget left",
            "Of the errors that each objective allows in 30 days; below 0 it is missed.",
            "percentunit",
            Query(_LEFT, "{{slo}}"),
            width=12,
            good=0,
        ),
        number(
            "Services that are ready",
            "Processes of each service that can do their work.",
            "short",
            Query("sum by (service, role) (mindweave_ready)", "{{service}}, {{role}}"),
            width=8,
            good=1,
        ),
        number(
            "Alerts",
            "Alerts that fire now; each names its runbook.",
            "short",
            Query('count(ALERTS{alertstate="firing"}) or vector(0)', "firing"),
        ),
        graph(
            "Burn rate, one hour",
            "1 spends the month's budget in a month; 14.4 for an hour is a page.",
            "short",
            Query("mindweave:slo_burn:rate1h", "{{slo}}"),
            width=24,
            limit=14.4,
        ),
    ]
    failed = rate(f"{_HTTP}_count", f'{REQUESTS}, status=~"5.."')
    requests = [
        graph(
            "Requests",
            "REST requests a second at the edge, by status.",
            "reqps",
            Query(rate(f"{_HTTP}_count", REQUESTS, "status"), "{{status}}"),
        ),
        graph(
            "Errors",
            "Share of requests that were answered with 5xx; the objective allows 0.1 %.",
            "percentunit",
            Query(share(failed, rate(f"{_HTTP}_count", REQUESTS)), "5xx"),
            limit=0.001,
        ),
        graph(
            "Duration",
            "From the head of a request to the end of its answer; the budget is 100 ms at p95.",
            "s",
            *quantiles(_HTTP, REQUESTS),
            limit=0.1,
        ),
        graph(
            "Busiest routes",
            "Requests a second of the ten busiest routes.",
            "reqps",
            Query(
                f"topk(10, {rate(f'{_HTTP}_count', REQUESTS, 'method, route')})",
                "{{method}} {{route}}",
            ),
            width=12,
        ),
        graph(
            "Slowest routes",
            "p95 of the ten slowest routes.",
            "s",
            Query(
                f"topk(10, {quantile(0.95, _HTTP, REQUESTS, 'method, route')} > 0)",
                "{{method}} {{route}}",
            ),
            width=12,
        ),
    ]
    calls = [
        graph(
            "Calls",
            "gRPC calls a second that each service answers.",
            "reqps",
            Query(rate(f"{_SERVER}_count", by="service"), "{{service}}"),
        ),
        graph(
            "Failed calls",
            "Share of calls that ended with an error of the service's own.",
            "percentunit",
            Query(
                share(
                    rate(f"{_SERVER}_count", FAILURES, "service"),
                    rate(f"{_SERVER}_count", by="service"),
                ),
                "{{service}}",
            ),
        ),
        graph(
            "Duration of calls, p95",
            "The budget is 20 ms for auth and 30 ms for the others, without the database's.",
            "s",
            Query(quantile(0.95, _SERVER, by="service"), "{{service}}"),
        ),
        graph(
            "Who calls whom",
            "Calls a second between services, as the callers count them.",
            "reqps",
            Query(rate(f"{_CLIENT}_count", by="service, callee"), "{{service}} to {{callee}}"),
            width=12,
        ),
        graph(
            "Refused by the caller",
            "Calls that were not made: the callee did not answer before, or too many were open.",
            "reqps",
            Query(
                rate("mindweave_rpc_client_refused_total", by="callee, reason"),
                "{{callee}}, {{reason}}",
            ),
            width=12,
        ),
    ]
    processes = [
        graph(
            "Processor",
            "Cores that each process uses.",
            "short",
            Query(f"rate(process_cpu_seconds_total{EVERY}) * {_OURS}", "{{instance}}"),
        ),
        graph(
            "Memory",
            "Resident memory of each process.",
            "bytes",
            Query(f"process_resident_memory_bytes * {_OURS}", "{{instance}}"),
        ),
        graph(
            "Up for",
            "Time since each process was started; a saw tooth is one that ends again and again.",
            "s",
            Query(f"(time() - process_start_time_seconds) * {_OURS}", "{{instance}}"),
        ),
        graph(
            "Versions",
            "Processes by version; two of a service for long is a rollout that stands still.",
            "short",
            Query("count by (service, version) (mindweave_build_info)", "{{service}} {{version}}"),
            width=12,
        ),
        graph(
            "Parts that are not ready",
            "Parts of services that cannot do their work, such as a consumer without its database.",
            "short",
            Query(
                "count by (service, part) (mindweave_part_ready == 0) or 0 * sum by (service)"
                " (mindweave_part_ready)",
                "{{service}} {{part}}",
            ),
            width=12,
        ),
    ]
    return dashboard(
        "overview",
        "Fleet",
        "Whether people are served: objectives, requests, calls and processes.",
        ("Objectives", objectives),
        ("REST", requests),
        ("gRPC", calls),
        ("Processes", processes),
    )
