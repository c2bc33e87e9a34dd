"""PostgreSQL, Valkey and Kafka, started by the platform itself where none are configured."""

from fleet.embedded.daemon import DidNotStart
from fleet.embedded.folder import DataFolder, InUse
from fleet.embedded.kafka import Kafka
from fleet.embedded.postgres import Postgres
from fleet.embedded.valkey import Valkey

__all__ = ["DataFolder", "DidNotStart", "InUse", "Kafka", "Postgres", "Valkey"]
