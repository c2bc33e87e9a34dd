"""How a command that runs for long starts, and what is said where it cannot."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Of malloc.h; the largest that may be asked for, what is kept at the end of each of its heaps, and
# how many there are: a thread each would keep as much, and Python runs one at a time.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGEST_KEPT = 32 * 1024 * 1024
_KEPT = 64 * 1024 * 1024
_HEAPS = 2


def begin() -> None:
    """Before anything large is imported: what runs for long starts sooner without a collector."""
    gc.disable()
    # Until what runs takes signals itself, what was started by then is stopped.
    end_in_order(0)
    # gRPC's own lines are no JSON; what matters of them our interceptors log.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    _keep_freed_memory()


def end_in_order(code: int = 128 + signal.SIGTERM) -> None:
    """From here on SIGTERM ends the program with what it has started, and with this exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(code))


def _keep_freed_memory() -> None:
    """Have the C library keep what is freed, up to a bound, for the next batch of events.

    It would give each array of a batch back to the system, which fills every page with zeros again.
    """
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        if hasattr(library, "mallopt"):
            library.mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
            library.mallopt(_M_TRIM_THRESHOLD, _KEPT)
            library.mallopt(_M_ARENA_MAX, _HEAPS)


@contextmanager
def told_in_a_line() -> Iterator[None]:
    """Ends with what a person can do about a failed start; a bug keeps its traceback."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, _known()):
            raise
        print(f"mindweave: {error}", file=sys.stderr)
        raise SystemExit(1) from error


def _known() -> tuple[type[Exception], ...]:
    # Half of it is of commands that a service does not run: only who fails imports it.
    from common.database import MigrationFailed, MigrationRefused, UnsafeRole
    from common.errors import MindWeaveError, NotReady
    from common.events.bus import TopicMismatch
    from common.settings import SettingsError
    from fleet.backup import BackupFailed
    from fleet.embedded import DidNotStart, InUse
    from fleet.embedded.folder import HalfRestored, OtherBroker
    from fleet.nodes import AddNodeFailed
    from fleet.services import UnknownRole, UnknownService
    from fleet.status import NotRunning

    return (
        AddNodeFailed,
        BackupFailed,
        DidNotStart,
        HalfRestored,
        InUse,
        MigrationFailed,
        MigrationRefused,
        MindWeaveError,
        NotReady,
        NotRunning,
        OSError,
        OtherBroker,
        SettingsError,
        TopicMismatch,
        UnknownRole,
        UnknownService,
        UnsafeRole,
    )
