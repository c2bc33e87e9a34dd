"""One hour of usage: a real trace of requests, or a generated one, made into usage events.

A trace (columns TIMESTAMP, ContextTokens, GeneratedTokens) says when requests came and how long
they were. What it lacks is assigned by a rule that depends on the seed alone: models, users,
projects, cache reads and both cache writes, tool calls, sessions, errors, a model without a price,
late events, repeats, and repeats with another body.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID, uuid5

Event = dict[str, Any]

_NAMESPACE = UUID("6f2c7d0e-5f0a-4c39-9a39-0c4f0d6f1b57")
# A repeat is sent at least this many batches after its first copy, so that which one is first
# does not depend on how many batches are under way at once.
REPEAT_DISTANCE = 12


class TraceInvalid(Exception):
    """The file is not a trace; the message names the line and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a trace: seconds since its first, tokens in, tokens out."""

    second: float
    context: int
    generated: int


@dataclass(frozen=True, slots=True)
class Model:
    """A model in the mix; ``reads`` and ``writes`` where its provider bills those of a cache."""

    name: str
    provider: str
    weight: int
    writes: bool = False
    reads: bool = True


MODELS = (
    Model("claude-sonnet-4-5", "anthropic", 38, writes=True),
    Model("claude-haiku-4-5", "anthropic", 27, writes=True),
    Model("claude-opus-4-8", "anthropic", 12, writes=True),
    Model("gpt-5-mini", "openai", 12),
    Model("gemini-2.5-flash", "google", 7),
    # Its tokens cost halves of a nano-dollar.
    Model("command-r7b", "cohere", 2, reads=False),
    # Runs in a company's own cluster: nobody lists a price for it.
    Model("acme-support-13b", "acme", 2),
)
TOOLS = (("github", "search_code"), ("github", "create_issue"), ("postgres", "query"))
ERRORS = ("rate_limited", "overloaded", "timeout")


@dataclass(frozen=True, slots=True)
class Shares:
    """How often the rule adds what a trace lacks, as shares of its requests."""

    cached: float = 0.45
    long_prompt: float = 0.003
    error: float = 0.02
    tool_call: float = 0.08
    session: float = 0.01
    client_cost: float = 0.02
    held_back: float = 0.03
    old: float = 0.003
    repeat: float = 0.02
    conflict: float = 0.004


def read_trace(path: Path) -> list[Request]:
    """The requests of a CSV file with the columns TIMESTAMP, ContextTokens, GeneratedTokens.

    Raises:
        TraceInvalid: a column is missing, or a line does not hold a time and two whole numbers.
    """
    found: list[tuple[datetime, int, int]] = []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = {"TIMESTAMP", "ContextTokens", "GeneratedTokens"} - set(reader.fieldnames or ())
        if missing:
            raise TraceInvalid(f"{path.name} lacks the columns {', '.join(sorted(missing))}")
        for row in reader:
            try:
                # Seven decimals: one more than Python reads.
                at = datetime.fromisoformat(row["TIMESTAMP"][:26]).replace(tzinfo=UTC)
                tokens = int(row["ContextTokens"]), int(row["GeneratedTokens"])
            except (TypeError, ValueError) as error:
                raise TraceInvalid(f"{path.name}, line {reader.line_num}: {error}") from error
            if min(tokens) < 0:
                raise TraceInvalid(f"{path.name}, line {reader.line_num}: negative tokens")
            found.append((at, *tokens))
    if not found:
        raise TraceInvalid(f"{path.name} holds no requests")
    first = min(at for at, _, _ in found)
    return [Request((at - first).total_seconds(), c, g) for at, c, g in sorted(found)]


def generate(seed: int, count: int = 20_000, hours: float = 1.0) -> list[Request]:
    """A workload in the likeness of a chat service.

    Arrivals are a Poisson process whose rate swings by 40 % over the span. Prompts mix short
    questions (log-normal, median 400 tokens, sigma 0.5), conversations (median 1,100, sigma 0.4)
    and documents (median 3,500, sigma 0.5) as 4 : 5 : 1. Answers mix short (median 95, sigma 0.5)
    and long (median 400, sigma 0.3) ones as 3 : 1, at most 1,000 tokens.
    """
    rng = Random(seed)
    span = hours * 3600
    found: list[Request] = []
    second = 0.0
    for _ in range(count):
        rate = count / span * (1 + 0.4 * math.sin(2 * math.pi * second / span))
        second += rng.expovariate(rate)
        median, sigma = rng.choices(((400, 0.5), (1100, 0.4), (3500, 0.5)), (4, 5, 1))[0]
        context = max(2, round(rng.lognormvariate(math.log(median), sigma)))
        median, sigma = rng.choices(((95, 0.5), (400, 0.3)), (3, 1))[0]
        generated = min(1000, max(1, round(rng.lognormvariate(math.log(median), sigma))))
        found.append(Request(second % span, context, generated))
    return sorted(found, key=lambda r: r.second)


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests made into batches of events; the same arguments make the same batches.

    Attributes:
        end: the time of the newest request; the trace is shifted so that it ends there.
        projects: ids of the projects the events belong to, the first ones used more.
    """

    requests: Sequence[Request]
    projects: Sequence[str]
    end: datetime
    seed: int = 1
    users: int = 40
    shares: Shares = field(default_factory=Shares)

    def events(self) -> list[Event]:
        """Every event once, in the order of sending."""
        span = max(r.second for r in self.requests)
        start = self.end - timedelta(seconds=span)
        timed: list[tuple[float, int, Event]] = []
        for index, request in enumerate(self.requests):
            rng = Random(f"{self.seed}:{index}")
            at = start + timedelta(seconds=request.second)
            for event in self._events(rng, index, request, at):
                sent = request.second
                if rng.random() < self.shares.held_back:
                    sent += rng.uniform(60, 1800)
                timed.append((sent, len(timed), event))
        return [event for _, _, event in sorted(timed, key=lambda t: t[:2])]

    def batches(self, size: int = 250) -> list[list[Event]]:
        """The events with their repeats, in batches of about ``size``."""
        events = self.events()
        batches = [events[i : i + size] for i in range(0, len(events), size)]
        rng = Random(f"{self.seed}:repeats")
        firsts = list(batches)
        for number, batch in enumerate(firsts):
            for event in batch:
                kind = rng.random()
                if kind >= self.shares.repeat + self.shares.conflict:
                    continue
                later = number + REPEAT_DISTANCE + rng.randrange(8)
                while len(batches) <= later:
                    batches.append([])
                again = dict(event)
                if kind < self.shares.conflict:
                    again["output_tokens"] = event.get("output_tokens", 0) + 1
                batches[later] = [*batches[later], again]
        return [batch for batch in batches if batch]

    def _events(self, rng: Random, index: int, request: Request, at: datetime) -> Iterator[Event]:
        if rng.random() < self.shares.old:
            at -= timedelta(seconds=rng.uniform(3600, 5 * 3600))
        common: Event = {
            "project_id": rng.choices(self.projects, range(2 * len(self.projects), 0, -2))[0],
            "user_id": f"user-{min(int(rng.paretovariate(0.8)), self.users):02d}",
            "session_id": f"session-{self.seed}-{index // 12}",
        }
        call = {**common, **self._call(rng, request)}
        yield self._stamp(call, at, index, "call")
        if rng.random() < self.shares.tool_call:
            server, tool = TOOLS[rng.randrange(len(TOOLS))]
            yield self._stamp(
                {
                    **common,
                    "event_type": "mcp_tool",
                    "mcp_server": server,
                    "tool": tool,
                    "latency_ms": round(rng.uniform(5, 900), 3),
                    "status": "error" if rng.random() < self.shares.error else "ok",
                },
                at + timedelta(milliseconds=rng.randrange(1, 900)),
                index,
                "tool",
            )
        if rng.random() < self.shares.session:
            yield self._stamp({**common, "event_type": "session"}, at, index, "session")

    def _call(self, rng: Random, request: Request) -> Event:
        model = rng.choices(MODELS, [m.weight for m in MODELS])[0]
        context = request.context
        if rng.random() < self.shares.long_prompt:
            context += 200_000
        call: Event = {
            "event_type": "api_call",
            "model": model.name,
            "provider": model.provider,
            "latency_ms": round(180 + 14.5 * request.generated * rng.uniform(0.7, 1.6), 3),
            "request_id": f"req_{rng.getrandbits(64):016x}",
        }
        tokens = {"output_tokens": request.generated}
        if model.reads and rng.random() < self.shares.cached:
            tokens["cache_read_tokens"] = rng.randrange(context + 1)
            if model.writes:
                rest = context - tokens["cache_read_tokens"]
                tokens["cache_write_5m_tokens"] = rng.randrange(rest + 1) // 2
                tokens["cache_write_1h_tokens"] = rng.randrange(rest + 1) // 4
        tokens["input_tokens"] = context - sum(
            n for name, n in tokens.items() if name.startswith("cache_")
        )
        if rng.random() < self.shares.error:
            tokens["output_tokens"] = 0
            call |= {"status": "error", "error_type": ERRORS[rng.randrange(len(ERRORS))]}
        if rng.random() < self.shares.client_cost:
            call["cost_usd"] = f"0.{rng.randrange(10**6):06d}"
        return call | tokens

    def _stamp(self, event: Event, at: datetime, index: int, kind: str) -> Event:
        name = f"{self.seed}:{self.end.isoformat()}:{index}:{kind}"
        return {
            "event_id": str(uuid5(_NAMESPACE, name)),
            "timestamp": at.astimezone(UTC).isoformat().replace("+00:00", "Z"),
            **event,
        }
