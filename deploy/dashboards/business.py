"""What is spent, on what, and by how many."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.dashboards.shapes import EVERY, Panel, Query, dashboard, graph, number, rate, share

_COST = "mindweave_cost_usd_total"
_TOKENS = "mindweave_tokens_total"
_CALLS = "mindweave_rpc_server_duration_seconds_count"


def _done(method: str) -> str:
    return f'sum(increase({_CALLS}{{method="{method}", code="OK"}}[$__range])) or vector(0)'


def _made(title: str, method: str) -> Panel:
    return number(title, "In the time shown.", "short", Query(_done(method), title), width=6)


def made() -> Dashboard:
    written, read = (rate(_TOKENS, f'kind{sign}"output"') for sign in ("=", "!="))
    spend = [
        number(
            "Spent",
            "By all organizations in the time shown, as events were priced when they were counted;"
            " invoices are made from the ledger, which holds every correction.",
            "currencyUSD",
            Query(f"sum(increase({_COST}[$__range]))", "USD"),
            width=6,
        ),
        number(
            "A month at this rate",
            "What the last hour would come to in 30 days.",
            "currencyUSD",
            Query(f"sum(rate({_COST}[1h])) * 3600 * 24 * 30", "USD"),
            width=6,
        ),
        number(
            "Events",
            "Stored in the time shown.",
            "short",
            Query(
                'sum(increase(mindweave_events_counted_total{outcome="stored"}[$__range]))',
                "events",
            ),
            width=6,
        ),
        number(
            "Tokens",
            "Of all kinds in the time shown.",
            "short",
            Query(f"sum(increase({_TOKENS}[$__range]))", "tokens"),
            width=6,
        ),
        graph(
            "Spend by model",
            "USD an hour of the ten most expensive models; those without a price, and those beyond"
            " the fifty that a worker tells apart, are other.",
            "currencyUSD",
            Query(f"topk(10, 3600 * {rate(_COST, by='model')})", "{{model}}"),
            width=12,
        ),
        graph(
            "Tokens by model",
            "A second, of the ten busiest models.",
            "short",
            Query(f"topk(10, {rate(_TOKENS, by='model')})", "{{model}}"),
            width=12,
        ),
        graph(
            "Tokens by kind",
            "A second; reads from caches cost a tenth of input.",
            "short",
            Query(rate(_TOKENS, by="kind"), "{{kind}}"),
        ),
        graph(
            "Output for input",
            "Tokens of output for each of input, caches included.",
            "short",
            Query(f"{written} / {read}", "ratio"),
        ),
        graph(
            "Events without a price",
            "Share of the stored events that cost nothing yet.",
            "percentunit",
            Query(
                share(
                    rate("mindweave_events_unpriced_total"),
                    rate("mindweave_events_counted_total", 'outcome="stored"'),
                ),
                "unpriced",
            ),
        ),
    ]
    customers = [
        number(
            "Users registered",
            "In the time shown.",
            "short",
            Query(_done("AuthService/Register"), "users"),
            width=6,
        ),
        number(
            "Organizations made",
            "In the time shown.",
            "short",
            Query(_done("AccountService/CreateOrg"), "organizations"),
            width=6,
        ),
        number(
            "Projects made",
            "In the time shown.",
            "short",
            Query(_done("ProjectService/CreateProject"), "projects"),
            width=6,
        ),
        number(
            "Questions asked",
            "Of analytics, in the time shown.",
            "short",
            Query(
                f'sum(increase({_CALLS}{{service="analytics", code="OK"}}[$__range])) or vector(0)',
                "questions",
            ),
            width=6,
        ),
        graph(
            "Events accepted",
            "A second, repeats included.",
            "ops",
            Query(f"sum(rate(mindweave_events_accepted_total{EVERY}))", "events"),
            width=24,
        ),
    ]
    return dashboard(
        "business",
        "Business",
        "Spend, tokens and customers of the whole platform; no organization is named in metrics.",
        ("Spend", spend),
        ("Customers", customers),
    )
