"""The commands of ``mindweave``."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer

from fleet import events
from fleet.services import SERVICES
from fleet.start import begin, end_in_order, told_in_a_line

app = typer.Typer(
    name="mindweave",
    epilog=f"NAME[:ROLE]… runs these services in this process: {', '.join(SERVICES)};"
    " a role is serve or work.",
    help="Metering, pricing and analysis of what organizations do with language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(events.app, name="events")

Data = Annotated[Path, typer.Option(help="The folder that keeps everything.")]
DEFAULT_DATA = Path(".data")
DEFAULT_LISTEN = "127.0.0.1:8080"
NOTHING: list[str] = []
ISO = "%Y-%m-%dT%H:%M:%S"
TIMES = [ISO, "%Y-%m-%d"]


class Broker(StrEnum):
    """What carries events between processes."""

    KAFKA = "kafka"
    REDIS_STREAMS = "redis-streams"


@app.command("all")
def run_everything(
    data: Data = DEFAULT_DATA,
    listen: Annotated[
        str | None, typer.Option(help="host:port of the REST address.", show_default=DEFAULT_LISTEN)
    ] = None,
) -> None:
    """Run every service in one process, with embedded PostgreSQL and Valkey unless configured."""
    begin()
    with told_in_a_line():
        from fleet.all_in_one import run_all

        run_all(data, listen)


@app.command("up")
def run_apart(
    data: Data = DEFAULT_DATA,
    listen: Annotated[
        str | None, typer.Option(help="host:port of the REST address.", show_default=DEFAULT_LISTEN)
    ] = None,
    broker: Annotated[
        Broker, typer.Option(help="The broker that is started where none is configured.")
    ] = Broker.KAFKA,
    scale: Annotated[
        list[str], typer.Option(metavar="NAME[:ROLE]=N", help="How many processes of a service.")
    ] = NOTHING,
) -> None:
    """Run a process for each service, with Envoy in front and embedded servers as in `all`."""
    begin()
    with told_in_a_line():
        from fleet.layout.up import run_up

        run_up(data, listen, broker, scale)


@app.command()
def migrate(data: Data = DEFAULT_DATA) -> None:
    """Bring every service's database up to date, and say what was applied.

    Of the databases that settings name; where they name none, of those in --data.
    """
    end_in_order()
    with told_in_a_line():
        from fleet.migrate import run_migrations

        for service, applied in run_migrations(data).items():
            print(f"{service}: {', '.join(applied) or 'up to date'}")


@app.command()
def partitions(
    count: Annotated[int, typer.Argument(min=1, max=1024, help="How many there are to be.")],
    data: Data = DEFAULT_DATA,
) -> None:
    """Change the number of partitions of the ledger; no events are taken meanwhile.

    Ended in the middle, it goes on where it was when it is run again. Until all is counted that
    was taken, the old number calls the change off.
    """
    with told_in_a_line():
        from fleet.partitions import change_partitions

        change_partitions(count, data, lambda line: print(line, flush=True))


@app.command("add-node")
def add_node(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Of a server with Citus.")],
    data: Data = DEFAULT_DATA,
) -> None:
    """Add a node to the databases that grow, and move its share of their shards there.

    Events are taken and counted meanwhile. Ended in the middle, it is run again when no shard
    moves any more.
    """
    end_in_order()
    with told_in_a_line():
        from fleet.nodes import add_node as add

        add(address, data, partial(print, flush=True))


@app.command()
def reprice(
    org: Annotated[UUID, typer.Option(help="The organization's id.")],
    since: Annotated[
        datetime, typer.Option("--from", help="Included, by the events' times.", formats=TIMES)
    ],
    until: Annotated[datetime, typer.Option("--to", help="Excluded (UTC).", formats=TIMES)],
    data: Data = DEFAULT_DATA,
) -> None:
    """Price a period of an organization anew; differences are added, nothing is overwritten.

    The workers do it, within raw retention; it may be ended, and they go on.
    """
    if since >= until or since.year < 1970 or until.year >= 9000:
        raise typer.BadParameter("must be after --from, both in the years 1970 to 8999")
    with told_in_a_line():
        from fleet.repricing import reprice as price_anew

        begin, end = since.replace(tzinfo=UTC), until.replace(tzinfo=UTC)
        price_anew(org, begin, end, data, lambda line: print(line, flush=True))


@app.command("export-raw")
def export_raw(
    org: Annotated[UUID, typer.Option(help="The organization's id.")],
    since: Annotated[
        datetime, typer.Option("--from", help="Included, by the events' times.", formats=TIMES)
    ],
    until: Annotated[datetime, typer.Option("--to", help="Excluded (UTC).", formats=TIMES)],
    out: Annotated[Path, typer.Option(help="A file (.parquet), or a folder for it.")],
    data: Data = DEFAULT_DATA,
) -> None:
    """Write the raw events of a period to a Parquet file, whole or not at all.

    Each event is there once, with what it costs now. Events are kept for 7 days.
    """
    if since >= until or since.year < 1970 or until.year >= 9000:
        raise typer.BadParameter("must be after --from, both in the years 1970 to 8999")
    with told_in_a_line():
        from fleet.raw_export import export_raw as export

        begin, end = since.replace(tzinfo=UTC), until.replace(tzinfo=UTC)
        export(org, begin, end, out, data, lambda line: print(line, flush=True))


@app.command()
def backup(
    folder: Annotated[Path, typer.Argument(help="Empty, or not there yet.")],
    data: Data = DEFAULT_DATA,
) -> None:
    """Back up all databases at one moment, and what they have not counted, while all runs.

    The secret is not in it: keep a copy of it elsewhere.
    """
    with told_in_a_line():
        from fleet.backup.taking import take_backup

        take_backup(folder, data, partial(print, flush=True))


AcceptLoss = Annotated[
    bool,
    typer.Option("--accept-loss", help="Go on where the broker lacks what is not counted."),
]


@app.command()
def restore(
    folder: Annotated[Path, typer.Argument(help="Of the backup.")],
    data: Data = DEFAULT_DATA,
    accept_loss: AcceptLoss = False,
) -> None:
    """Put a backup into --data, which has the secret and no PostgreSQL, and join it to the broker.

    What was accepted since is counted again, as far as the broker has it. Ended in the middle, it
    is run again; until then nothing else opens --data.
    """
    end_in_order()
    with told_in_a_line():
        from fleet.backup.restoring import restore as put_back

        put_back(folder, data, accept_loss=accept_loss, tell=partial(print, flush=True))


@app.command()
def rejoin(
    folder: Annotated[
        Path | None, typer.Argument(help="Of the backup; none where the broker has all.")
    ] = None,
    data: Data = DEFAULT_DATA,
    accept_loss: AcceptLoss = False,
) -> None:
    """Join databases that were restored by other means to the broker; no service may run.

    It holds every partition meanwhile; ended in the middle, it is run again.
    """
    end_in_order()
    with told_in_a_line():
        from fleet.backup.rejoining import rejoin_given

        rejoin_given(folder, data, accept_loss=accept_loss, tell=partial(print, flush=True))


@app.command("rotate-signing-key")
def rotate_signing_key(
    data: Data = DEFAULT_DATA,
    at_once: Annotated[
        bool, typer.Option("--at-once", help="Refuse what earlier keys have signed.")
    ] = False,
) -> None:
    """Make the next key that signs tokens; it signs in an hour, and nobody notices.

    Auth makes one every 30 days by itself. With --at-once sessions refresh their tokens.
    """
    with told_in_a_line():
        from fleet.signing import rotate_signing_key as rotate

        rotate(data, at_once=at_once, tell=partial(print, flush=True))


@app.command("rotate-secret")
def rotate_secret(data: Data = DEFAULT_DATA) -> None:
    """Take another secret, while nothing runs: that of --data, or MINDWEAVE_SECRET where it is set.

    In the second case MINDWEAVE_NEW_SECRET is the next one. Passwords of databases change with it.
    """
    end_in_order()
    with told_in_a_line():
        from fleet.secret import rotate_secret as rotate

        rotate(data, partial(print, flush=True))


@app.command()
def status(
    data: Data = DEFAULT_DATA,
    address: Annotated[
        str | None, typer.Option(help="Of a REST API; else every process of the one in --data.")
    ] = None,
) -> None:
    """Show each process, service and part: whether it is up, its version, what waits for it."""
    from rich.console import Console

    from fleet.status import NotRunning, of_address, of_folder, show

    try:
        processes = of_folder(data) if address is None else of_address(address)
    except NotRunning as error:
        print(f"mindweave: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    if not show(processes, Console()):
        raise typer.Exit(1)


@app.command()
def replay(
    file: Annotated[Path, typer.Argument(help="CSV: TIMESTAMP, ContextTokens, GeneratedTokens.")],
    key: Annotated[str, typer.Option(envvar="MINDWEAVE_API_KEY", help="Sends with this API key.")],
    project: Annotated[
        list[str], typer.Option(help="Ids of the projects that the events belong to.")
    ],
    address: Annotated[str, typer.Option(help="Of the REST API.")] = f"http://{DEFAULT_LISTEN}",
    seed: Annotated[int, typer.Option(help="Decides models, users and all that is added.")] = 1,
    batch: Annotated[int, typer.Option(min=1, max=9000, help="Events a request, about.")] = 250,
    end: Annotated[
        datetime | None,
        typer.Option(help="Shifts the newest event there (UTC); now when absent.", formats=[ISO]),
    ] = None,
) -> None:
    """Send a trace as usage events, and say what was accepted."""
    from rich.console import Console

    from fleet.replay import ReplayFailed, send_with_progress
    from fleet.workload import TraceInvalid, Workload, read_trace

    newest = (end or datetime.now(UTC)).replace(tzinfo=UTC)
    console = Console()
    try:
        workload = Workload(read_trace(file), project, newest, seed)
        outcome = send_with_progress(address, key, workload.batches(batch), console)
    except (TraceInvalid, OSError) as error:
        print(f"mindweave: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    except ReplayFailed as error:
        print(f"mindweave: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    console.print(
        f"{outcome.accepted:,} events accepted in {outcome.seconds:.1f} s,"
        f" {len(outcome.rejected)} rejected, {outcome.retries} requests sent again."
    )
    for rejected in outcome.rejected[:10]:
        console.print(f"  {rejected['code']} {rejected['field']}: {rejected['message']}")


@app.command()
def demo(
    data: Data = DEFAULT_DATA,
    listen: Annotated[str, typer.Option(help="host:port of the REST address.")] = DEFAULT_LISTEN,
    once: Annotated[bool, typer.Option("--once", help="End after the report.")] = False,
    seed: Annotated[int, typer.Option(help="Decides what the trace lacks.")] = 1,
) -> None:
    """Start the platform, replay one hour of usage, print its cost, and stay until Ctrl-C."""
    import httpx

    from fleet.demo import DemoFailed, run
    from fleet.process import PlatformEnded
    from fleet.replay import ReplayFailed

    try:
        run(data, listen, once=once, seed=seed)
    except (DemoFailed, PlatformEnded, ReplayFailed, httpx.HTTPError) as error:
        print(f"mindweave: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
