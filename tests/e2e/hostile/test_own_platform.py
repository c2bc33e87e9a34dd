"""A platform of this module's own: its keys are known, its log is read, its memory is measured."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from urllib.parse import urlsplit

import asyncpg
import httpx
import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.identity.sealing import Sealer
from common.settings import load_settings, sealing_key
from fleet.process import Platform
from services.auth.store.signing_keys import SigningKeyStore
from tests.common.plain import PLAIN
from tests.common.waiting import eventually
from tests.e2e.hostile.test_bodies import ORGS, bombs
from tests.e2e.hostile.test_credentials import patiently, shown
from tests.e2e.hostile.test_slow import drip
from tests.e2e.hostile.tokens import Genuine, bad_keys, bearing, ended_session, forged, made_up
from tests.e2e.hostile.wire import Answer, connect, request, talk
from tests.e2e.own import own_platform
from tests.e2e.tenant import PASSWORD, User, bearer, created, register

pytestmark = pytest.mark.e2e

QUOTA = 50
CONNECTIONS = 4_000
MANY, ENOUGH = 10_000, 5_000
# More than a crowd leaves in the allocator; a leak of a few kB for each of them is more.
MAY_GROW = 120_000_000
JSON = "Content-Type: application/json"
CLOSE = "Connection: close"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Logs all that it ever logs, and allows little."""
    environment = {
        "MINDWEAVE_LOG_LEVEL": "debug",
        "MINDWEAVE_LIMITS__REQUESTS_PER_SECOND": str(QUOTA),
        "MINDWEAVE_LIMITS__CONNECTIONS": str(CONNECTIONS),
    }
    with own_platform(tmp_path_factory.mktemp("guarded"), environment) as platform:
        yield platform


@pytest.fixture(scope="module")
def client(guarded: Platform) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=guarded.address, timeout=60) as made:
        yield made


@pytest.fixture(scope="module")
async def signing_key(guarded: Platform) -> Ed25519PrivateKey:
    """The key that the platform signs with."""
    settings = load_settings(secret=(guarded.data / "secret").read_text())
    admin = urlsplit(guarded.run()["database_url"])
    connection = await asyncpg.connect(admin._replace(path="/auth").geturl())
    try:
        sealer = Sealer(sealing_key(settings, "auth"))
        keys = await SigningKeyStore(connection, sealer).list_all()
    finally:
        await connection.close()
    return keys[0].private


def test_no_token_under_our_own_key_passes_that_is_not_for_the_edge(
    guarded: Platform, client: httpx.Client, signing_key: Ed25519PrivateKey
) -> None:
    have_room(client)
    user, other = register(guarded.address), register(guarded.address)
    genuine = Genuine(user.tokens["access_token"])
    same = bearing(genuine.signed(signing_key, {"jti": "of this test"}))
    assert client.get("/auth/me", headers=same).status_code == 200
    for name, fields in forged(signing_key, user, other).items():
        codes = shown(client, fields)
        assert codes <= {
            "unauthenticated", "invalid_credential", "expired_credential", "session_ended",
        }, name  # fmt: skip


def test_nothing_secret_is_ever_logged(guarded: Platform, client: httpx.Client) -> None:
    have_room(client)
    user = register(guarded.address)
    matrix = made_up(guarded.address, user) | bad_keys(user)
    have_room(client)
    matrix["ended"] = ended_session(guarded.address)
    for fields in matrix.values():
        shown(client, fields)
    token = user.tokens["access_token"]
    client.get("/auth/me", params={"access_token": token})
    client.post("/auth/login", json={"email": user.email, "password": f"{PASSWORD}, not"})
    client.post("/auth/refresh", json={"refresh_token": token})
    log = guarded.log.read_text(errors="replace")
    assert '"level": "debug"' in log or '"level":"debug"' in log
    values = {v for fields in matrix.values() for _, v in fields} | {*user.tokens.values()}
    words = {word for value in map(str, values) for word in value.split() if len(word) > 30}
    signatures = {word.rpartition(".")[2] for word in words if word.count(".") == 2}
    secret = {PASSWORD, *words, *(s for s in signatures if len(s) > 30)}
    assert len(secret) > 50
    assert not [value for value in secret if value in log]


async def test_a_flood_of_one_credential_is_slowed_and_no_other_one_is(
    guarded: Platform, client: httpx.Client
) -> None:
    have_room(client)
    loud, quiet = register(guarded.address), register(guarded.address)
    token = f"Authorization: Bearer {loud.tokens['access_token']}"
    flood = request("GET /auth/me", token) * 30 + request("GET /auth/me", token, CLOSE)
    slowed: list[Answer] = []
    for _ in range(20):
        heard = await asyncio.gather(*(talk(guarded.address, flood) for _ in range(8)))
        assert quiet.client.get("/auth/me").status_code == 200
        answers = [answer for one in heard for answer in one.answers]
        assert {answer.status for answer in answers} <= {200, 429}
        slowed = [answer for answer in answers if answer.status == 429]
        if slowed:
            break
    refused(slowed[0])
    key_is_another(guarded.address, loud)


def have_room(client: httpx.Client) -> None:
    """Returns when this address, which has shown bad credentials, may ask often again."""
    answer = patiently(lambda: client.get("/openapi.json"))
    while int(answer.headers["x-ratelimit-remaining"]) < QUOTA / 2:
        answer = patiently(lambda: client.get("/openapi.json"))


def refused(answer: Answer) -> None:
    """It is a 429 that says who may come again when."""
    assert answer.status == 429
    assert answer.problem()["code"] == "rate_limited"
    assert int(answer.fields["retry-after"]) >= 1
    assert answer.fields["ratelimit-policy"] == f'"requests";q={QUOTA};w=1'
    assert answer.fields["ratelimit"].startswith('"requests";r=0;t=')
    assert answer.fields["x-ratelimit-limit"] == str(QUOTA)
    assert answer.fields["x-ratelimit-remaining"] == "0"


def key_is_another(address: str, user: User) -> None:
    """The user comes back after the window, and a key of the same user counts by itself."""
    assert patiently(lambda: user.client.get("/auth/me")).status_code == 200
    key = created(user.client, "/auth/api-keys", {"name": "k", "scopes": ["project:read"]})
    with bearer(address, key["key"]) as by_key:
        left = int(by_key.get("/projects").headers["x-ratelimit-remaining"])
    assert left == QUOTA - 1


async def answers(platform: Platform) -> None:
    """A client that comes now is answered, and so is the next one."""
    for _ in range(5):
        async with httpx.AsyncClient(timeout=60, verify=PLAIN) as another:
            assert (await another.get(f"{platform.address}/health/live")).status_code == 200


def pss(platform: Platform) -> int:
    """Memory of the platform's own process, which is where clients are."""
    found: int = psutil.Process(platform.process.pid).memory_full_info().pss
    return found


@contextmanager
def crowd(address: str, size: int, sent: bytes) -> Iterator[None]:
    """So many connections that send this and then nothing."""
    where = urlsplit(address)
    with ExitStack() as stack:
        for _ in range(size):
            one = stack.enter_context(
                socket.create_connection((where.hostname or "", where.port or 0), timeout=60)
            )
            with suppress(ConnectionError):
                # It may have had to go already, for another one.
                one.sendall(sent)
        yield


@pytest.fixture(scope="module")
def many_descriptors() -> Iterator[None]:
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert most > MANY + 1_000, f"the limit of open files is {most}"
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))


@pytest.mark.usefixtures("many_descriptors")
async def test_ten_thousand_connections_keep_nobody_out_and_leave_nothing(
    guarded: Platform,
) -> None:
    before = pss(guarded)
    open_before = connections(guarded)
    crowds = {
        "silent": (MANY, b""),
        "kept alive": (MANY, request("GET /health/live")),
        "in a head": (ENOUGH, b"GET /health/live HTTP/1.1\r\nHost: x\r\nX-Half: "),
        "in a body": (ENOUGH, request("POST /auth/login", JSON, "Content-Length: 100") + b"{"),
    }
    for name, (size, sent) in crowds.items():
        with crowd(guarded.address, size, sent):
            assert connections(guarded) <= CONNECTIONS, name
            await answers(guarded)
            if name == "silent":
                # They are given up by themselves.
                await eventually(lambda: connections(guarded) < MANY / 100)
        await eventually(lambda: connections(guarded) <= open_before + 1)
        assert pss(guarded) - before < MAY_GROW, name


async def test_whoever_sends_no_request_is_given_up(guarded: Platform) -> None:
    done = request("GET /health/live")
    heard = await asyncio.gather(
        talk(guarded.address),
        talk(guarded.address, then=drip(b"\r\n")),
        talk(guarded.address, done, then=drip(b"\r\n")),
    )
    assert [one.statuses for one in heard] == [[], [], [200]]


def connections(platform: Platform) -> int:
    """How many clients the platform has."""
    port = urlsplit(platform.address).port
    found = psutil.Process(platform.process.pid).net_connections("tcp")
    return sum(c.laddr.port == port and c.status == psutil.CONN_ESTABLISHED for c in found)


async def test_what_nobody_reads_is_not_kept(guarded: Platform) -> None:
    before = pss(guarded)
    flood = request("GET /openapi.json") * 200
    unread = [await connect(guarded.address) for _ in range(100)]
    for _, writer in unread:
        writer.transport.pause_reading()
        writer.write(flood)
    await answers(guarded)
    assert pss(guarded) - before < MAY_GROW
    for _, writer in unread:
        writer.transport.abort()


def test_bombs_leave_no_memory_behind(guarded: Platform, client: httpx.Client) -> None:
    have_room(client)
    user = register(guarded.address)
    small = {name: bomb for name, bomb in bombs().items() if len(bomb[1]) < 1_000_000}
    before = pss(guarded)
    for _ in range(3):
        for encoding, body in small.values():
            headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
            answer = user.client.post(ORGS, content=body, headers=headers)
            assert answer.status_code in (413, 422)
    assert pss(guarded) - before < MAY_GROW
    assert client.get("/health/live").status_code == 200
