"""How a command that runs for long starts, and what is said where it cannot."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def begin() -> None:
    """Before anything large is imported: what runs for long starts sooner without a collector."""
    gc.disable()
    # Until what runs takes signals itself, what was started by then is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # gRPC's own lines are no JSON; what matters of them our interceptors log.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")


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
    from fleet.embedded import DidNotStart, InUse
    from fleet.embedded.folder import OtherBroker
    from fleet.services import UnknownRole, UnknownService
    from fleet.status import NotRunning

    return (
        DidNotStart,
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
