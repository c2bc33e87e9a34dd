"""Lists of the API, page after page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx

PAGE = 500


def listed(client: httpx.Client, path: str, name: str, **params: str) -> Iterator[dict[str, Any]]:
    """Every row of a list."""
    token = ""
    while token is not None:
        answer = client.get(path, params={**params, "page_size": str(PAGE), "page_token": token})
        assert answer.status_code == 200, answer.text
        yield from answer.json()[name]
        token = answer.json()["next_page_token"]
