"""Work that a service does beside answering: relays, consumers, sweepers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Role(StrEnum):
    """What of a service a process runs: its servers, or the work that it does beside."""

    SERVE = "serve"
    WORK = "work"


BOTH = frozenset(Role)


@dataclass(frozen=True, slots=True)
class PartStatus:
    """How a part is. ``lag`` counts what waits (records, rows); None where nothing can wait.

    ``ready`` is false while the part cannot do its work, for now or until people have helped;
    ``live`` is false where only a new process can help: its loop has ended, or it stands still and
    nothing fails. ``detail`` says why.
    """

    ready: bool
    detail: str = ""
    lag: int | None = None
    live: bool = True


class Background(Protocol):
    """A part that runs from readiness to the drain."""

    @property
    def name(self) -> str: ...

    async def start(self) -> None: ...

    async def stop(self) -> None:
        """Finish what is in hand and end; returns when nothing runs any more."""
        ...

    def status(self) -> PartStatus: ...
