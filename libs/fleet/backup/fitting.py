"""Whether a backup is of this platform, and of a release and a broker that fit it."""

from __future__ import annotations

import re
from importlib.metadata import version

from common.settings import PREFIX, Settings
from fleet.backup.folder import BackupFailed, BackupFolder, Manifest, fingerprint
from fleet.embedded.postgres import VERSION
from fleet.surroundings import KAFKA, REDIS_STREAMS


def require_fit(manifest: Manifest, settings: Settings, where: str) -> None:
    """See that the platform that the settings name can read the backup, and is the one it is of.

    Args:
        manifest: the backup's.
        settings: with the platform's secret.
        where: the secret is.

    Raises:
        BackupFailed: it cannot, or is another.
    """
    if fingerprint(settings.secret) != manifest.secret:
        raise BackupFailed(f"the secret, in {where} or {PREFIX}SECRET, is another platform's")
    here = version("mindweave")
    if _release(manifest.version) > _release(here):
        raise BackupFailed(
            f"the backup was made by MindWeave {manifest.version}, this is {here}:"
            " install that release or a later one"
        )


def broker_of(settings: Settings) -> str:
    """Which one the settings name."""
    return REDIS_STREAMS if settings.kafka_brokers is None else KAFKA


def require_same_broker(manifest: Manifest, settings: Settings) -> None:
    """See that the records of the backup are those of the broker that the settings name.

    Raises:
        BackupFailed: they are of the other one.
    """
    if broker_of(settings) != manifest.broker:
        raise BackupFailed(
            f"the backup is of a platform on {manifest.broker},"
            f" and the settings name {broker_of(settings)}"
        )


def require_same_postgres(backup: BackupFolder) -> None:
    """See that the embedded PostgreSQL reads the copy.

    Raises:
        BackupFailed: it is of another major release.
    """
    try:
        found = (backup.postgres / "PG_VERSION").read_text().strip()
    except OSError as error:
        raise BackupFailed(f"{backup.path} is not whole: {error}") from None
    if found != VERSION:
        raise BackupFailed(f"{backup.path} is of PostgreSQL {found}, this is {VERSION}")


def _release(text: str) -> list[int]:
    """The numbers of a version, of which the first three count."""
    return [int(number) for number in re.findall(r"\d+", text)[:3]]
