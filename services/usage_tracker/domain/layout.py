"""How many partitions ``usage.events`` has, and whether events may come in."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

# Seconds for which a process that takes events in may rely on what it has read of the layout, as
# while the database is away. A change waits as long for one that does not say that it knows.
STANDS = 60.0


class State(StrEnum):
    """What is done with the layout."""

    OPEN = "open"
    DRAINING = "draining"
    REHASHING = "rehashing"


@dataclass(frozen=True, slots=True)
class Layout:
    """The ledger's own count of partitions. ``generation`` grows with each change of it.

    ``wanted`` is the count that it is being changed to, while it is not open.
    """

    partitions: int
    generation: int
    state: State
    wanted: int | None
