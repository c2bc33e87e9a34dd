"""auth in a process of its own, which answers everything with an empty message.

Its argument is the address to listen on; it prints the one that it took.
"""

from __future__ import annotations

import asyncio
import sys

from tests.common.serving import AUTH, fleet


async def main(listen: str) -> None:
    async with fleet(AUTH, listen=listen) as served:
        sys.stdout.write(f"{served.address}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
