"""Every fault by its name."""

from __future__ import annotations

from collections.abc import Mapping

from tests.chaos.faults import disks, links, processes, servers
from tests.chaos.faults.hitting import Fault

FAULTS: Mapping[str, Fault] = {
    "kill -9 of ingest": processes.kill_ingest,
    "pause of ingest": processes.pause_ingest,
    "kill -9 of a worker": processes.kill_worker,
    "pause of a worker past its lease": processes.pause_worker,
    "rebalances in a storm": processes.rebalance_storm,
    "kill -9 of everything, and a new start": processes.kill_everything,
    "kill -9 of a broker": servers.kill_broker,
    "pause of a broker": servers.pause_broker,
    "kill -9 of all brokers": servers.kill_all_brokers,
    "kill -9 of PostgreSQL": servers.kill_postgres,
    "pause of PostgreSQL": servers.pause_postgres,
    "kill -9 of Valkey": servers.kill_valkey,
    "pause of Valkey": servers.pause_valkey,
    "full disk under PostgreSQL": disks.fill_postgres,
    "full disk under a broker": disks.fill_broker,
    "worker cut from PostgreSQL": links.cut_worker_from_postgres,
    "slow link from worker to PostgreSQL": links.slow_worker_to_postgres,
    "ingest cut from Kafka": links.cut_ingest_from_kafka,
    "slow link from ingest to Kafka": links.slow_ingest_to_kafka,
    "worker cut from Kafka": links.cut_worker_from_kafka,
    "answers to clients lost": links.lose_answers,
}
