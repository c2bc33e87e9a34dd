"""Runs in a pod: takes spans, and prints each edge between services once, as ``caller callee``."""

from __future__ import annotations

import time

from tests.common.otlp import otlp_receiver
from tests.e2e.edges import Edge, EdgeReceiver

PORT = 4318


def main() -> None:
    receiver, printed = EdgeReceiver(), set[Edge]()
    with otlp_receiver(receiver, ("0.0.0.0", PORT)):
        while True:
            for edge in sorted(receiver.seen - printed):
                print(*edge, flush=True)
                printed.add(edge)
            time.sleep(1)


if __name__ == "__main__":
    main()
