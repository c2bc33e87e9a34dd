"""A platform that is stopped and started again: until it is ready, and what its workers read."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fleet.process import Platform

_READ = re.compile(r"part (\d+): (\d+) identities in (\d+) bytes, read in ([\d.]+) s")
_PATIENCE = 900.0
_LOOK_EVERY = 0.1


@dataclass(frozen=True, slots=True)
class Reading:
    """The identities of a part that a worker has read; ``size`` is bytes of its memory."""

    part: int
    identities: int
    size: int
    seconds: float

    def __str__(self) -> str:
        each = self.size / max(1, self.identities)
        return (
            f"part {self.part}: {self.identities} identities, {each:.2f} bytes each,"
            f" read in {self.seconds:.2f} s"
        )


@dataclass(frozen=True, slots=True)
class Restart:
    """Seconds until it had stopped; from the start, until it was ready and all parts were read.

    ``readings`` holds each, in their order; a part may be read by one worker after the other.
    """

    stop_seconds: float
    ready_seconds: float
    seconds: float
    readings: list[Reading]

    @property
    def bytes_per_identity(self) -> float:
        last = {reading.part: reading for reading in self.readings}.values()
        return sum(r.size for r in last) / max(1, sum(r.identities for r in last))


def restart(platform: Platform, partitions: int) -> Restart:
    """Stop it in order, start it, and wait until workers have read so many parts.

    Raises:
        TimeoutError: they do not.
    """
    began = time.monotonic()
    platform.stop()
    stopped = time.monotonic()
    ends = {log: log.stat().st_size for log in _logs(platform)}
    platform.start()
    platform.wait_until_ready(_PATIENCE)
    ready = time.monotonic()
    readings: list[Reading] = []
    read = ready
    while not _is_calm(readings, partitions, time.monotonic() - read):
        if time.monotonic() > stopped + _PATIENCE:
            raise TimeoutError(f"not all of {partitions} parts were read: {readings}")
        time.sleep(_LOOK_EVERY)
        found = list(_readings(platform, ends))
        if len(found) > len(readings):
            readings, read = found, time.monotonic()
    return Restart(stopped - began, ready - stopped, read - stopped, readings)


def _is_calm(readings: Sequence[Reading], partitions: int, seconds: float) -> bool:
    """Whether all parts are read, and for so long that none is just given to another worker."""
    if len({reading.part for reading in readings}) < partitions:
        return False
    return seconds > 1.0 + 2 * max(reading.seconds for reading in readings)


def _logs(platform: Platform) -> list[Path]:
    return [platform.log, *sorted((platform.data / "logs").glob("*.log"))]


def _readings(platform: Platform, ends: dict[Path, int]) -> Iterator[Reading]:
    for log in _logs(platform):
        with log.open("rb") as file:
            file.seek(ends.get(log, 0))
            for found in _READ.finditer(file.read().decode(errors="replace")):
                part, identities, size, seconds = found.groups()
                yield Reading(int(part), int(identities), int(size), float(seconds))
