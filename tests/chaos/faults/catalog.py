"""Every fault by its name, and which of them a round has."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from tests.chaos.faults import disks, links, processes, servers
from tests.chaos.faults.hitting import Fault

EVERYTHING = "kill -9 of everything, and a new start"
FAULTS: Mapping[str, Fault] = {
    "kill -9 of ingest": processes.kill_ingest,
    "pause of ingest": processes.pause_ingest,
    "kill -9 of a worker": processes.kill_worker,
    "pause of a worker past its lease": processes.pause_worker,
    "rebalances in a storm": processes.rebalance_storm,
    "kill -9 of a broker": servers.kill_broker,
    "pause of a broker": servers.pause_broker,
    "kill -9 of PostgreSQL": servers.kill_postgres,
    "pause of PostgreSQL": servers.pause_postgres,
    "kill -9 of Valkey": servers.kill_valkey,
    "pause of Valkey": servers.pause_valkey,
    "answers to clients lost": links.lose_answers,
    "kill -9 of all brokers": servers.kill_all_brokers,
    EVERYTHING: processes.kill_everything,
    "full disk under PostgreSQL": disks.fill_postgres,
    "full disk under a broker": disks.fill_broker,
    "worker cut from PostgreSQL": links.cut_worker_from_postgres,
    "worker cut from Kafka": links.cut_worker_from_kafka,
    "ingest cut from Kafka": links.cut_ingest_from_kafka,
    "slow link from worker to PostgreSQL": links.slow_worker_to_postgres,
    "slow link from ingest to Kafka": links.slow_ingest_to_kafka,
}
# Of each of these a short round has one; of all others, each.
_ALIKE = (
    ("kill -9 of all brokers", EVERYTHING),
    ("full disk under PostgreSQL", "full disk under a broker"),
    ("worker cut from PostgreSQL", "worker cut from Kafka", "ingest cut from Kafka"),
    ("slow link from worker to PostgreSQL", "slow link from ingest to Kafka"),
)
# What may be killed in the middle of another fault, without hiding whether that hit.
_BESIDE = ("kill -9 of PostgreSQL", "kill -9 of a broker", "kill -9 of Valkey")


def whole_round(rng: Random) -> list[str]:
    """All of them, in any order."""
    return rng.sample(list(FAULTS), len(FAULTS))


def short_round(rng: Random) -> list[str]:
    """One of each kind, in any order."""
    left = set().union(*_ALIKE) - {rng.choice(names) for names in _ALIKE}
    return [name for name in whole_round(rng) if name not in left]


def beside(name: str, rng: Random) -> str | None:
    """What is killed in the middle of this fault; None where that would be the same."""
    server = name.rpartition(" ")[2]
    others = [other for other in _BESIDE if other.rpartition(" ")[2].rstrip("s") not in server]
    return rng.choice(others) if others and name != EVERYTHING else None
