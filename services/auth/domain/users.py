"""Users and the addresses they are known by."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from common.errors import (
    Conflict,
    PermissionDenied,
    PreconditionFailed,
    Unauthenticated,
)


@dataclass(frozen=True, slots=True)
class User:
    """A person. ``email`` is the address as it was written."""

    id: UUID
    email: str
    display_name: str
    email_verified: bool
    version: int
    created_at: datetime
    updated_at: datetime

    def renamed(self, display_name: str, now: datetime) -> User:
        if display_name == self.display_name:
            return self
        return replace(self, display_name=display_name, version=self.version + 1, updated_at=now)

    def expect(self, version: int | None) -> None:
        """Refuse a change that was made for another version.

        Raises:
            PreconditionFailed: ``version`` is given and not the current one.
        """
        if version is not None and version != self.version:
            raise PreconditionFailed("The profile has changed; read it again.")


@dataclass(frozen=True, slots=True)
class Credential:
    """What a user signs in with.

    ``password_version`` counts the user's passwords; a hash is renewed without a new one.
    """

    user: User
    password_hash: str
    password_version: int


class EmailTaken(Conflict):
    code = "email_taken"
    title = "A user with this address exists already"


class InvalidCredentials(Unauthenticated):
    """The same for a wrong password and for an address that nobody has."""

    code = "invalid_credentials"
    title = "The address or the password is wrong"


class WrongPassword(PermissionDenied):
    """The caller is signed in and does not know the present password."""

    code = "wrong_password"
    title = "The current password is wrong"


class PasswordChanged(Conflict):
    """The password was changed by another call meanwhile."""

    code = "password_changed"
    title = "The password has just been changed"


def clean_email(address: str) -> str:
    """The address without blanks around it, in Unicode's composed form (NFC)."""
    return unicodedata.normalize("NFC", address.strip())


def email_key(address: str) -> str:
    """What makes an address one of a kind: two that differ only in case are the same."""
    return unicodedata.normalize("NFC", clean_email(address).casefold())
