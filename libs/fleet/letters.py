"""How dead letters look: in a list, on a page, and as JSON; without the secrets in them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
from rich.text import Text

from common.events.dead_letters import Letter, identity
from common.events.origin import own_headers
from common.telemetry.masking import masked, masked_field

if TYPE_CHECKING:
    from rich.console import Console

# Characters of a value that are shown to people.
_MOST = 16_000


def summary(letter: Letter) -> dict[str, Any]:
    """What `events list --json` tells of a letter."""
    origin = letter.origin
    return {
        "id": letter.id,
        "state": letter.state,
        "topic": origin.topic,
        "partition": origin.partition,
        "token": origin.token,
        "group": origin.group,
        "attempts": origin.attempts,
        "when": letter.when,
        "error": masked(letter.error),
        "event_id": "",
        "event_type": "",
        **identity(letter.record.value),
        "replay_of": letter.replay_of,
        "settlements": [msgspec.to_builtins(each) for each in letter.settlements],
    }


def details(letter: Letter) -> dict[str, Any]:
    """What `events show --json` tells: the headers and the value, too; text where it is no map."""
    value, size = letter.record.value, len(letter.record.value)
    found = _parsed(value)
    return {
        **summary(letter),
        "key": letter.record.key,
        "headers": _headers(letter),
        "bytes": size,
        "value": _text(value) if found is None else masked(found),
    }


def listing(letters: list[Letter], console: Console) -> None:
    """Print a few lines for each; an id stays in one piece however narrow the terminal is."""
    for letter in letters:
        told = summary(letter)
        when = str(told["when"])[:19].replace("T", " ")
        facts = (when, told["group"], told["event_type"] or "not an envelope", told["state"])
        _line(console, "  ".join(_plain(fact) for fact in facts if fact))
        console.print(Text(f"  {_plain(letter.id)}", "bold"), soft_wrap=True)
        _line(console, f"  {_plain(told['error'])}")


def _line(console: Console, text: str) -> None:
    console.print(Text(text), no_wrap=True, overflow="ellipsis")


def page(letter: Letter, console: Console) -> None:
    """Print all of a letter for people."""
    told = details(letter)
    origin = letter.origin
    lines = {
        "id": letter.id,
        "state": _state(letter),
        "event": f"{told['event_type']} {told['event_id']}".strip() or "not an envelope",
        "came from": f"{origin.topic}/{origin.partition} {origin.token}",
        "failed in": f"{origin.group or '(unnamed)'}, attempt {origin.attempts}, {letter.when}",
        "error": told["error"],
        "replay of": letter.replay_of,
        "key": told["key"],
        **{f"  {name}": value for name, value in told["headers"].items()},
    }
    width = max(map(len, lines)) + 2
    text = "\n".join(
        f"{_plain(name):<{width}}{_plain(value)}" for name, value in lines.items() if value
    )
    value = told["value"]
    shown = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
    body = "\n".join(_plain(line) for line in shown[:_MOST].splitlines())
    console.print(Text(f"{text}\n\n{body}"), soft_wrap=True)
    if len(shown) > _MOST:
        console.print(f"… {told['bytes']:,} bytes in all; see --json.", markup=False)


def _state(letter: Letter) -> str:
    history = [
        f"{each.outcome} by {each.by} at {each.at}" + (f": {each.reason}" if each.reason else "")
        for each in letter.settlements
    ]
    return "; ".join(history) or letter.state


def _headers(letter: Letter) -> dict[str, str]:
    headers = own_headers(letter.record.headers)
    return {name: str(masked_field(name, value)) for name, value in headers.items()}


def _parsed(value: bytes) -> dict[Any, Any] | None:
    """A map in JSON or msgpack; None where it is neither."""
    parse = msgspec.json.decode if value[:1] == b"{" else msgspec.msgpack.decode
    try:
        found = parse(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _text(value: bytes) -> str:
    return str(masked(value.decode(errors="backslashreplace")))


def _plain(text: str) -> str:
    """Without what would move the cursor or colour the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
