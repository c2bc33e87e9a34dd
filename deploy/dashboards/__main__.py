"""Write deploy/grafana, or see with ``--check`` that it is what is made here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.dashboards import broker, business, overview, postgresql, service, usage

FOLDER = Path(__file__).resolve().parent.parent / "grafana"
DASHBOARDS = {
    "overview": overview.made,
    "service": service.made,
    "usage": usage.made,
    "broker": broker.made,
    "postgresql": postgresql.made,
    "business": business.made,
}


def made() -> dict[Path, str]:
    """The text of each file."""
    return {
        FOLDER / f"{name}.json": json.dumps(
            make().build(), cls=JSONEncoder, indent=1, sort_keys=True
        )
        + "\n"
        for name, make in DASHBOARDS.items()
    }


def main() -> None:
    files = made()
    if "--check" not in sys.argv:
        FOLDER.mkdir(exist_ok=True)
        for path, text in files.items():
            path.write_text(text)
        return
    there = {path: path.read_text() for path in FOLDER.glob("*.json")}
    stale = sorted(p.name for p in files.keys() | there.keys() if files.get(p) != there.get(p))
    if stale:
        sys.exit(f"run `python -m deploy.dashboards`: {', '.join(stale)} in deploy/grafana differ")


if __name__ == "__main__":
    main()
