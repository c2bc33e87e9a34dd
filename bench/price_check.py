"""Our base prices against a second, independent source: litellm's list of model prices.

``pip download --no-deps litellm`` brings the list, ``model_prices_and_context_window_backup.json``
in the wheel; ``uv run python -m bench.price_check FILE`` prints every difference, in Markdown.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from services.usage_tracker.domain.judging import microseconds
from services.usage_tracker.domain.pricing import NANO, Price, PriceBook

# Their names of the sellers that both have.
SELLERS: Mapping[str, str] = {
    **{n: n for n in ("anthropic", "openai", "mistral", "deepseek", "groq", "perplexity")},
    **{n: n for n in ("azure", "novita", "cerebras", "zai", "minimax", "databricks", "meta")},
    **{n: n for n in ("cloudflare", "baseten", "ovhcloud")},
    "bedrock": "aws",
    "bedrock_converse": "aws",
    "cohere_chat": "cohere",
    "fireworks_ai": "fireworks",
    "gemini": "google",
    "github_copilot": "github-copilot",
    "moonshot": "moonshotai",
    "together_ai": "together",
    "xai": "x-ai",
}
TIERS: Mapping[str | None, str] = {
    None: "",
    "batch": "_batches",
    "priority": "_priority",
    "flex": "_flex",
}
KINDS: Mapping[str, str] = {
    "input": "input_cost_per_token",
    "output": "output_cost_per_token",
    "cache_read": "cache_read_input_token_cost",
    "cache_write_5m": "cache_creation_input_token_cost",
    "cache_write_1h": "cache_creation_input_token_cost_above_1hr",
}
LENGTHS = (1, 128_001, 200_001, 256_001, 272_001)
# Sellers whose names of models begin with who made them.
_WITH_MAKERS = frozenset({"together", "novita", "fireworks", "cloudflare", "baseten", "groq"})
# What the second source writes as a float is exact to this part.
_FLOAT = Decimal("1e-6")
_ROUNDED = Decimal("0.011")
_YEARS = 3


@dataclass(frozen=True, slots=True)
class Difference:
    """Nano-dollars for a million tokens; None where a source has no price."""

    seller: str
    model: str
    tier: str | None
    kind: str
    length: int
    ours: int | None
    theirs: int | None
    reason: str


class Check:
    """Compares model by model, at one time.

    Attributes:
        counts: prices that agree or differ, models that only one source knows.
    """

    def __init__(self, book: PriceBook, at: datetime) -> None:
        self._book = book
        self._at = at
        self.counts: Counter[str] = Counter()

    def differences(self, listed: Mapping[str, Mapping[str, Any]]) -> Iterator[Difference]:
        """Every price of a model that both know and that is not the same."""
        for name, entry in listed.items():
            seller = SELLERS.get(str(entry.get("litellm_provider")))
            if seller is None or entry.get("input_cost_per_token") is None:
                continue
            place, model = _place_and_model(name, seller)
            for tier, suffix in TIERS.items():
                if entry.get(f"input_cost_per_token{suffix}") is not None:
                    yield from self._of(seller, place, model, tier, entry)

    def _of(
        self, seller: str, place: str, model: str, tier: str | None, entry: Mapping[str, Any]
    ) -> Iterator[Difference]:
        price = self._book.price(model, seller, tier, microseconds(self._at))
        what = "models" if tier is None else f"models with {tier} prices"
        if price is None:
            self.counts[f"{what} that only they price"] += 1
            return
        self.counts[f"{what} that both price"] += 1
        for position, kind in enumerate(KINDS):
            told: set[tuple[int | None, int | None]] = set()
            for length in LENGTHS:
                rate = price.rates[position]
                ours = None if rate is None else rate.at(length)
                theirs = _theirs(entry, kind, tier, length)
                self.counts["prices compared"] += length == 1
                if _same(ours, theirs) or (ours, theirs) in told:
                    continue
                told.add((ours, theirs))
                self.counts["differences"] += 1
                reason = (
                    "theirs is of one region, of which our source knows nothing"
                    if place
                    else self._reason(price, seller, model, tier, position, length, theirs)
                )
                named = f"{place}/{model}" if place else model
                yield Difference(seller, named, tier, kind, length, ours, theirs, reason)

    def _reason(
        self,
        price: Price,
        seller: str,
        model: str,
        tier: str | None,
        position: int,
        length: int,
        theirs: int | None,
    ) -> str:
        rate = price.rates[position]
        matched = price.version.partition(" ")[2].split(" ")[0].partition("/")[2]
        if theirs is None:
            return self._of_standard(price, seller, model, tier, position)
        if rate is None:
            return "we have no price of this kind: events with such tokens are unpriced"
        if self._is_of_another_time(seller, model, tier, position, length, theirs):
            return "theirs is our price of another time"
        if length > 1 and _same(rate.base, theirs):
            return "we have a step there, they have none"
        if length > 1 and not rate.steps:
            return "they have a step there, we have none"
        if _same(rate.at(length), theirs, _ROUNDED):
            return "one of the two is rounded"
        if _plain(matched) != _plain(model):
            return f"we take it for `{matched}`"
        if _same(rate.at(length), 2 * theirs) or _same(2 * rate.at(length), theirs):
            return "one is twice the other: a discount or a tier that one takes for the price"
        return "another figure for the same model"

    def _of_standard(
        self, price: Price, seller: str, model: str, tier: str | None, position: int
    ) -> str:
        standard = self._book.price(model, seller, None, microseconds(self._at))
        if tier and standard is not None and standard.rates[position] == price.rates[position]:
            return "they list none for the tier; our source changes other kinds, so this one stays"
        return "they list no price of this kind"

    def _is_of_another_time(
        self, seller: str, model: str, tier: str | None, position: int, length: int, theirs: int
    ) -> bool:
        times = [self._at - timedelta(days=30 * n) for n in range(12 * _YEARS)]
        times += [self._at + timedelta(hours=n) for n in range(24)]
        for time in times:
            price = self._book.price(model, seller, tier, microseconds(time))
            rate = price.rates[position] if price is not None else None
            if rate is not None and _same(rate.at(length), theirs):
                return True
        return False


def _place_and_model(name: str, seller: str) -> tuple[str, str]:
    """Where a price holds ("" where everywhere), and of which model."""
    parts = name.split("/")
    if seller == "aws":
        return "/".join(parts[1:-1] if parts[0] == "bedrock" else parts[:-1]), parts[-1]
    if seller == "azure":
        return "/".join(parts[1:-1]), parts[-1]
    rest = "/".join(parts[1:])
    return "", rest if seller in _WITH_MAKERS else parts[-1]


def _theirs(entry: Mapping[str, Any], kind: str, tier: str | None, length: int) -> int | None:
    """The price of the longest step that is exceeded."""
    suffix, name = TIERS[tier], KINDS[kind]
    found = entry.get(f"{name}{suffix}")
    if found is None:
        return None
    for over in (128, 200, 256, 272):
        step = entry.get(f"{name}_above_{over}k_tokens{suffix}")
        if step is not None and length > over * 1_000:
            found = step
    return int((Decimal(repr(float(found))) * NANO * 1_000_000).to_integral_value())


def _same(ours: int | None, theirs: int | None, within: Decimal = _FLOAT) -> bool:
    # A kind that costs nothing and one that is not listed are the same to a list of floats.
    if not ours or not theirs:
        return not ours and not theirs
    return abs(ours - theirs) <= within * max(ours, theirs)


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def report(check: Check, found: list[Difference]) -> Iterator[str]:
    """The counts, then every difference under its reason, those of a model in one line."""
    for what, count in sorted(check.counts.items()):
        yield f"- {what}: {count:,}"
    by_reason: defaultdict[str, list[Difference]] = defaultdict(list)
    for one in found:
        by_reason[one.reason.partition(" `")[0]].append(one)
    for reason, some in sorted(by_reason.items(), key=lambda item: -len(item[1])):
        yield f"\n## {len(some):,}: {reason}\n"
        yield from sorted(_lines(some))


def _lines(some: list[Difference]) -> Iterator[str]:
    of_models: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for one in some:
        model = one.model if "`" not in one.reason else f"{one.model}, {one.reason}"
        tier = f"{one.tier} " if one.tier else ""
        over = f" from {one.length:,}" if one.length > 1 else ""
        prices = f"{_usd(one.ours)} / {_usd(one.theirs)}"
        of_models[one.seller, model].append(f"{tier}{one.kind}{over} {prices}")
    for (seller, model), told in of_models.items():
        # They list some under two names.
        yield f"- {seller}: {model}: {'; '.join(dict.fromkeys(told))}"


def _usd(nano: int | None) -> str:
    return "none" if nano is None else f"{(Decimal(nano) / NANO).normalize():f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--at", type=datetime.fromisoformat, default=datetime.now(UTC))
    given = parser.parse_args()
    check = Check(PriceBook.bundled(), given.at.replace(tzinfo=UTC))
    found = list(check.differences(json.loads(given.file.read_text())))
    print("\n".join(report(check, found)))


if __name__ == "__main__":
    main()
