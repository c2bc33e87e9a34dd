"""One service, or several beside each other."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.dashboards.shapes import (
    EVERY,
    FAILURES,
    REQUESTS,
    Query,
    dashboard,
    graph,
    quantile,
    rate,
    share,
)

_CHOSEN = 'service=~"$service"'
_HTTP = "mindweave_http_server_duration_seconds"
_SERVER = "mindweave_rpc_server_duration_seconds"
_CLIENT = "mindweave_rpc_client_duration_seconds"
_RUNS_IT = (
    f"on (job, instance) group_left () count by (job, instance) (mindweave_build_info{{{_CHOSEN}}})"
)


def made() -> Dashboard:
    served = [
        graph(
            "Calls by method",
            "gRPC calls a second that it answers.",
            "reqps",
            Query(f"topk(15, {rate(f'{_SERVER}_count', _CHOSEN, 'method')})", "{{method}}"),
        ),
        graph(
            "Failed calls by method",
            "Share of calls that ended with an error of its own; refusals are none.",
            "percentunit",
            Query(
                share(
                    rate(f"{_SERVER}_count", f"{_CHOSEN}, {FAILURES}", "method"),
                    rate(f"{_SERVER}_count", _CHOSEN, "method"),
                ),
                "{{method}}",
            ),
        ),
        graph(
            "Duration by method, p95",
            "The budget is 20 ms for auth and 30 ms for the others.",
            "s",
            Query(f"topk(15, {quantile(0.95, _SERVER, _CHOSEN, 'method')} > 0)", "{{method}}"),
        ),
        graph(
            "Answers",
            "Calls a second by status: refusals are the caller's, INTERNAL and UNAVAILABLE ours.",
            "reqps",
            Query(rate(f"{_SERVER}_count", _CHOSEN, "code"), "{{code}}"),
        ),
        graph(
            "REST requests",
            "Of those services that face the public: gateway, and usage_tracker for events.",
            "reqps",
            Query(
                rate(f"{_HTTP}_count", f"{_CHOSEN}, {REQUESTS}", "service, status"),
                "{{service}} {{status}}",
            ),
        ),
        graph(
            "REST duration, p95",
            "From the head of a request to the end of its answer.",
            "s",
            Query(
                quantile(0.95, _HTTP, f"{_CHOSEN}, {REQUESTS}", "service, method"),
                "{{service}} {{method}}",
            ),
        ),
    ]
    callees = [
        graph(
            "Calls to others",
            "gRPC calls a second that it makes, by callee.",
            "reqps",
            Query(rate(f"{_CLIENT}_count", _CHOSEN, "callee"), "{{callee}}"),
        ),
        graph(
            "Failed calls to others",
            "Share of calls that came to nothing, by callee.",
            "percentunit",
            Query(
                share(
                    rate(f"{_CLIENT}_count", f"{_CHOSEN}, {FAILURES}", "callee"),
                    rate(f"{_CLIENT}_count", _CHOSEN, "callee"),
                ),
                "{{callee}}",
            ),
        ),
        graph(
            "Duration of calls to others, p95",
            "Network and waiting included.",
            "s",
            Query(quantile(0.95, _CLIENT, _CHOSEN, "callee"), "{{callee}}"),
        ),
        graph(
            "Breakers",
            "0 closed, 1 half-open, 2 open: the callee is not called; the worst process is shown.",
            "short",
            Query(
                f"max by (service, callee) (mindweave_breaker_state{{{_CHOSEN}}})",
                "{{service}} to {{callee}}",
            ),
        ),
        graph(
            "Open calls",
            "Calls that wait for an answer; the bulkhead refuses more than 500 in a process.",
            "short",
            Query(f"sum by (callee) (mindweave_rpc_client_calls{{{_CHOSEN}}})", "{{callee}}"),
        ),
        graph(
            "Calls not made",
            "Refused by breaker or bulkhead, a second.",
            "reqps",
            Query(
                rate("mindweave_rpc_client_refused_total", _CHOSEN, "callee, reason"),
                "{{callee}}, {{reason}}",
            ),
        ),
    ]
    inside = [
        graph(
            "Transactions",
            "Transactions a second with its database, by kind.",
            "ops",
            Query(
                rate("mindweave_database_transaction_seconds_count", _CHOSEN, "service, kind"),
                "{{service}} {{kind}}",
            ),
        ),
        graph(
            "Duration of transactions, p95",
            "The budget is 20 ms in a request; work in the background may take longer.",
            "s",
            Query(
                quantile(0.95, "mindweave_database_transaction_seconds", _CHOSEN, "service, kind"),
                "{{service}} {{kind}}",
            ),
        ),
        graph(
            "Events told",
            "Messages of its outbox that the broker has taken, a second, by topic.",
            "ops",
            Query(
                rate("mindweave_outbox_sent_total", _CHOSEN, "service, topic"),
                "{{service}} {{topic}}",
            ),
        ),
        graph(
            "Events heard",
            "Deliveries to its handlers a second: done, tried again, put off, or given up (dead).",
            "ops",
            Query(
                rate("mindweave_bus_records_total", _CHOSEN, "service, outcome"),
                "{{service}} {{outcome}}",
            ),
        ),
        graph(
            "Parts that are ready",
            "Processes in which each part can do its work.",
            "short",
            Query(
                f"sum by (service, part) (mindweave_part_ready{{{_CHOSEN}}})",
                "{{service}} {{part}}",
            ),
        ),
        graph(
            "Processor",
            "Cores of the processes in which it runs, others beside it in one process included.",
            "short",
            Query(f"rate(process_cpu_seconds_total{EVERY}) * {_RUNS_IT}", "{{instance}}"),
        ),
        graph(
            "Memory",
            "Resident memory of the processes in which it runs.",
            "bytes",
            Query(f"process_resident_memory_bytes * {_RUNS_IT}", "{{instance}}"),
        ),
        graph(
            "Open files",
            "Files and connections that its processes hold, of as many as they may.",
            "percentunit",
            Query(f"process_open_fds / process_max_fds * {_RUNS_IT}", "{{instance}}"),
        ),
    ]
    return dashboard(
        "service",
        "Service",
        "What a service answers, whom it calls, and how its parts are.",
        ("Answers", served),
        ("Callees", callees),
        ("Inside", inside),
        by_service=True,
    )
