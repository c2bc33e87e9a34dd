"""What is told of a refused certificate: why, and what to set only where that would help."""

from __future__ import annotations

import ssl
from datetime import timedelta
from pathlib import Path

import pytest

from common.certificates import refusal
from tests.common.certificates.authority import HOST, Authority

pytestmark = pytest.mark.unit

SETTING = "THE_CA_FILE"


def shown(certificate: Path, trusted: Path, host: str = HOST) -> ssl.SSLError:
    """How a client fails that is shown the certificate."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certificate)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = serving.wrap_bio(there, back, server_side=True)
    context = ssl.create_default_context(cafile=str(trusted))
    client = context.wrap_bio(back, there, server_hostname=host)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    with pytest.raises(ssl.SSLWantReadError):
        server.do_handshake()
    with pytest.raises(ssl.SSLError) as failed:
        client.do_handshake()
    return failed.value


@pytest.fixture
def ours(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ours.pem", "ours")


def test_an_authority_that_is_not_trusted_is_told_with_the_setting(
    tmp_path: Path, ours: Authority
) -> None:
    theirs = Authority(tmp_path / "theirs.pem", "theirs")
    error = shown(theirs.sign(tmp_path / "server.pem"), ours.file)
    assert f"{SETTING} names" in (refusal(error, SETTING) or "")


def test_a_name_of_another_and_an_end_are_told_without_a_setting(
    tmp_path: Path, ours: Authority
) -> None:
    server, old = tmp_path / "server.pem", tmp_path / "old.pem"
    other = refusal(shown(ours.sign(server), ours.file, "elsewhere.example"), SETTING)
    ended = refusal(shown(ours.sign(old, lasting=-timedelta(minutes=1)), ours.file), SETTING)
    assert "mismatch" in (other or "")
    assert ended == "certificate has expired"
    assert SETTING not in f"{other}{ended}"
