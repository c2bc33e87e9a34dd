"""The program ``mindweave``."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="mindweave",
    help="Metering, pricing and analysis of what organizations do with language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Data = Annotated[Path, typer.Option(help="The folder that keeps everything.")]
DEFAULT_DATA = Path(".data")
DEFAULT_LISTEN = "127.0.0.1:8080"
ISO = "%Y-%m-%dT%H:%M:%S"


@contextmanager
def _told_in_a_line() -> Iterator[None]:
    """Ends with what a person can do about a failed start; a bug keeps its traceback."""
    from common.database import MigrationFailed, MigrationRefused, UnsafeRole
    from common.errors import MindWeaveError
    from common.events.bus import TopicMismatch
    from common.lifecycle import NotReady
    from common.settings import SettingsError
    from fleet.embedded import DidNotStart, InUse

    known = (
        DidNotStart,
        InUse,
        MigrationFailed,
        MigrationRefused,
        MindWeaveError,
        NotReady,
        OSError,
        SettingsError,
        TopicMismatch,
        UnsafeRole,
    )
    try:
        yield
    except known as error:
        print(f"mindweave: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


@app.command("all")
def run_everything(
    data: Data = DEFAULT_DATA,
    listen: Annotated[
        str | None, typer.Option(help="host:port of the REST address.", show_default=DEFAULT_LISTEN)
    ] = None,
) -> None:
    """Run every service in one process, with embedded PostgreSQL and Valkey unless configured."""
    # Until the platform takes signals itself, what was started by then is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # gRPC's own lines are no JSON; what matters of them our interceptors log.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    with _told_in_a_line():
        from fleet.all_in_one import run_all

        run_all(data, listen)


@app.command()
def migrate(data: Data = DEFAULT_DATA) -> None:
    """Bring every service's database up to date, and say what was applied."""
    with _told_in_a_line():
        from fleet.all_in_one import run_migrations

        for service, applied in run_migrations(data).items():
            print(f"{service}: {', '.join(applied) or 'up to date'}")


@app.command()
def status(
    data: Data = DEFAULT_DATA,
    address: Annotated[
        str | None, typer.Option(help="The platform's REST address; else the one in --data.")
    ] = None,
) -> None:
    """Show each service and part: whether it is up, its version, what waits for it."""
    from rich.console import Console

    from fleet.status import NotRunning, ask, find_address, show

    try:
        services = ask(address or find_address(data))
    except NotRunning as error:
        print(f"mindweave: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    if not show(services, Console()):
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


if __name__ == "__main__":
    app()
