"""The books of one organization: every event that was acknowledged, and what it must have cost."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.chaos.load import NEWEST, OLDEST, Event
from tests.e2e.oracle import DIMENSIONS, KINDS, NANO, Oracle, cost_of

# Tokens of each kind, and nano-dollars; None without a model or without a price.
Stored = tuple[int | None, ...]
# The start of a minute, and each of ``DIMENSIONS``.
Window = tuple[str | None, ...]
MEASURES = ("events", "errors", "unpriced_events", *KINDS, "cost_nano")

_REFUSALS = {"too_old": OLDEST, "in_future": NEWEST}
# How far clocks of one machine, and a request under way, may be apart.
_CLOSE = timedelta(seconds=90)


class WrongAnswer(Exception):
    """The platform took what it must refuse, or refused what it must take."""


class Books:
    """What was sent and how it was answered.

    An event whose request got no answer may be there or not, until one of its copies is
    acknowledged. All keep being sent until they are answered; what is refused then because it has
    grown too old since an earlier copy stays in doubt.

    Attributes:
        oracle: what was acknowledged, the first copy of each id.
        repeats: acknowledged copies beyond the first.
        retries: requests that got no answer, or one that asks to come again.
        refused: ids that were answered once, with no: they must never count.
        rebatched: events that went again in another batch than before.
        accepted_at: the time of the last acknowledgement, as the platform told it.
    """

    def __init__(self, org_id: str, api_key_id: str) -> None:
        self.org_id = org_id
        self.api_key_id = api_key_id
        self.oracle = Oracle(org_id, api_key_id)
        self.repeats = 0
        self.retries = 0
        self.rebatched = 0
        self.refused: set[str] = set()
        self.accepted_at = datetime.now(UTC)
        self._tries: Counter[str] = Counter()
        self._unanswered: dict[str, Event] = {}
        self._stored: dict[str, Stored] = {}
        self._windows: dict[str, Window] = {}

    @property
    def acknowledged(self) -> Mapping[str, Mapping[str, Any]]:
        return self.oracle.events

    @property
    def in_doubt(self) -> Set[str]:
        """Ids that may be there or not."""
        return self._unanswered.keys()

    def attempt(self, batch: Sequence[Event], sent_at: datetime) -> None:
        """Note what is about to be sent."""
        events = {event["event_id"]: event for event in batch}
        for name in events.keys() - self.acknowledged.keys():
            self._tries[name] += _may_be_taken(events[name], sent_at)
            self._unanswered.setdefault(name, events[name])

    def answered(
        self, batch: Sequence[Event], answer: Mapping[str, Any], sent_at: datetime
    ) -> None:
        """Enter an answer: each event is acknowledged, or refused with a reason.

        Raises:
            WrongAnswer: an event within the window was refused, or one beyond it taken.
        """
        refused = {item["index"]: item["code"] for item in answer["rejected"]}
        for index, event in enumerate(batch):
            if index in refused:
                self._refuse(event, refused[index], sent_at)
            else:
                self._acknowledge(event, sent_at)
        if "accepted_at" in answer:
            at = datetime.fromisoformat(answer["accepted_at"])
            self.accepted_at = max(self.accepted_at, at)

    def stored(self, name: str) -> Stored:
        """What the raw row of an acknowledged or doubtful event must hold."""
        found = self._stored.get(name)
        if found is None:
            found = self._stored[name] = _as_stored(self._event(name))
        return found

    def windows(self, names: Set[str]) -> dict[Window, list[int]]:
        """The sums of ``MEASURES`` by window of exactly these events."""
        found: dict[Window, list[int]] = defaultdict(lambda: [0] * len(MEASURES))
        for name in names:
            event, (*tokens, cost) = self._event(name), self.stored(name)
            model = "model" in event
            error = event.get("status") == "error"
            added = (1, int(error), int(model and cost is None), *tokens, cost or 0)
            sums = found[self._window(name, event)]
            for index, amount in enumerate(added):
                sums[index] += amount or 0
        return dict(found)

    def oracle_of(self, names: Set[str]) -> Oracle:
        """What must be answered about exactly these events."""
        found = Oracle(self.org_id, self.api_key_id)
        found.acknowledge(self._event(name) for name in names)
        return found

    def _event(self, name: str) -> Mapping[str, Any]:
        return self.acknowledged.get(name) or self._unanswered[name]

    def _window(self, name: str, event: Mapping[str, Any]) -> Window:
        found = self._windows.get(name)
        if found is None:
            labels = self.oracle.labels(event)
            found = (self.oracle.unit(event, "minute"), *(labels[d] for d in DIMENSIONS))
            self._windows[name] = found
        return found

    def _acknowledge(self, event: Event, sent_at: datetime) -> None:
        name = event["event_id"]
        if not _may_be_taken(event, sent_at):
            raise WrongAnswer(f"{name} of {event['timestamp']} was taken")
        self.repeats += name in self.acknowledged
        self.oracle.acknowledge([event])
        self._unanswered.pop(name, None)

    def _refuse(self, event: Event, code: str, sent_at: datetime) -> None:
        name = event["event_id"]
        age = sent_at - datetime.fromisoformat(event["timestamp"])
        beyond = age if code == "too_old" else -age
        if code not in _REFUSALS or beyond < _REFUSALS[code] - _CLOSE:
            raise WrongAnswer(f"{name} of {event['timestamp']} was refused: {code}")
        earlier = self._tries[name] - _may_be_taken(event, sent_at)
        if not earlier and self._unanswered.pop(name, None) is not None:
            self.refused.add(name)


def _may_be_taken(event: Mapping[str, Any], sent_at: datetime) -> bool:
    """Whether the platform may take it: what is beyond the edges when it is sent stays so."""
    age = sent_at - datetime.fromisoformat(event["timestamp"])
    return -NEWEST - _CLOSE <= age <= OLDEST


def _as_stored(event: Mapping[str, Any]) -> Stored:
    costs = cost_of(event) if "model" in event else None
    nano = None if costs is None else int(sum(costs) / NANO)
    return (*(event.get(kind, 0) for kind in KINDS), nano)
