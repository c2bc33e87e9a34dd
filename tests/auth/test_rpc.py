"""AuthService behind the kit's real gRPC server: registering, the profile and the password."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from common.clock import ManualClock
from common.database import Database, Scope
from common.errors import (
    Conflict,
    Invalid,
    MindWeaveError,
    PermissionDenied,
    PreconditionFailed,
    RateLimited,
    Unauthenticated,
)
from common.identity.permissions import SCOPES
from common.testing import a_project_key, a_user, a_user_key
from mindweave.auth.v1 import auth_pb2 as pb
from tests.auth.conftest import NEW_PASSWORD, PASSWORD, Auth, Person, outcome
from tests.conftest import Published

pytestmark = pytest.mark.rpc


def a_registration(**given: Any) -> pb.RegisterRequest:
    fields = {
        "email": f"{uuid4().hex}@example.org",
        "password": PASSWORD,
        "display_name": "Ada Lovelace",
    }
    return pb.RegisterRequest(**(fields | given))


def pointers(refused: pytest.ExceptionInfo[MindWeaveError]) -> list[str]:
    return [field.pointer for field in refused.value.fields]


class TestRegister:
    async def test_a_registered_user_is_shown_as_written(
        self, auth: Auth, published: Published
    ) -> None:
        email = f"Ada.{uuid4().hex}@Example.ORG"
        request = a_registration(email=f" {email} ", display_name=" Ada Lovelace ")
        answer = await auth.answer("Register", request)
        user = answer.message.user
        assert (user.email, user.display_name) == (email, "Ada Lovelace")
        assert not user.email_verified
        assert answer.etag == 1
        created, audited = await published()
        assert (created.type, created.data) == ("user.created", {"user_id": user.id})
        assert created.metadata.user_id == UUID(user.id)
        assert audited.type == "audit.recorded"

    async def test_an_address_is_taken_once_whatever_its_case(self, auth: Auth) -> None:
        request = a_registration()
        await auth.call("Register", request)
        again = a_registration(email=request.email.upper())
        with pytest.raises(Conflict) as refused:
            await auth.call("Register", again)
        assert refused.value.code == "email_taken"

    async def test_of_many_who_register_one_address_at_once_one_succeeds(self, auth: Auth) -> None:
        email = f"{uuid4().hex}@example.org"
        outcomes = await asyncio.gather(
            *(outcome(auth.call("Register", a_registration(email=email))) for _ in range(8))
        )
        assert sorted(outcomes) == ["email_taken"] * 7 + ["ok"]

    async def test_the_same_registration_repeated_under_its_key_is_the_same_user(
        self, auth: Auth
    ) -> None:
        request, key = a_registration(), uuid4().hex
        first = await auth.answer("Register", request, idempotency_key=key)
        again = await auth.answer("Register", request, idempotency_key=key)
        assert again.message == first.message
        assert again.replayed

    async def test_strangers_who_take_the_same_key_do_not_meet(self, auth: Auth) -> None:
        key = uuid4().hex
        first = await auth.answer("Register", a_registration(), idempotency_key=key, ip="192.0.2.1")
        other = await auth.answer("Register", a_registration(), idempotency_key=key, ip="192.0.2.2")
        assert not other.replayed
        assert other.message.user.id != first.message.user.id

    async def test_another_registration_under_the_same_key_is_refused(self, auth: Auth) -> None:
        key = uuid4().hex
        await auth.answer("Register", a_registration(), idempotency_key=key)
        with pytest.raises(Invalid) as refused:
            await auth.answer("Register", a_registration(), idempotency_key=key)
        assert refused.value.code == "idempotency_key_reused"

    @pytest.mark.parametrize(
        ("given", "pointer"),
        [
            ({"email": "no address"}, "/email"),
            ({"email": "ada@"}, "/email"),
            ({"email": "a\0@example.org"}, "/email"),
            ({"email": f"{'a' * 250}@example.org"}, "/email"),
            ({"password": "x" * 14}, "/password"),
            ({"password": "x" * 257}, "/password"),
            ({"password": "123456789012345"}, "/password"),
            (
                {"email": "a.long.address@example.org", "password": "A.long.address@example.org"},
                "/password",
            ),
            ({"display_name": PASSWORD}, "/password"),
            ({"display_name": "   "}, "/display_name"),
            ({"display_name": "a\nb"}, "/display_name"),
            ({"display_name": "x" * 201}, "/display_name"),
        ],
    )
    async def test_a_wrong_field_is_named(
        self, auth: Auth, given: dict[str, str], pointer: str
    ) -> None:
        with pytest.raises(Invalid) as refused:
            await auth.call("Register", a_registration(**given))
        assert pointers(refused) == [pointer]

    async def test_sixty_a_minute_from_one_address_are_the_most(
        self, auth: Auth, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # However busy the machine is, the cache counts all of them and the database none.
        monkeypatch.setattr("services.auth.actions.limits.PATIENCE", 60.0)
        ip = "192.0.2.60"
        request = a_registration()
        outcomes = await asyncio.gather(
            *(outcome(auth.answer("Register", request, ip=ip)) for _ in range(65))
        )
        assert outcomes.count("too_many_attempts") == 5
        with pytest.raises(RateLimited) as refused:
            await auth.answer("Register", a_registration(), ip=ip)
        assert refused.value.retry_after == pytest.approx(60)
        await auth.register(ip="192.0.2.61")
        clock.advance(timedelta(minutes=1))
        await auth.register(ip=ip)


class TestMe:
    async def test_the_caller_sees_its_own_profile(self, auth: Auth, person: Person) -> None:
        answer = await auth.answer("GetMe", pb.GetMeRequest(), await auth.sign_in(person))
        assert (answer.message.user.id, answer.message.user.email) == (str(person.id), person.email)
        assert not answer.message.user.mfa_enabled
        assert answer.etag == 1

    async def test_a_new_name_is_shown_and_told(
        self, auth: Auth, person: Person, published: Published
    ) -> None:
        caller = await auth.sign_in(person)
        request = pb.UpdateMeRequest(display_name=" Ada L. ")
        answer = await auth.answer("UpdateMe", request, caller, if_match=1)
        assert (answer.message.user.display_name, answer.etag) == ("Ada L.", 2)
        updated = [e for e in await published() if e.type == "user.updated"]
        assert [e.data for e in updated] == [
            {"user_id": str(person.id), "fields": ["display_name"]}
        ]

    async def test_a_stale_version_is_refused(self, auth: Auth, person: Person) -> None:
        caller = await auth.sign_in(person)
        with pytest.raises(PreconditionFailed):
            await auth.answer("UpdateMe", pb.UpdateMeRequest(display_name="A"), caller, if_match=7)

    async def test_nothing_named_is_nothing_changed(
        self, auth: Auth, person: Person, published: Published
    ) -> None:
        caller = await auth.sign_in(person)
        request = pb.UpdateMeRequest(update_mask=FieldMask())
        answer = await auth.answer("UpdateMe", request, caller)
        assert answer.etag == 1
        assert "user.updated" not in [envelope.type for envelope in await published()]

    async def test_a_name_cannot_be_taken_away(self, auth: Auth, person: Person) -> None:
        caller = await auth.sign_in(person)
        request = pb.UpdateMeRequest(update_mask=FieldMask(paths=["display_name"]))
        with pytest.raises(Invalid) as refused:
            await auth.call("UpdateMe", request, caller)
        assert pointers(refused) == ["/display_name"]

    async def test_an_unknown_user_has_no_profile(self, auth: Auth) -> None:
        with pytest.raises(Unauthenticated):
            await auth.call("GetMe", pb.GetMeRequest(), a_user())


class TestChangePassword:
    def request(self, current: str = PASSWORD, new: str = NEW_PASSWORD) -> Any:
        return pb.ChangePasswordRequest(current_password=current, password=new)

    async def test_the_new_password_holds_and_every_other_session_ends(
        self, auth: Auth, person: Person, published: Published
    ) -> None:
        here, there = await auth.sign_in(person), await auth.sign_in(person)
        await auth.call("ChangePassword", self.request(), here)
        assert await auth.is_open(here)
        assert not await auth.is_open(there)
        assert await outcome(auth.login(person)) == "invalid_credentials"
        assert await auth.login(person, NEW_PASSWORD)
        ended = [e for e in await published() if e.type == "user.session.invalid"]
        assert [e.data for e in ended] == [
            {
                "user_id": str(person.id),
                "session_id": str(there.session_id),
                "reason": "password_changed",
            }
        ]

    async def test_a_wrong_current_password_is_refused_and_guesses_are_limited(
        self, auth: Auth, person: Person
    ) -> None:
        caller = await auth.sign_in(person)
        request = self.request(current="wrong")
        outcomes = [await outcome(auth.call("ChangePassword", request, caller)) for _ in range(11)]
        assert outcomes == ["wrong_password"] * 10 + ["too_many_attempts"]
        assert await auth.login(person), "guesses here lock nobody out of signing in"

    async def test_a_wrong_current_password_is_a_403(self, auth: Auth, person: Person) -> None:
        with pytest.raises(PermissionDenied):
            await auth.call(
                "ChangePassword", self.request(current="wrong"), await auth.sign_in(person)
            )

    @pytest.mark.parametrize("new", ["passwordpassword", "ADA LOVELACE" + " " * 3, "x" * 14])
    async def test_a_password_that_may_not_be_used_is_refused(
        self, auth: Auth, person: Person, new: str
    ) -> None:
        with pytest.raises(Invalid) as refused:
            await auth.call("ChangePassword", self.request(new=new), await auth.sign_in(person))
        assert pointers(refused) == ["/password"]

    async def test_of_two_changes_at_once_one_holds(self, auth: Auth, person: Person) -> None:
        caller = await auth.sign_in(person)
        news = ["one uncommon pass phrase", "two uncommon pass phrases"]
        outcomes = await asyncio.gather(
            *(outcome(auth.call("ChangePassword", self.request(new=n), caller)) for n in news)
        )
        assert outcomes.count("ok") == 1
        logins = [await outcome(auth.login(person, new)) for new in news]
        assert logins.index("ok") == outcomes.index("ok")
        assert logins.count("ok") == 1


class TestKeysMayNot:
    @pytest.mark.parametrize(
        ("method", "request_"),
        [
            ("GetMe", pb.GetMeRequest()),
            ("UpdateMe", pb.UpdateMeRequest(display_name="Eve")),
            ("Logout", pb.LogoutRequest()),
            (
                "ChangePassword",
                pb.ChangePasswordRequest(current_password=PASSWORD, password=NEW_PASSWORD),
            ),
            ("ListSessions", pb.ListSessionsRequest()),
            ("DeleteSession", pb.DeleteSessionRequest(id=str(uuid4()))),
            ("DeleteOtherSessions", pb.DeleteOtherSessionsRequest()),
            ("ListApiKeys", pb.ListApiKeysRequest()),
            ("CreateApiKey", pb.CreateApiKeyRequest(name="k", scopes=["org:read"])),
            ("DeleteApiKey", pb.DeleteApiKeyRequest(id=str(uuid4()))),
        ],
    )
    async def test_no_key_may_use_what_is_its_user_s_own(
        self, auth: Auth, person: Person, method: str, request_: Any
    ) -> None:
        for key in (
            a_user_key(person.id, SCOPES),
            a_project_key(uuid4(), uuid4(), SCOPES),
        ):
            with pytest.raises(PermissionDenied):
                await auth.call(method, request_, key)
        with pytest.raises(Unauthenticated):
            await auth.call(method, request_)


async def test_nothing_that_is_kept_or_logged_holds_a_secret(
    auth: Auth, database: Database, caplog: pytest.LogCaptureFixture, clock: ManualClock
) -> None:
    caplog.set_level(logging.DEBUG)
    person = await auth.register("a most secret pass phrase")
    pair = await auth.login(person)
    following = await auth.refresh(pair.refresh_token)
    await outcome(auth.login(person, "a wrong secret phrase"))
    caller = await auth.who(following)
    created = await auth.call(
        "CreateApiKey", pb.CreateApiKeyRequest(name="ci", scopes=["org:read"]), caller
    )
    await auth.call(
        "ChangePassword",
        pb.ChangePasswordRequest(
            current_password=person.password, password="a newer secret pass phrase"
        ),
        caller,
    )
    secrets = [
        "a most secret pass phrase",
        "a newer secret pass phrase",
        "a wrong secret phrase",
        pair.refresh_token,
        following.refresh_token,
        pair.access_token,
        created.api_key.key,
    ]
    async with database.read(Scope()) as connection:
        tables = await connection.fetch(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        )
        kept = [
            str(tuple(row)).encode() + b"".join(v for v in row if isinstance(v, bytes))
            for table in tables
            for row in await connection.fetch(f'SELECT * FROM "{table["tablename"]}"')
        ]
    assert kept
    for secret in secrets:
        assert secret not in caplog.text
        assert not any(secret.encode() in row for row in kept)
