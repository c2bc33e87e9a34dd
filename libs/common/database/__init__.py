"""PostgreSQL: transactions bound to a scope, migrations, roles, and what commits with a change."""

from common.database.change import Change
from common.database.connection import Connection
from common.database.housekeeping import forget_expired, housekeeping
from common.database.idempotency import Answer, AnswerExists, find_answer
from common.database.pool import Database, UnsafeRole
from common.database.roles import bootstrap, grant_runtime
from common.database.schema import (
    MigrationFailed,
    MigrationRefused,
    migrate,
    migration_version,
    pending,
)
from common.database.scope import Scope
from common.identity.sealing import Sealer

__all__ = [
    "Answer",
    "AnswerExists",
    "Change",
    "Connection",
    "Database",
    "MigrationFailed",
    "MigrationRefused",
    "Scope",
    "Sealer",
    "UnsafeRole",
    "bootstrap",
    "find_answer",
    "forget_expired",
    "grant_runtime",
    "housekeeping",
    "migrate",
    "migration_version",
    "pending",
]
