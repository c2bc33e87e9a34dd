"""PostgreSQL as the services see it."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.dashboards.shapes import EVERY, Query, dashboard, graph, quantile

_BLOCKS = "mindweave_database_server_blocks_total"


def _server(metric: str, labels: str = "", by: str = "service") -> str:
    """Every process of a service counts the same."""
    return f"max by ({by}) (rate({metric}{{{labels}}}{EVERY}))"


def made() -> Dashboard:
    read = f"sum by (service) ({_server(_BLOCKS, by='service, source')})"
    kept = _server(_BLOCKS, 'source="cache"')
    pools = [
        graph(
            "Connections in use",
            "Of the pools of all processes of a service.",
            "short",
            Query('sum by (service) (mindweave_database_connections{state="used"})', "{{service}}"),
        ),
        graph(
            "Time until a connection is free, p95",
            "More than some milliseconds: the pool is too small, or transactions are too long.",
            "s",
            Query("mindweave:database_acquire_seconds:p95", "{{service}}"),
            limit=0.1,
        ),
        graph(
            "Duration of transactions, p95",
            "Reads and changes; the budget is 20 ms in a request.",
            "s",
            Query(
                quantile(0.95, "mindweave_database_transaction_seconds", by="service, kind"),
                "{{service}} {{kind}}",
            ),
        ),
    ]
    server = [
        graph(
            "Size",
            "What each database takes on disk; of a Citus cluster the coordinator's part.",
            "bytes",
            Query("max by (service) (mindweave_database_size_bytes)", "{{service}}"),
        ),
        graph(
            "Connections of the server",
            "Share of those that the server lets in, everybody's included.",
            "percentunit",
            Query(
                "max by (service) (mindweave_database_server_connections"
                " / mindweave_database_server_connections_limit)",
                "{{service}}",
            ),
            limit=0.85,
        ),
        graph(
            "Transactions ended",
            "A second, in each database, by how.",
            "ops",
            Query(
                _server("mindweave_database_server_transactions_total", by="service, outcome"),
                "{{service}} {{outcome}}",
            ),
        ),
        graph(
            "Read from memory",
            "Share of the blocks that were in the server's own memory; the rest came from the"
            " system's cache or from disk.",
            "percentunit",
            Query(f"{kept} / {read}", "{{service}}"),
        ),
        graph(
            "Deadlocks",
            "A second; transactions that the server has ended to free others.",
            "ops",
            Query(_server("mindweave_database_server_deadlocks_total"), "{{service}}"),
        ),
        graph(
            "Clocks",
            "How far at least the server's clock is from each process's.",
            "s",
            Query("max by (service) (abs(mindweave_clock_offset_seconds))", "{{service}}"),
            limit=0.1,
        ),
        graph(
            "Migrations that lack",
            "Processes of a new version wait until their database has them.",
            "short",
            Query("max by (service) (mindweave_migrations_pending)", "{{service}}"),
            limit=1,
        ),
    ]
    return dashboard(
        "postgresql",
        "PostgreSQL",
        "Pools, transactions and servers, from what the services measure: no exporter is needed.",
        ("Pools", pools),
        ("Servers", server),
    )
