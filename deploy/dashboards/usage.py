"""The way of an event: accepted, counted, in a window, visible."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.dashboards.shapes import Query, dashboard, graph, quantile, quantiles, rate, share

_HTTP = "mindweave_http_server_duration_seconds"
_INGEST = 'method="POST", route=~"/v1/events|/v1/track"'
_LAG = 'max by (topic) (mindweave:bus_lag_records:max{{topic="{}"}})'
_AGE = "mindweave_windows_age_seconds"


def _lag(topic: str) -> Query:
    return Query(_LAG.format(topic), topic)


def made() -> Dashboard:
    whole = [
        graph(
            "Events on their way",
            "Events a second that were accepted, and those that the workers have counted.",
            "ops",
            Query(rate("mindweave_events_accepted_total"), "accepted"),
            Query(rate("mindweave_events_counted_total", by="outcome"), "counted: {{outcome}}"),
            Query(rate("mindweave_window_deltas_sent_total"), "deltas of windows sent on"),
            width=12,
        ),
        graph(
            "Age of what is shown",
            "How long ago the last event was accepted that is surely in the windows: the goal is"
            " 500 ms. Looked at every five seconds.",
            "s",
            *quantiles(_AGE),
            width=12,
            limit=0.5,
        ),
    ]
    ingest = [
        graph(
            "Requests with events",
            "A second, by status: 202 is taken, 4xx refused for what was sent, 5xx to be repeated.",
            "reqps",
            Query(rate(f"{_HTTP}_count", _INGEST, "status"), "{{status}}"),
        ),
        graph(
            "Time to accept",
            "From the head of a request to its 202, which the broker's disk is part of; the goal is"
            " 10 ms.",
            "s",
            *quantiles(_HTTP, f'{_INGEST}, status="202"'),
        ),
        graph(
            "Events in a request",
            "Batches of hundreds cost the least.",
            "short",
            *quantiles("mindweave_ingest_batch_events"),
        ),
        graph(
            "Refused events",
            "A second, by the code that the client was told.",
            "ops",
            Query(rate("mindweave_events_rejected_total", by="code"), "{{code}}"),
            width=12,
        ),
        graph(
            "Share of refused events",
            "Of all that were sent.",
            "percentunit",
            Query(
                share(
                    rate("mindweave_events_rejected_total"),
                    f"{rate('mindweave_events_accepted_total')}"
                    f" + {rate('mindweave_events_rejected_total')}",
                ),
                "refused",
            ),
            width=12,
        ),
    ]
    counting = [
        graph(
            "Batches that wait to be counted",
            "Records of usage.events that the workers have not committed.",
            "short",
            _lag("usage.events"),
        ),
        graph(
            "Events in a transaction",
            "More where workers are behind: they catch up by larger transactions.",
            "short",
            *quantiles("mindweave_worker_batch_events"),
        ),
        graph(
            "Stopped partitions",
            "A record could not be processed; nothing is skipped, so people have to look.",
            "short",
            Query("sum(mindweave_partition_stopped) or vector(0)", "stopped"),
            limit=1,
        ),
        graph(
            "Events without a price",
            "Share of the stored events that are of a model without a price.",
            "percentunit",
            Query(
                share(
                    rate("mindweave_events_unpriced_total"),
                    rate("mindweave_events_counted_total", 'outcome="stored"'),
                ),
                "unpriced",
            ),
        ),
        graph(
            "Repeats and conflicts",
            "Share of the events that came again, with the same body or with another one.",
            "percentunit",
            Query(
                share(
                    rate("mindweave_events_counted_total", 'outcome!="stored"', "outcome"),
                    f"sum by (outcome) (0 * rate(mindweave_events_counted_total[$__rate_interval]))"
                    f" + on () group_left () {rate('mindweave_events_counted_total')}",
                ),
                "{{outcome}}",
            ),
        ),
        graph(
            "Records left out",
            "Published by a process that stood still while partitions were changed; they were never"
            " acknowledged.",
            "ops",
            Query(rate("mindweave_records_astray_total"), "left out"),
        ),
    ]
    showing = [
        graph(
            "Records that wait to be shown",
            "Records of usage.windows that analytics has not committed.",
            "short",
            _lag("usage.windows"),
        ),
        graph(
            "Age by partition",
            "Time since the watermark of each partition; the interval of scrapes is part of it.",
            "s",
            Query(
                "time() - max by (partition) (mindweave_windows_fresh_until_seconds)",
                "partition {{partition}}",
            ),
        ),
        graph(
            "Time to answer questions, p95",
            "Of analytics, by method.",
            "s",
            Query(
                quantile(
                    0.95, "mindweave_rpc_server_duration_seconds", 'service="analytics"', "method"
                ),
                "{{method}}",
            ),
        ),
    ]
    return dashboard(
        "usage",
        "Usage pipeline",
        "Whether usage is taken, counted once and shown soon.",
        ("Accepted, counted, shown", whole),
        ("Accepted", ingest),
        ("Counted", counting),
        ("Shown", showing),
    )
