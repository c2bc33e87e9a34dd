"""Hashing beside the event loop, and the list of leaked passwords."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

import pytest
from argon2 import PasswordHasher, extract_parameters
from argon2.low_level import Type

from common.errors import Invalid, Unavailable
from services.auth.actions.passwords import Passwords

pytestmark = pytest.mark.unit

T = TypeVar("T")


class Held(Passwords):
    """Works only when the test lets it."""

    def __init__(self, *, threads: int, waiting: int) -> None:
        super().__init__(threads=threads, waiting=waiting)
        self.let_go = threading.Event()

    def hold(self) -> asyncio.Task[str]:
        return asyncio.create_task(self.hash("an uncommon pass phrase"))

    async def _run(self, work: Callable[[], T]) -> T:
        def held() -> T:
            self.let_go.wait()
            return work()

        return await super()._run(held)


@pytest.fixture(scope="module")
def passwords() -> Passwords:
    return Passwords()


async def test_a_hash_is_argon2id_with_the_agreed_parameters(passwords: Passwords) -> None:
    made = extract_parameters(await passwords.hash("an uncommon pass phrase"))
    assert made.type is Type.ID
    assert (made.memory_cost, made.time_cost, made.parallelism) == (19456, 2, 1)
    assert (made.salt_len, made.hash_len) == (16, 32)


async def test_only_the_password_itself_matches_its_hash(passwords: Passwords) -> None:
    made = await passwords.hash("an uncommon pass phrase")
    assert await passwords.verify(made, "an uncommon pass phrase")
    assert not await passwords.verify(made, "An uncommon pass phrase")


async def test_nobody_s_password_is_never_right(passwords: Passwords) -> None:
    assert not await passwords.verify(None, "an uncommon pass phrase")
    assert not await passwords.verify(None, "")


async def test_two_users_with_one_password_have_two_hashes(passwords: Passwords) -> None:
    assert await passwords.hash("an uncommon pass phrase") != await passwords.hash(
        "an uncommon pass phrase"
    )


async def test_a_hash_of_weaker_parameters_is_to_be_renewed(passwords: Passwords) -> None:
    weaker = PasswordHasher(time_cost=1, memory_cost=8192, parallelism=1).hash("p")
    assert passwords.is_outdated(weaker)
    assert await passwords.verify(weaker, "p")
    assert not passwords.is_outdated(await passwords.hash("p"))


@pytest.mark.parametrize(
    "leaked",
    [
        "123456789012345",
        "passwordpassword",
        "PASSWORDPASSWORD",
        "correcthorsebatterystaple",
        "qwertyuiopasdfghjkl",
        " iloveyouiloveyou ",
        "11111111111111111111",
    ],
)
async def test_a_leaked_password_is_refused(passwords: Passwords, leaked: str) -> None:
    with pytest.raises(Invalid) as refused:
        await passwords.refuse_leaked(leaked)
    assert [(f.pointer, f.code) for f in refused.value.fields] == [("/password", "leaked")]
    assert leaked.strip() not in str(refused.value)


@pytest.mark.parametrize("password", ["an uncommon pass phrase", "пароль, которого нет", "\0" * 15])
async def test_a_password_on_no_list_is_taken(passwords: Passwords, password: str) -> None:
    await passwords.refuse_leaked(password)


async def test_more_than_fit_are_refused_at_once_and_the_others_are_served() -> None:
    passwords = Held(threads=1, waiting=2)
    waiting = [passwords.hold() for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable) as refused:
        await passwords.hash("an uncommon pass phrase")
    assert refused.value.retry_after == 1
    passwords.let_go.set()
    assert len(set(await asyncio.gather(*waiting))) == 3
    assert await passwords.hash("an uncommon pass phrase")


async def test_a_caller_who_goes_gives_its_place_back() -> None:
    passwords = Held(threads=1, waiting=1)
    working, waiting = passwords.hold(), passwords.hold()
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    following = passwords.hold()
    passwords.let_go.set()
    assert await working
    assert await following
