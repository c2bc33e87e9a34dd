"""``mindweave rotate-secret``: another ``MINDWEAVE_SECRET``, while nothing runs.

What follows from the secret is derived anew at the next start: what services show each other, and
the passwords of roles, which `migrate`, `all` and `up` set. What was encrypted with it is encrypted
anew here: the keys that sign tokens, so that sessions go on.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from common.database.connection import Connection, connect
from common.database.roles import scram_verifier
from common.errors import Unavailable
from common.identity.sealing import Sealer
from common.settings import PREFIX, Settings, SettingsError, load_settings, sealing_key
from fleet.embedded import DataFolder
from fleet.embedded.folder import password_of
from fleet.embedded.postgres import SUPERUSER
from fleet.environment import secret_is_set
from services.auth.store.signing_keys import SigningKeyStore

_NEW = f"{PREFIX}NEW_SECRET"
_SERVICE = "auth"


def rotate_secret(data: Path, tell: Callable[[str], None]) -> None:
    """Rotate the secret of the data folder; where ``MINDWEAVE_SECRET`` is set, that one.

    The next one is then what ``MINDWEAVE_NEW_SECRET`` says.

    Raises:
        InUse: a platform runs in the folder.
        SettingsError: a setting is wrong or missing.
        Unavailable: the database is.
        DidNotStart: the embedded PostgreSQL did not come up.
    """
    if secret_is_set():
        settings = load_settings()
        if settings.database_url is None:
            raise SettingsError("DATABASE_URL: is needed and not set")
        new = settings.model_copy(update={"secret": _given()})
        asyncio.run(_seal_anew(settings.owner_dsn(_SERVICE), settings, new))
        tell(f"set {PREFIX}SECRET to the new one, run `mindweave migrate`, and start all processes")
        return
    with closing(DataFolder(data)) as folder:
        _rotate_folder(folder, tell)


def _given() -> str:
    found = os.environ.get(_NEW, "")
    # As long as the setting itself must be.
    if len(found) < 32:
        raise SettingsError(f"{_NEW}: is needed, with at least 32 characters")
    return found


def _rotate_folder(folder: DataFolder, tell: Callable[[str], None]) -> None:
    file = folder.path / "secret"
    unfinished = file.with_suffix(".new")
    broken_off = unfinished.exists()
    if not broken_off:
        made = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(made, secrets.token_hex(32).encode())
        os.fsync(made)
        os.close(made)
    old = load_settings(secret=folder.secret)
    new = old.model_copy(update={"secret": unfinished.read_text().strip()})
    password = password_of(new.secret, "postgres")
    server = folder.postgres()
    server.start()
    try:
        new_dsn = folder.postgres_as(password).admin_dsn
        if not (broken_off and asyncio.run(_lets_in(new_dsn))):
            dsn = urlunsplit(urlsplit(server.admin_dsn)._replace(path=f"/{_SERVICE}"))
            asyncio.run(_seal_anew(dsn, old, new, password))
    finally:
        server.stop()
    unfinished.rename(file)
    tell(f"{file} holds the new secret: keep a copy, and start the platform")


async def _lets_in(dsn: str) -> bool:
    try:
        await (await connect(dsn, "rotation of the secret")).close()
    except Unavailable:
        return False
    return True


async def _seal_anew(dsn: str, old: Settings, new: Settings, superuser: str | None = None) -> None:
    """Encrypt the signing keys anew, and change the superuser's password with them, or neither."""
    connection: Connection = await connect(dsn, "rotation of the secret")
    try:
        async with connection.transaction():
            store = SigningKeyStore(connection, Sealer(sealing_key(old, _SERVICE)))
            await store.lock()
            keys = await store.list_all()
            await store.delete([key.kid for key in keys])
            sealed = SigningKeyStore(connection, Sealer(sealing_key(new, _SERVICE)))
            for key in keys:
                await sealed.insert(key)
            if superuser is not None:
                change = await connection.fetchval(
                    "SELECT format('ALTER ROLE %I PASSWORD %L', $1::text, $2::text)",
                    SUPERUSER,
                    scram_verifier(superuser),
                )
                await connection.execute(change)
    finally:
        await connection.close()
