from __future__ import annotations

import json

import pytest

from common.errors import Invalid, PayloadTooLarge
from services.usage_tracker.domain.events import (
    MAX_EVENTS,
    Event,
    Rejection,
    read_batch,
    read_one,
)

pytestmark = pytest.mark.unit

GOOD = '{"event_id":"018f9d0e-0000-7000-8000-000000000001","event_type":"session"}'


def verdicts(body: bytes) -> list[tuple[str, str | None] | None]:
    """Code and field of each rejection, None for each event that was read."""
    return [
        (found.code, found.field) if isinstance(found, Rejection) else None
        for found in read_batch(body)
    ]


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ('{"colour":"red"}', ("unknown_field", "colour")),
        ('{"input_tokens":-1}', ("invalid_value", "input_tokens")),
        ('{"input_tokens":1.0}', ("invalid_value", "input_tokens")),
        ('{"input_tokens":1e3}', ("invalid_value", "input_tokens")),
        ('{"input_tokens":true}', ("invalid_value", "input_tokens")),
        ('{"input_tokens":"5"}', ("invalid_value", "input_tokens")),
        ('{"output_tokens":9007199254740993}', ("invalid_value", "output_tokens")),
        ('{"output_tokens":99999999999999999999999999}', ("invalid_value", "output_tokens")),
        ('{"model":""}', ("invalid_value", "model")),
        (f'{{"model":"{"x" * 201}"}}', ("invalid_value", "model")),
        ('{"model":5}', ("invalid_value", "model")),
        ('{"model":"a\\u0000b"}', ("invalid_value", "model")),
        ('{"model":"a\x00b"}', ("invalid_json", None)),
        ('{"model":"\\ud83d"}', ("invalid_json", None)),
        ('{"event_type":"chat"}', ("invalid_value", "event_type")),
        ('{"status":"fine"}', ("invalid_value", "status")),
        ('{"timestamp":"yesterday"}', ("invalid_value", "timestamp")),
        ('{"timestamp":"2026-11-21T10:00:00"}', ("invalid_value", "timestamp")),
        ('{"timestamp":1700000000}', ("invalid_value", "timestamp")),
        ('{"metadata":[]}', ("invalid_value", "metadata")),
        ('{"metadata":{"a":1e400}}', ("invalid_value", "metadata")),
        ('{"metadata":{"a":["\\u0000"]}}', ("invalid_value", "metadata")),
        ('{"metadata":{"\\u0000":1}}', ("invalid_value", "metadata")),
        (f'{{"metadata":{"[" * 5000}{"]" * 5000}}}', ("invalid_value", "metadata")),
        (
            f'{{"metadata":{{"a":{"[" * 5000}{"]" * 5000}}}}}',
            ("invalid_value", "metadata"),
        ),
        ('{"input_tokens":1e}', ("invalid_json", None)),
        ("{'model':'x'}", ("invalid_json", None)),
        ("[]", ("invalid_value", None)),
        ("null", ("invalid_value", None)),
        ("7", ("invalid_value", None)),
        ("", ("invalid_json", None)),
    ],
)
def test_one_bad_event_is_named_and_spoils_no_other(
    event: str, expected: tuple[str, str | None]
) -> None:
    body = f'{{"events":[{GOOD},{event},{GOOD}]}}'.encode()

    assert verdicts(body) == [None, expected, None]


def test_bytes_that_are_not_utf8_spoil_only_their_event() -> None:
    body = b'{"events":[{"model":"\xff"},' + GOOD.encode() + b"]}"

    assert verdicts(body) == [("invalid_json", None), None]


def test_brackets_and_quotes_in_texts_do_not_mislead_the_reader_of_broken_batches() -> None:
    tricky = json.dumps({"model": 'a],[{"\\', "tool": "}]}"})

    assert verdicts(f'{{"events":[{tricky},{{"model":"\\ud83d"}},{tricky}]}}'.encode()) == [
        None,
        ("invalid_json", None),
        None,
    ]


def test_a_backslash_before_u0000_is_text_and_not_the_character_nul() -> None:
    (event,) = read_batch(b'{"events":[{"model":"a\\\\u0000"}]}')

    assert isinstance(event, Event)
    assert event.model == "a\\u0000"


def test_metadata_are_searched_for_nul_as_deep_as_they_are_read() -> None:
    for depth in (10, 300, 600, 900, 1200):
        deep = "[" * depth + '"\\u0000"' + "]" * depth

        assert verdicts(f'{{"events":[{{"metadata":{{"a":{deep}}}}}]}}'.encode()) == [
            ("invalid_value", "metadata")
        ]


def test_null_means_absent() -> None:
    (event,) = read_batch(
        b'{"events":[{"model":null,"input_tokens":null,"latency_ms":null,"metadata":null}]}'
    )

    assert isinstance(event, Event)
    assert (event.model, event.input_tokens, bytes(event.latency_ms)) == (None, None, b"null")


@pytest.mark.parametrize(
    ("body", "code", "pointer"),
    [
        (b"", "invalid_json", ""),
        (b"{", "invalid_json", ""),
        (b'{"events":[{}', "invalid_json", ""),
        (b'{"events":[{}]] }', "invalid_json", ""),
        (b'{"events":["unclosed]}', "invalid_json", ""),
        (b'\xef\xbb\xbf{"events":[]}', "invalid_json", ""),
        (b"[" * 100_000, "invalid_value", ""),
        (b"[]", "invalid_value", ""),
        (b"null", "invalid_value", ""),
        (b"{}", "missing_field", "/events"),
        (b'{"events":[]}', "missing_field", "/events"),
        (b'{"events":{}}', "invalid_value", "/events"),
        (b'{"events":[{}],"more":1}', "unknown_field", "/more"),
    ],
)
def test_a_body_that_is_no_batch_is_refused_as_a_whole(
    body: bytes, code: str, pointer: str
) -> None:
    with pytest.raises(Invalid) as refused:
        read_batch(body)

    assert refused.value.code == code
    assert [(f.pointer, f.code) for f in refused.value.fields] == [(pointer, code)]


@pytest.mark.parametrize("event", ["{}", '{"model":"\\ud83d"}', '{"colour":1}'])
def test_more_events_than_a_batch_may_hold_are_too_large_however_they_are_written(
    event: str,
) -> None:
    body = f'{{"events":[{",".join([event] * (MAX_EVENTS + 1))}]}}'.encode()

    with pytest.raises(PayloadTooLarge):
        read_batch(body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"events":[' + b"[" * 3_000_000,
        b'{"events":["' + b'\\"' * 3_000_000,
        b'{"events":[' + b'"' * 3_000_001,
        b'{"events":[' + b"{}" * 3_000_000 + b"]}",
    ],
)
def test_a_hostile_body_is_refused_without_reading_it_more_than_once(body: bytes) -> None:
    with pytest.raises(Invalid):
        read_batch(body)


def test_a_single_event_is_read_as_one_of_a_batch_is() -> None:
    assert isinstance(read_one(GOOD.encode()), Event)
    assert read_one(b'{"colour":1}') == Rejection("unknown_field", "colour", "is not a known field")
    assert read_one(b"{") == Rejection("invalid_json", None, "is not valid JSON")
