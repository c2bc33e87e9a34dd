"""Authorities of the tests, and servers that speak TLS with what they have signed."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

HOST = "127.0.0.1"
# What a client of PostgreSQL sends first where it wants TLS.
_WANTS_TLS = (8).to_bytes(4) + (80877103).to_bytes(4)


class Authority:
    """Signs certificates of servers at ``HOST``; ``file`` holds its own, for who trusts it."""

    def __init__(self, file: Path, name: str) -> None:
        self.file = file
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        basic = x509.BasicConstraints(ca=True, path_length=None)
        made = self._builder(self._name, self._key.public_key()).add_extension(basic, critical=True)
        self.pem = made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        file.write_bytes(self.pem)

    def sign(self, file: Path, *, lasting: timedelta = timedelta(days=1)) -> Path:
        """Write a new key and its certificate, as PEM; returns the file."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])
        there = x509.SubjectAlternativeName([x509.IPAddress(ip_address(HOST))])
        made = self._builder(name, key.public_key(), lasting).add_extension(there, critical=False)
        certificate = made.sign(self._key, hashes.SHA256())
        written = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        file.write_bytes(written + certificate.public_bytes(serialization.Encoding.PEM))
        return file

    def _builder(
        self,
        name: x509.Name,
        key: ec.EllipticCurvePublicKey,
        lasting: timedelta = timedelta(days=1),
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + lasting)
        )


class Front:
    """Ends TLS before a server that speaks none, as a pooler or a sidecar does.

    It runs in a thread of its own: uvloop upgrades no connection that it has accepted.

    Attributes:
        port: at ``HOST``.
        shown: how many connections were made with TLS.
    """

    def __init__(self, certificate: Path, *, asked: bool = False) -> None:
        """Show a certificate.

        Args:
            certificate: with its key.
            asked: whether clients of PostgreSQL come, who ask for TLS before they speak it.
        """
        self.port = 0
        self.shown = 0
        self._asked = asked
        self._open: set[asyncio.StreamWriter] = set()
        self._context = _showing(certificate)
        self._loop = asyncio.SelectorEventLoop()
        self._ending = asyncio.Event()

    def show(self, certificate: Path) -> None:
        """Show this one from now on, and let go of all connections."""
        self._context = _showing(certificate)
        self._loop.call_soon_threadsafe(self._let_go)

    @contextmanager
    def before(self, server: Path) -> Iterator[None]:
        """Serve while the block runs; ``server`` is the Unix socket of the one behind."""
        with ThreadPoolExecutor(1) as pool:
            listening: Future[None] = Future()
            running = pool.submit(self._run, server, listening)
            listening.result()
            try:
                yield
            finally:
                self._loop.call_soon_threadsafe(self._ending.set)
                running.result()

    def _run(self, server: Path, listening: Future[None]) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._listen(server, listening))

    async def _listen(self, server: Path, listening: Future[None]) -> None:
        accepting = await asyncio.start_server(partial(self._serve, server), HOST, 0)
        self.port = accepting.sockets[0].getsockname()[1]
        listening.set_result(None)
        await self._ending.wait()
        accepting.close()
        self._let_go()
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)

    async def _serve(
        self, server: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._open.add(writer)
        with suppress(OSError, asyncio.IncompleteReadError):
            if self._asked:
                assert await reader.readexactly(len(_WANTS_TLS)) == _WANTS_TLS
                writer.write(b"S")
            await writer.start_tls(self._context)
            self.shown += 1
            behind, to = await asyncio.open_unix_connection(server)
            await asyncio.gather(_copy(reader, to), _copy(behind, writer))
        self._open.discard(writer)
        writer.transport.abort()

    def _let_go(self) -> None:
        for writer in self._open:
            writer.transport.abort()


def _showing(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()
