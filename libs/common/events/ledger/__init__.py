"""Exactly-once consumption: the place in a partition moves in the transaction of the effect."""

from common.events.ledger.consumer import PartitionConsumer
from common.events.ledger.members import Members
from common.events.ledger.offsets import LEASE, Fenced
from common.events.ledger.places import Places, Stored
from common.events.ledger.tenure import RecordRefused

__all__ = ["LEASE", "Fenced", "Members", "PartitionConsumer", "Places", "RecordRefused", "Stored"]
