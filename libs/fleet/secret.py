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
from common.errors import NotReady, Unavailable
from common.identity.sealing import SealBroken, Sealer
from common.settings import PREFIX, Settings, SettingsError, load_settings, sealing_key
from fleet.embedded import DataFolder
from fleet.embedded.folder import password_of, sync_folder, write_whole
from fleet.embedded.postgres import SUPERUSER
from fleet.environment import secret_is_set
from services.auth.store.signing_keys import SigningKeyStore

_NEW = f"{PREFIX}NEW_SECRET"
_SERVICE = "auth"
# As long as the setting itself must be.
_SHORTEST = 32
# Seconds in which sessions end whose clients have, and between two looks.
_ENDING, _LOOK = 5.0, 0.1


def rotate_secret(data: Path, tell: Callable[[str], None]) -> None:
    """Rotate the secret of the data folder; where ``MINDWEAVE_SECRET`` is set, that one.

    The next one is then what ``MINDWEAVE_NEW_SECRET`` says.

    Raises:
        InUse: a platform runs in the folder.
        SettingsError: a setting is wrong or missing.
        Unavailable: the database is.
        NotReady: somebody else is connected to the database of auth.
        DidNotStart: the embedded PostgreSQL did not come up.
    """
    if secret_is_set():
        settings = load_settings()
        if settings.database_url is None:
            raise SettingsError("DATABASE_URL: is needed and not set")
        new = settings.model_copy(update={"secret": _given()})
        done = asyncio.run(_seal_anew(settings.owner_dsn(_SERVICE), settings, new))
        if not done:
            tell("done already: the keys are sealed with the new secret")
        tell(f"set {PREFIX}SECRET to the new one, run `mindweave migrate`, and start all processes")
        return
    with closing(DataFolder(data)) as folder:
        _rotate_folder(folder, tell)


def _given() -> str:
    found = os.environ.get(_NEW, "")
    if len(found) < _SHORTEST:
        raise SettingsError(f"{_NEW}: is needed, with at least {_SHORTEST} characters")
    return found


def _rotate_folder(folder: DataFolder, tell: Callable[[str], None]) -> None:
    file = folder.path / "secret"
    unfinished = file.with_suffix(".new")
    # A shorter one is of a release that wrote it in place, on a disk that was full.
    broken_off = unfinished.exists() and len(unfinished.read_text().strip()) >= _SHORTEST
    if not broken_off:
        write_whole(unfinished, secrets.token_hex(32).encode())
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
    sync_folder(folder.path)
    tell(f"{file} holds the new secret: keep a copy, and start the platform")


async def _lets_in(dsn: str) -> bool:
    try:
        await (await connect(dsn, "rotation of the secret")).close()
    except Unavailable:
        return False
    return True


async def _seal_anew(dsn: str, old: Settings, new: Settings, superuser: str | None = None) -> bool:
    """Encrypt the signing keys anew, and change the superuser's password with them, or neither.

    Returns:
        False, with nothing changed, where the new secret opens them already.
    """
    connection: Connection = await connect(dsn, "rotation of the secret")
    try:
        await _require_alone(connection)
        async with connection.transaction():
            store = SigningKeyStore(connection, Sealer(sealing_key(old, _SERVICE)))
            sealed = SigningKeyStore(connection, Sealer(sealing_key(new, _SERVICE)))
            await store.lock()
            try:
                keys = await store.list_all()
            except SealBroken:
                if await _opens(sealed):
                    return False
                raise SettingsError(
                    f"{PREFIX}SECRET: the keys that sign are sealed with another one"
                ) from None
            await store.delete([key.kid for key in keys])
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
    return True


async def _opens(store: SigningKeyStore) -> bool:
    try:
        await store.list_all()
    except SealBroken:
        return False
    return True


async def _require_alone(connection: Connection) -> None:
    """See that no process of auth runs: it would go on with keys of the old secret, or make one.

    Raises:
        NotReady: somebody is connected to the database.
    """
    now = asyncio.get_running_loop().time
    give_up = now() + _ENDING
    while True:
        others = await connection.fetchval(
            """
            SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND usename IS NOT NULL
                AND pid <> pg_backend_pid()
            """
        )
        if not others:
            return
        if now() > give_up:
            raise NotReady(f"{others} sessions of the database of auth are open: end all first")
        await asyncio.sleep(_LOOK)
