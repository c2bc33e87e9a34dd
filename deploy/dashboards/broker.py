"""What waits on the broker, and what came of it."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.dashboards.shapes import Query, dashboard, graph, number, rate


def made() -> Dashboard:
    lag = [
        graph(
            "Lag",
            "Records that a group has not committed, by topic; those to be tried again included.",
            "short",
            Query("mindweave:bus_lag_records:max", "{{group}} of {{topic}}"),
            width=12,
        ),
        graph(
            "Fill",
            "Share of what a topic can hold; at 1 it takes nothing. Redis Streams alone: Kafka is"
            " bounded by its disks, which its own exporter tells of.",
            "percentunit",
            Query("mindweave:bus_fill:ratio", "{{topic}}"),
            width=12,
            limit=0.5,
        ),
        graph(
            "Room for the last backup",
            "Share of a partition that is left before records go that a restore of the last backup"
            " needs; at 0 they are gone. Redis Streams alone, once there was a backup.",
            "percentunit",
            Query("min by (topic) (mindweave_backup_room_ratio)", "{{topic}}"),
            width=24,
        ),
    ]
    delivered = [
        graph(
            "Deliveries",
            "Of events to handlers, a second, by what came of them.",
            "ops",
            Query(rate("mindweave_bus_records_total", by="outcome"), "{{outcome}}"),
        ),
        graph(
            "Deliveries by consumer",
            "Events a second that each group was done with.",
            "ops",
            Query(
                rate("mindweave_bus_records_total", 'outcome="done"', "topic, group"),
                "{{group}} of {{topic}}",
            ),
        ),
        graph(
            "Dead letters",
            "Events that their consumer gave up, by what became of them.",
            "short",
            Query("max by (topic, state) (mindweave_dead_letters)", "{{topic}} {{state}}"),
        ),
        number(
            "Dead letters that wait",
            "For people: `mindweave events list`.",
            "short",
            Query('sum(max by (topic) (mindweave_dead_letters{state="waiting"}))', "waiting"),
        ),
    ]
    outbox = [
        graph(
            "Messages that wait",
            "In the outbox of each service, counted up to 10,000.",
            "short",
            Query("max by (service) (mindweave_outbox_messages)", "{{service}}"),
        ),
        graph(
            "Age of the oldest message",
            "How late the others hear of what a service has changed.",
            "s",
            Query("max by (service) (mindweave_outbox_age_seconds)", "{{service}}"),
            limit=60,
        ),
        graph(
            "Messages sent",
            "A second, as the broker has acknowledged them.",
            "ops",
            Query(
                rate("mindweave_outbox_sent_total", by="service, topic"), "{{service}} {{topic}}"
            ),
        ),
    ]
    return dashboard(
        "broker",
        "Broker",
        "Lag, room, deliveries and dead letters, whatever the broker is.",
        ("Waiting", lag),
        ("Delivered", delivered),
        ("Outboxes", outbox),
    )
