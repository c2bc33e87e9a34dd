"""How dead letters look to an operator."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from io import StringIO
from uuid import uuid4

import msgspec
import pytest
from rich.console import Console

from common.events.bus import Record
from common.events.dead_letters import Letter, Settlement
from common.events.envelope import Envelope, encode, pack
from fleet.letters import details, listing, page, summary

pytestmark = pytest.mark.unit

HEADERS = {
    "origin-topic": "platform.events",
    "origin-partition": "1",
    "origin-token": "1764000000000-7",
    "origin-group": "project",
    "attempt": "5",
    "error": "ValueError: mwu_0123456789abcdef is no project",
    "when": "2026-11-21T10:04:05.678+00:00",
    "x-correlation-id": "request-1",
    "authorization": "Bearer abcdefghijk",
}
ENVELOPE = Envelope(
    id=uuid4(),
    type="org.deleted",
    source="account",
    timestamp=datetime(2026, 11, 21, tzinfo=UTC),
    data={"org_id": "an organization", "password": "hunter2", "name": "Zoë\x1b[31m"},
)


def letter(value: bytes, *settlements: Settlement, **headers: str) -> Letter:
    record = Record(
        "platform.events.dead", 0, "1764000000123-4", "k", value, {**HEADERS, **headers}
    )
    return Letter(record, settlements)


def printed(width: int, *letters: Letter, whole: bool = False) -> str:
    out = StringIO()
    console = Console(file=out, width=width, force_terminal=False, highlight=False)
    if whole:
        page(letters[0], console)
    else:
        listing(list(letters), console)
    return out.getvalue()


def test_a_letter_is_shown_with_where_it_failed_and_without_its_secrets() -> None:
    shown = printed(80, letter(encode(ENVELOPE)), whole=True)
    assert "platform.events.dead/0/1764000000123-4" in shown
    assert "platform.events/1 1764000000000-7" in shown
    assert "project, attempt 5, 2026-11-21T10:04:05.678+00:00" in shown
    assert "ValueError: mwu_*** is no project" in shown
    assert f"org.deleted {ENVELOPE.id}" in shown
    assert "request-1" in shown
    assert '"org_id": "an organization"' in shown
    assert "Zoë" in shown
    for secret in ("hunter2", "mwu_0123456789abcdef", "abcdefghijk", "\x1b"):
        assert secret not in shown


def test_a_packed_envelope_is_shown_as_one_in_json_is() -> None:
    assert details(letter(pack(ENVELOPE)))["value"]["data"]["org_id"] == "an organization"
    assert summary(letter(pack(ENVELOPE)))["event_type"] == "org.deleted"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b"noise", "noise"),
        (b"\xff\x00\x1b[2J", r"\xff\x00\x1b[2J"),
        (b"x", "x"),
        (b"", ""),
        (b'{"type": "torn', '{"type": "torn'),
        (b"[1]", "[1]"),
    ],
)
def test_what_is_no_envelope_is_shown_as_it_is(value: bytes, shown: str) -> None:
    page = printed(80, letter(value), whole=True)
    assert "not an envelope" in page
    assert page.endswith(f"{shown}\n")
    assert "\x1b" not in page
    assert json.dumps(details(letter(value)))


def test_a_map_that_is_no_envelope_is_shown_as_a_map() -> None:
    value = msgspec.msgpack.encode({"secret": "s", 3: [b"\xff", datetime(2026, 1, 1, tzinfo=UTC)]})
    assert details(letter(value))["value"] == {
        "secret": "***",
        "3": ["<1 bytes>", "2026-01-01 00:00:00+00:00"],
    }


def test_a_huge_letter_fills_no_more_than_a_few_pages() -> None:
    huge = letter(b"y" * 100_000, error="E" * 500)
    assert len(printed(80, huge, whole=True)) < 20_000
    assert "100,000 bytes in all" in printed(80, huge, whole=True)


def test_the_history_of_a_letter_is_shown() -> None:
    settlements = [
        Settlement(letter="x", outcome="replayed", by="ada", at="2026-11-21T11:00:00+00:00"),
        Settlement(
            letter="x",
            outcome="discarded",
            by="bob\x1b[1m",
            at="2026-11-21T12:00:00+00:00",
            reason="a test",
        ),
    ]
    shown = printed(80, letter(encode(ENVELOPE), *settlements), whole=True)
    assert "replayed by ada at 2026-11-21T11:00:00+00:00; discarded by bob" in shown
    assert "a test" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize("width", [20, 50, 80, 200])
def test_an_id_can_be_copied_from_a_terminal_of_any_width(width: int) -> None:
    noise = letter(b"noise", error="[red]x\n\ty[/red]" + "z" * 1000)
    lines = printed(width, letter(encode(ENVELOPE)), noise).splitlines()
    an_id = "  platform.events.dead/0/1764000000123-4"
    assert lines.count(an_id) == 2
    assert len(lines) == 6
    assert all(len(line) <= width for line in lines if line != an_id)
    assert lines[0].startswith("2026-11-21 10:04:05  project  org.deleted  waiting"[: width - 1])
    assert lines[-1].startswith(r"  [red]x\n\ty[/red]z"[: width - 1])
