"""The program ``mindweave``: a command of ``fleet.cli``, or services by NAME[:ROLE]…."""

from __future__ import annotations

import sys

from fleet.services import SERVICES
from fleet.start import begin, told_in_a_line


def main() -> None:
    names = sys.argv[1:]
    if names and names[0].partition(":")[0] in SERVICES:
        _run(names)
        return
    # A process of a service, of which there are many, does not wait for the other commands.
    from fleet.cli import app

    app(prog_name="mindweave")


def _run(names: list[str]) -> None:
    begin()
    with told_in_a_line():
        from fleet.named import run_named

        run_named(names)


if __name__ == "__main__":
    main()
