"""A platform of a test's own, where the test breaks things."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from fleet.ports import free_port
from fleet.process import Platform

# Names a platform that runs, in place of one that the tests start.
GIVEN = "MINDWEAVE_E2E_ADDRESS"
START_PATIENCE = 240.0
# Of many processes, where nobody asks how calls fare while one drains.
SOON_ENDED = {"MINDWEAVE_DRAIN_DELAY": "0.5"}


@contextmanager
def own_platform(
    data: Path, environment: Mapping[str, str] | None = None, **layout: Any
) -> Iterator[Platform]:
    """A ready platform in ``data``; whatever it leaves behind is ended at the end."""
    platform = Platform(data, f"127.0.0.1:{free_port()}", environment, **layout)
    try:
        with platform:
            platform.wait_until_ready(START_PATIENCE)
            yield platform
    finally:
        platform.kill_everything()


def databases(platform: Platform) -> list[psutil.Process]:
    """The processes of its PostgreSQL."""
    return [p for p in platform.processes() if "postgres" in p.name()]
