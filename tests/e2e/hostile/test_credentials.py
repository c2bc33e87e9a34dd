"""Credentials that are not valid: one clear 401 each, on any platform."""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx
import pytest

from tests.e2e.hostile.tokens import (
    Fields,
    bad_keys,
    ended_session,
    made_up,
    session_ended_elsewhere,
)
from tests.e2e.tenant import register

pytestmark = pytest.mark.e2e

WHO = "/auth/me"
SEND = "/v1/events"


def unauthorized(answer: httpx.Response) -> str:
    """The code of a 401 that is a whole problem and tells nothing of what was shown."""
    assert answer.status_code == 401, (answer.request.headers, answer.text)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["www-authenticate"] == 'Bearer realm="mindweave"'
    told = answer.json()
    assert told["status"] == 401
    assert told["errors"] == []
    code: str = told["code"]
    return code


def patiently(ask: Callable[[], httpx.Response]) -> httpx.Response:
    """The answer; again after a while, where this address has asked too often."""
    answer = ask()
    while answer.status_code == 429:
        time.sleep(int(answer.headers["retry-after"]))
        answer = ask()
    return answer


def shown(api: httpx.Client, fields: Fields) -> set[str]:
    """The codes with which two services refuse a credential; its body is not read."""
    raw = [(name.encode(), value.encode("latin-1")) for name, value in fields]
    answers = [
        patiently(lambda: api.get(WHO, headers=raw)),
        patiently(lambda: api.post(SEND, headers=raw, content=b"{")),
    ]
    for answer in answers:
        assert not any(value in answer.text for _, value in fields if len(value) > 20)
    return {unauthorized(answer) for answer in answers}


def test_every_bad_credential_is_a_401_that_says_why(address: str, api: httpx.Client) -> None:
    user = register(address)
    matrix = made_up(address, user) | bad_keys(user)
    matrix["a session that was left"] = ended_session(address)
    matrix["a session that was ended"] = session_ended_elsewhere(user)
    codes = {name: shown(api, fields) for name, fields in matrix.items()}
    assert {name for name, found in codes.items() if "session_ended" in found} == {
        "a session that was left",
        "a session that was ended",
    }
    assert {*map(len, codes.values())} == {1}
    assert {*set.union(*codes.values())} == {
        "unauthenticated", "invalid_credential", "session_ended",
    }  # fmt: skip
    assert api.get(WHO, headers=user.client.headers).status_code == 200


def test_the_scheme_is_bearer_in_any_letters_and_its_value_one_word(
    address: str, api: httpx.Client
) -> None:
    token = register(address).tokens["access_token"]
    for scheme in ("Bearer", "bearer", "BEARER", "bEaReR"):
        answer = api.get(WHO, headers={"Authorization": f"{scheme} {token}"})
        assert answer.status_code == 200, scheme


def test_no_credential_is_taken_from_the_query(address: str, api: httpx.Client) -> None:
    token = register(address).tokens["access_token"]
    for name in ("access_token", "token", "api_key", "authorization"):
        unauthorized(api.get(WHO, params={name: token}))


def test_a_credential_larger_than_all_header_fields_may_be_is_a_431(api: httpx.Client) -> None:
    answer = api.get(WHO, headers={"Authorization": f"Bearer {'a' * 100_000}"})
    assert answer.status_code == 431
    assert answer.headers["content-type"] == "application/problem+json"
