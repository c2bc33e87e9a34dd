"""Work that a service does beside answering: relays, consumers, sweepers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class PartStatus:
    """How a part is. ``lag`` counts what waits (records, rows); None where nothing can wait.

    ``ready`` is false while the part cannot do its work for now; ``live`` is false when only
    people can help, and then ``detail`` says why.
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
