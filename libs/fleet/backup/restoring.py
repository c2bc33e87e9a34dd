"""``mindweave restore``: a data folder from a backup."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from common.settings import PREFIX, load_settings
from common.telemetry import configure_logs
from fleet.backup.fitting import require_fit, require_same_postgres
from fleet.backup.folder import BackupFailed, BackupFolder
from fleet.backup.postgres import put_in_place, verify
from fleet.backup.rejoining import rejoin
from fleet.embedded import DataFolder
from fleet.embedded.folder import read_secret
from fleet.environment import secret_is_set
from fleet.migrate import migrate_all
from fleet.services import owners
from fleet.surroundings import Surroundings, started_in


def restore(path: Path, data: Path, *, accept_loss: bool, tell: Callable[[str], None]) -> None:
    """Put the backup's PostgreSQL into the data folder and join it to the broker that is there.

    Where it is ended in the middle, nothing opens the folder until it is run again.

    Args:
        path: of the backup.
        data: a platform's folder, without PostgreSQL and with its secret.
        accept_loss: go on where the broker has lost records that are not counted.
        tell: is told what was done.

    Raises:
        InUse: a platform runs there.
        BackupFailed: the backup is not whole, or does not fit what is there.
        DidNotStart: an embedded server did not come up.
    """
    configure_logs("warning")
    backup = BackupFolder(path)
    manifest = backup.manifest()
    _require_fit(backup, data)
    with closing(DataFolder(data, restoring=True)) as folder:
        postgres = folder.path / "postgres"
        if postgres.exists() and not folder.half_restored:
            raise BackupFailed(f"{postgres} is there: move it away first")
        asyncio.run(verify(backup.postgres))
        tell(f"{backup.path} is whole: of {manifest.began_at:%Y-%m-%d %H:%M:%S} UTC")
        # One that a killed process left behind would write into files that are gone.
        folder.postgres().stop()
        folder.begin_restore()
        try:
            shutil.rmtree(postgres, ignore_errors=True)
            put_in_place(backup.postgres, postgres)
            with started_in(folder, manifest.broker) as found:
                asyncio.run(_rejoin(found, backup, accept_loss, tell))
        except BaseException:
            # As before, so that it can be run again.
            shutil.rmtree(postgres, ignore_errors=True)
            if not postgres.exists():
                folder.end_restore()
            raise
        folder.end_restore()
    tell("restored: start the platform")


def _require_fit(backup: BackupFolder, data: Path) -> None:
    secret = None if secret_is_set() else read_secret(data)
    if secret is None and not secret_is_set():
        raise BackupFailed(f"put the platform's secret into {data}/secret, or set {PREFIX}SECRET")
    settings = load_settings(**({} if secret is None else {"secret": secret}))
    require_fit(backup.manifest(), settings, f"{data}/secret")
    if settings.database_url or settings.database_urls:
        raise BackupFailed(
            "DATABASE_URL is set: give that server the backup's folder postgres as its data"
            " directory, and run `mindweave rejoin`"
        )
    require_same_postgres(backup)


async def _rejoin(
    found: Surroundings, backup: BackupFolder, accept_loss: bool, tell: Callable[[str], None]
) -> None:
    await migrate_all(owners(), found.settings)
    await rejoin(found.settings, backup, accept_loss=accept_loss, tell=tell)
