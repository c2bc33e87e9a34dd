"""Backups of the whole platform, at one moment, and the way back from them."""

from fleet.backup.folder import BackupFailed

__all__ = ["BackupFailed"]
