"""What the server tells of a service's database, as metrics of the service."""

from __future__ import annotations

from datetime import datetime, timedelta

from common.database.pool import Database
from common.periodic import Periodic

# Columns of pg_stat_database that count from the server's start on, by the series that shows them.
_COUNTED = {
    "xact_commit": ("transactions", {"outcome": "commit"}),
    "xact_rollback": ("transactions", {"outcome": "rollback"}),
    "blks_hit": ("blocks", {"source": "cache"}),
    "blks_read": ("blocks", {"source": "disk"}),
    "deadlocks": ("deadlocks", {}),
}


def statistics(db: Database, every: timedelta = timedelta(seconds=15)) -> Periodic:
    """Background work that looks at the database's statistics."""
    found = Statistics(db)

    async def step() -> None:
        await found.look()

    return Periodic("statistics", step, every=every)


class Statistics:
    """Every process of a service shows the same; of a Citus cluster they are the coordinator's."""

    def __init__(self, db: Database) -> None:
        self._db = db
        telemetry = db.telemetry
        self._size = telemetry.gauge(
            "mindweave_database_size_bytes", "What the service's database takes on disk."
        ).of()
        self._used = telemetry.gauge(
            "mindweave_database_server_connections", "Connections of everybody to the server."
        ).of()
        self._limit = telemetry.gauge(
            "mindweave_database_server_connections_limit", "Connections that the server lets in."
        ).of()
        self._offset = telemetry.gauge(
            "mindweave_clock_offset_seconds",
            "How far at least the clock of the database's server is ahead of this process's.",
        ).of()
        counters = {
            "transactions": telemetry.counter(
                "mindweave_database_server_transactions_total",
                "Transactions that have ended in the database.",
                ["outcome"],
            ),
            "blocks": telemetry.counter(
                "mindweave_database_server_blocks_total",
                "Blocks that were read: found in the server's memory, or not.",
                ["source"],
            ),
            "deadlocks": telemetry.counter(
                "mindweave_database_server_deadlocks_total", "Deadlocks that the server has ended."
            ),
        }
        self._counters = {
            column: counters[name].of(**labels) for column, (name, labels) in _COUNTED.items()
        }
        self._last: dict[str, int] = {}

    async def look(self) -> None:
        """Set the metrics.

        Raises:
            Unavailable: the database does not answer.
        """
        async with self._db.session() as connection:
            asked = self._db.clock.now()
            row = await connection.fetchrow(
                """
                SELECT xact_commit, xact_rollback, blks_hit, blks_read, deadlocks,
                    pg_database_size(datid) AS size, clock_timestamp() AS now,
                    (SELECT sum(numbackends) FROM pg_stat_database) AS used,
                    current_setting('max_connections')::integer AS most
                FROM pg_stat_database WHERE datname = current_database()
                """
            )
            answered = self._db.clock.now()
        if row is None:
            return
        self._size.set(row["size"])
        self._used.set(row["used"])
        self._limit.set(row["most"])
        self._offset.set(offset_of(asked, row["now"], answered))
        for column, counter in self._counters.items():
            # Less than before where the server's statistics have begun anew.
            before = self._last.get(column, row[column])
            counter.inc(row[column] - before if row[column] >= before else row[column])
            self._last[column] = row[column]


def offset_of(asked: datetime, told: datetime, answered: datetime) -> float:
    """Seconds that a clock is surely ahead (below 0: behind), which told the time in between."""
    if told > answered:
        return (told - answered).total_seconds()
    return min(0.0, (told - asked).total_seconds())
