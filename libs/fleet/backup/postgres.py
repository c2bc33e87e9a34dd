"""A copy of a PostgreSQL server's data directory, by PostgreSQL's own programs."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import pwd
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from fleet.backup.folder import BackupFailed
from fleet.embedded.daemon import DidNotStart, server_environment
from fleet.embedded.folder import sync_folder
from fleet.embedded.postgres import UNPRIVILEGED, binaries

_LINES = 5


async def copy_of(dsn: str, folder: Path) -> None:
    """Copy the server's data directory while it runs, with the log that makes it of one moment.

    That moment is the end of the copy; every database of the server is as it was then.

    Args:
        dsn: of a role with REPLICATION.
        folder: made by it.

    Raises:
        BackupFailed: the server refused, or what was copied is not whole.
    """
    shown, password = without_password(dsn)
    await _run(
        "pg_basebackup",
        *(f"--dbname={shown}", f"--pgdata={folder}", "--no-password"),
        *("--checkpoint=fast", "--wal-method=stream"),
        "--manifest-checksums=sha256",
        told={"PGPASSWORD": password},
    )
    await verify(folder)


def without_password(dsn: str) -> tuple[str, str]:
    """What everybody may see of a DSN, and its password, which no argument of a program may hold.

    Raises:
        BackupFailed: it holds the password of a certificate, too.
    """
    parts = urlsplit(dsn)
    user, _, host = parts.netloc.rpartition("@")
    name, _, quoted = user.partition(":")
    password = unquote(quoted)
    shown = []
    for pair in filter(None, parts.query.split("&")):
        key, _, value = pair.partition("=")
        if unquote(key) == "sslpassword":
            raise BackupFailed("DATABASE_URL: sslpassword is not kept secret here: use another key")
        if unquote(key) == "password":
            password = unquote(value)
        else:
            shown.append(pair)
    query = "&".join(shown)
    return urlunsplit(parts._replace(netloc=f"{name}@{host}", query=query)), password


async def verify(folder: Path) -> None:
    """See that the copy is what the server has sent, and that its log is whole.

    As PostgreSQL's pg_verifybackup, which crashes in the embedded server's wheel.

    Raises:
        BackupFailed: it is not.
    """
    wrong, manifest = await asyncio.to_thread(_differences, folder)
    if wrong:
        raise BackupFailed(f"{folder} is not as it was made: {', '.join(sorted(wrong)[:_LINES])}")
    for log in manifest["WAL-Ranges"]:
        await _run(
            "pg_waldump",
            *("--quiet", f"--path={folder / 'pg_wal'}", f"--timeline={log['Timeline']}"),
            *(f"--start={log['Start-LSN']}", f"--end={log['End-LSN']}"),
        )


def _differences(folder: Path) -> tuple[list[str], dict[str, Any]]:
    """Files that are missing or changed, and the server's list of them."""
    try:
        written = (folder / "backup_manifest").read_bytes()
        manifest: dict[str, Any] = json.loads(written)
    except (OSError, ValueError) as error:
        raise BackupFailed(f"{folder}: {error}") from None
    # The last line is the checksum of those before.
    listed, _, _ = written.rpartition(b'"Manifest-Checksum"')
    wrong = []
    if hashlib.sha256(listed).hexdigest() != manifest["Manifest-Checksum"]:
        wrong.append("backup_manifest")
    for entry in manifest["Files"]:
        path = entry.get("Path") or bytes.fromhex(entry["Encoded-Path"]).decode()
        try:
            with (folder / path).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == entry["Checksum"]:
                    continue
        except FileNotFoundError:
            pass
        wrong.append(path)
    return wrong, manifest


def put_in_place(copy: Path, folder: Path) -> None:
    """Make a copy the data directory of an embedded server, which has none; on the disk then."""
    unfinished = folder.with_name(f"{folder.name}.restored")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(copy, unfinished, symlinks=True)
    unfinished.chmod(0o700)
    if os.geteuid() == 0:
        owner = pwd.getpwnam(UNPRIVILEGED)
        for path in (unfinished, *unfinished.rglob("*")):
            os.chown(path, owner.pw_uid, owner.pw_gid, follow_symlinks=False)
    os.sync()
    unfinished.rename(folder)
    sync_folder(folder.parent)


async def _run(name: str, *arguments: str, told: Mapping[str, str] | None = None) -> None:
    process = await asyncio.create_subprocess_exec(
        _program(name),
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=server_environment() | dict(told or {}),
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        lines = output.decode(errors="replace").strip().splitlines()
        raise BackupFailed(f"{name} failed: " + "; ".join(lines[-_LINES:]))


def _program(name: str) -> str:
    """The embedded server's, else that of the machine, whose release is then that of the server."""
    try:
        return str(binaries() / name)
    except DidNotStart:
        found = shutil.which(name)
        if found is None:
            raise BackupFailed(f"{name} of PostgreSQL is not installed") from None
        return found
