"""What the judge of the chaos rounds says of what a ledger holds, and that it is no kin of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.books import Books, WrongAnswer
from tests.chaos.ledger import Findings, Held, differing, judged
from tests.chaos.load import NEWEST, OLDEST, Event, Source

pytestmark = pytest.mark.unit

ORG, KEY = "018f9d0e-0000-7000-8000-000000000001", "018f9d0e-0000-7000-8000-000000000002"
PROJECTS = ["018f9d0e-0000-7000-8000-000000000003"]
PLATFORM = ("common", "fleet", "mindweave", "services")
ROOT = Path(__file__).resolve().parents[2]
NOW = datetime.now(UTC)
SECOND = timedelta(seconds=1)


def test_the_checker_shares_no_code_with_the_platform() -> None:
    program = (
        "import sys, tests.chaos.ledger, tests.chaos.sending, tests.e2e.harms;"
        f"print(sorted(n for n in sys.modules if n.partition('.')[0] in {PLATFORM}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True
    )

    assert done.stdout == "[]\n"


def events(count: int) -> list[Event]:
    """Of now, all with a model that has a price."""
    made = Source("judging", PROJECTS).fresh(count)
    own = {"event_type": "api_call", "model": "claude-haiku-4-5", "timestamp": at(timedelta())}
    return [{**event, **own, "input_tokens": 1000} for event in made]


def at(age: timedelta) -> str:
    return (NOW - age).isoformat()


def answer(books: Books, batch: Sequence[Event], rejected: Sequence[dict[str, Any]] = ()) -> None:
    books.attempt(batch, NOW)
    books.answered(batch, {"rejected": rejected, "accepted_at": NOW.isoformat()}, NOW)


@pytest.fixture
def books() -> Books:
    return Books(ORG, KEY)


def held_of(books: Books) -> Held:
    """All that was acknowledged, as it must be."""
    names = books.acknowledged.keys()
    rows = [(name, *books.stored(name)) for name in sorted(names)]
    return Held(rows, books.windows(names))


def test_what_is_as_it_must_be_is_clean(books: Books) -> None:
    answer(books, events(20))

    assert len(books.acknowledged) == 20
    assert judged(held_of(books), books) == Findings()


def test_a_lost_event_is_noticed(books: Books) -> None:
    answer(books, events(5))
    there = held_of(books)

    found = judged(replace(there, rows=there.rows[1:]), books)

    assert (found.lost, found.doubled, found.clean) == (1, 0, False)


def test_a_doubled_event_is_noticed(books: Books) -> None:
    answer(books, events(5))
    there = held_of(books)

    found = judged(replace(there, rows=[*there.rows, there.rows[0]]), books)

    assert (found.lost, found.doubled, found.clean) == (0, 1, False)


def test_a_nano_dollar_is_noticed_in_a_row_and_in_a_window(books: Books) -> None:
    answer(books, events(5))
    there = held_of(books)
    (*row, cost), *rows = there.rows
    ((window, (*sums, nano)), *_) = there.windows.items()

    assert judged(replace(there, rows=[(*row, cost + 1), *rows]), books).nano_off == 1
    more = {**there.windows, window: (*sums, nano - 1)}
    assert judged(replace(there, windows=more), books).nano_off == 1


def test_a_window_that_nobody_sent_is_noticed_though_it_costs_nothing(books: Books) -> None:
    answer(books, events(5))
    there = held_of(books)
    ((window, sums), *_) = there.windows.items()
    other = {**there.windows, ("2026-01-01T00:00:00Z", *window[1:]): (1, *[0] * (len(sums) - 1))}

    found = judged(replace(there, windows=other), books)

    assert (found.nano_off, len(found.others)) == (0, 1)


def test_what_got_no_answer_may_be_there_once_or_not_at_all(books: Books) -> None:
    first, second = events(2)
    answer(books, [first])
    books.attempt([second], NOW)
    without = held_of(books)
    row = (second["event_id"], *books.stored(second["event_id"]))
    both = {first["event_id"], second["event_id"]}
    with_it = Held([*without.rows, row], books.windows(both))

    assert judged(without, books).clean
    assert judged(with_it, books).clean
    assert judged(replace(with_it, rows=[*with_it.rows, row]), books).doubled == 1
    assert not judged(replace(with_it, windows=without.windows), books).clean


def test_the_first_copy_that_was_acknowledged_is_what_counts(books: Books) -> None:
    source = Source("copies", PROJECTS)
    (event,) = events(1)
    answer(books, [event])
    answer(books, [source.conflicting(event), event])

    assert (books.repeats, books.oracle.conflicts) == (2, 1)
    assert books.stored(event["event_id"])[1] == event["output_tokens"]


def test_what_was_refused_must_not_be_there(books: Books) -> None:
    (event,) = events(1)
    old = {**event, "timestamp": at(OLDEST + SECOND)}
    # A copy without an answer changes nothing: it was too old already.
    books.attempt([old], NOW)
    answer(books, [old], [{"index": 0, "code": "too_old"}])

    found = judged(Held([(old["event_id"], 1, 1, 0, 0, 0, 5)], {}), books)

    assert (found.doubled, books.in_doubt) == (1, set())


def test_what_has_grown_too_old_since_a_copy_without_an_answer_is_in_doubt(books: Books) -> None:
    (event,) = events(1)
    edge = {**event, "timestamp": at(OLDEST - SECOND)}
    books.attempt([edge], NOW)
    later = NOW + 2 * SECOND
    books.attempt([edge], later)
    books.answered([edge], {"rejected": [{"index": 0, "code": "too_old"}]}, later)

    assert books.in_doubt == {edge["event_id"]}


@pytest.mark.parametrize(
    ("age", "rejected"),
    [
        (OLDEST + SECOND, []),
        (-NEWEST - timedelta(minutes=10), []),
        (timedelta(days=6), [{"index": 0, "code": "too_old"}]),
        (timedelta(), [{"index": 0, "code": "in_future"}]),
        (timedelta(), [{"index": 0, "code": "invalid_value"}]),
    ],
)
def test_a_wrong_judgement_of_an_events_age_is_noticed(
    books: Books, age: timedelta, rejected: list[dict[str, Any]]
) -> None:
    (event,) = events(1)

    with pytest.raises(WrongAnswer):
        answer(books, [{**event, "timestamp": at(age)}], rejected)


def test_an_answer_that_is_off_is_noticed() -> None:
    assert differing({"hour": (2, 7)}, {"hour": (2, 7)}).clean
    assert differing({"hour": (2, 7)}, {"hour": (2, 9)}).nano_off == 2
    assert not differing({}, {"hour": (2, 0)}).clean
    assert not differing({"hour": (1, 0), "other": (1, 0)}, {"hour": (1, 0)}).clean
