"""Every fault by its name, and which of them a round has."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from fleet.surroundings import KAFKA, REDIS_STREAMS
from tests.chaos.faults import disks, links, processes, servers
from tests.chaos.faults.hitting import Fault

EVERYTHING = "kill -9 of everything, and a new start"
_ALWAYS: Mapping[str, Fault] = {
    "kill -9 of ingest": processes.kill_ingest,
    "pause of ingest": processes.pause_ingest,
    "kill -9 of a worker": processes.kill_worker,
    "pause of a worker past its lease": processes.pause_worker,
    "rebalances in a storm": processes.rebalance_storm,
    "kill -9 of PostgreSQL": servers.kill_postgres,
    "pause of PostgreSQL": servers.pause_postgres,
    "kill -9 of Valkey": servers.kill_valkey,
    "pause of Valkey": servers.pause_valkey,
    "answers to clients lost": links.lose_answers,
    EVERYTHING: processes.kill_everything,
    "full disk under PostgreSQL": disks.fill_postgres,
    "kill -9 of PostgreSQL on a full disk": disks.kill_postgres_on_a_full_disk,
    "worker cut from PostgreSQL": links.cut_worker_from_postgres,
    "slow link from worker to PostgreSQL": links.slow_worker_to_postgres,
}
# Those of one broker alone.
_ONLY: Mapping[str, Mapping[str, Fault]] = {
    KAFKA: {
        "kill -9 of a broker": servers.kill_broker,
        "pause of a broker": servers.pause_broker,
        "kill -9 of all brokers": servers.kill_all_brokers,
        "full disk under a broker": disks.fill_broker,
        "worker cut from Kafka": links.cut_worker_from_kafka,
        "ingest cut from Kafka": links.cut_ingest_from_kafka,
        "slow link from ingest to Kafka": links.slow_ingest_to_kafka,
    },
    REDIS_STREAMS: {
        "kill -9 of the streams": servers.kill_streams,
        "pause of the streams": servers.pause_streams,
        "full disk under the streams": disks.fill_valkey,
    },
}
FAULTS: Mapping[str, Fault] = {**_ALWAYS, **_ONLY[KAFKA], **_ONLY[REDIS_STREAMS]}
# Of each of these a short round has one; of all others, each.
_ALIKE = (
    ("kill -9 of all brokers", EVERYTHING),
    (
        "full disk under PostgreSQL",
        "kill -9 of PostgreSQL on a full disk",
        "full disk under a broker",
        "full disk under the streams",
    ),
    ("worker cut from PostgreSQL", "worker cut from Kafka", "ingest cut from Kafka"),
    ("slow link from worker to PostgreSQL", "slow link from ingest to Kafka"),
)
# What may be killed in the middle of another fault, without hiding whether that hit.
_BESIDE = ("kill -9 of PostgreSQL", "kill -9 of a broker", "kill -9 of Valkey")


def whole_round(broker: str, rng: Random) -> list[str]:
    """All that the broker can have, in any order."""
    there = [*_ALWAYS, *_ONLY[broker]]
    return rng.sample(there, len(there))


def short_round(broker: str, rng: Random) -> list[str]:
    """One of each kind, in any order."""
    found = whole_round(broker, rng)
    for alike in _ALIKE:
        there = [name for name in found if name in alike]
        for name in there[1:]:
            found.remove(name)
    return found


def beside(name: str, broker: str, rng: Random) -> str | None:
    """What is killed in the middle of this fault; None where that would be the same."""
    others = [
        other
        for other in _BESIDE
        if other.rpartition(" ")[2] not in name and (other in _ALWAYS or other in _ONLY[broker])
    ]
    return rng.choice(others) if others and name != EVERYTHING else None
