"""AuthService behind the kit's real gRPC server: registering, signing in, staying signed in."""

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
    NotFound,
    PermissionDenied,
    PreconditionFailed,
    RateLimited,
    Unauthenticated,
)
from common.identity.permissions import SCOPES
from common.testing import a_project_key, a_user, a_user_key
from mindweave.auth.v1 import auth_pb2 as pb
from tests.auth.conftest import PASSWORD, Auth, Person, Published

pytestmark = pytest.mark.rpc

NEW_PASSWORD = "another uncommon pass phrase"


def a_registration(**given: Any) -> pb.RegisterRequest:
    fields = {
        "email": f"{uuid4().hex}@example.org",
        "password": PASSWORD,
        "display_name": "Ada Lovelace",
    }
    return pb.RegisterRequest(**(fields | given))


def pointers(refused: pytest.ExceptionInfo[MindWeaveError]) -> list[str]:
    return [field.pointer for field in refused.value.fields]


async def outcome(attempt: Any) -> str:
    """How a call went: "ok", or the code of its error."""
    try:
        await attempt
    except MindWeaveError as error:
        return error.code
    return "ok"


@pytest.fixture
async def person(auth: Auth) -> Person:
    return await auth.register()


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
        self, auth: Auth, clock: ManualClock
    ) -> None:
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


class TestLogin:
    async def test_a_login_gives_tokens_that_name_the_user(
        self, auth: Auth, person: Person, published: Published
    ) -> None:
        pair = await auth.login(person)
        assert (pair.token_type, pair.expires_in) == ("Bearer", 600)
        principal = await auth.verifier.verify(pair.access_token)
        assert (principal.kind, principal.user_id) == ("user", person.id)
        login, audited = await published()
        assert login.type == "user.login"
        assert login.data == {
            "user_id": str(person.id),
            "session_id": str(principal.session_id),
        }
        assert audited.type == "audit.recorded"

    async def test_an_access_token_ends_after_ten_minutes(
        self, auth: Auth, person: Person, clock: ManualClock
    ) -> None:
        pair = await auth.login(person)
        clock.advance(timedelta(seconds=599))
        await auth.verifier.verify(pair.access_token)
        clock.advance(timedelta(seconds=1))
        with pytest.raises(Unauthenticated):
            await auth.verifier.verify(pair.access_token)

    async def test_case_and_blanks_of_the_address_do_not_matter(
        self, auth: Auth, person: Person
    ) -> None:
        request = pb.LoginRequest(email=f" {person.email.upper()}\t", password=person.password)
        assert (await auth.call("Login", request)).access_token

    async def test_a_wrong_password_and_an_unknown_address_answer_alike(
        self, auth: Auth, person: Person
    ) -> None:
        errors = []
        for email in (person.email, f"{uuid4().hex}@example.org", "no address"):
            with pytest.raises(Unauthenticated) as refused:
                await auth.call("Login", pb.LoginRequest(email=email, password="wrong"))
            errors.append((refused.value.code, refused.value.detail, refused.value.fields))
        assert set(errors) == {("invalid_credentials", errors[0][1], ())}

    async def test_a_password_typed_on_another_keyboard_is_the_same(self, auth: Auth) -> None:
        person = await auth.register("une phrase secrète ﬁne")
        assert await auth.login(person, "une phrase secre\u0300te fine")

    async def test_the_eleventh_guess_is_refused_even_if_it_is_right(
        self, auth: Auth, person: Person, clock: ManualClock
    ) -> None:
        for _ in range(10):
            assert await outcome(auth.login(person, "wrong")) == "invalid_credentials"
        assert await outcome(auth.login(person)) == "too_many_attempts"
        clock.advance(timedelta(minutes=5))
        await auth.login(person)

    async def test_parallel_guesses_do_not_beat_the_limit(self, auth: Auth, person: Person) -> None:
        guesses = (outcome(auth.login(person, f"wrong {n}")) for n in range(30))
        outcomes = await asyncio.gather(*guesses)
        assert outcomes.count("invalid_credentials") == 10
        assert outcomes.count("too_many_attempts") == 20

    async def test_guesses_at_an_unknown_address_are_limited_alike(self, auth: Auth) -> None:
        nobody = Person(uuid4(), f"{uuid4().hex}@example.org", "wrong")
        outcomes = [await outcome(auth.login(nobody)) for _ in range(11)]
        assert outcomes == ["invalid_credentials"] * 10 + ["too_many_attempts"]

    async def test_a_success_starts_the_count_anew(self, auth: Auth, person: Person) -> None:
        for _ in range(2):
            for _ in range(9):
                await outcome(auth.login(person, "wrong"))
            await auth.login(person)

    async def test_many_devices_may_sign_in_at_once(self, auth: Auth, person: Person) -> None:
        pairs = await asyncio.gather(*(auth.login(person) for _ in range(15)))
        assert len({pair.refresh_token for pair in pairs}) == 15


class TestRefresh:
    async def test_a_refresh_token_is_spent_for_the_next_pair(
        self, auth: Auth, person: Person
    ) -> None:
        pair = await auth.login(person)
        following = await auth.refresh(pair.refresh_token)
        assert following.refresh_token != pair.refresh_token
        assert await auth.who(following) == await auth.who(pair)

    async def test_a_second_use_of_a_refresh_token_ends_the_session(
        self, auth: Auth, person: Person, clock: ManualClock, published: Published
    ) -> None:
        pair = await auth.login(person)
        session = await auth.who(pair)
        following = await auth.refresh(pair.refresh_token)
        clock.advance(timedelta(seconds=11))
        assert await outcome(auth.refresh(pair.refresh_token)) == "invalid_refresh_token"
        assert await outcome(auth.refresh(following.refresh_token)) == "invalid_refresh_token"
        ended = [e for e in await published() if e.type == "user.session.invalid"]
        assert [e.data for e in ended] == [
            {
                "user_id": str(person.id),
                "session_id": str(session.session_id),
                "reason": "refresh_reused",
            }
        ]

    async def test_two_tabs_that_refresh_one_after_the_other_stay_signed_in(
        self, auth: Auth, person: Person, clock: ManualClock
    ) -> None:
        pair = await auth.login(person)
        first = await auth.refresh(pair.refresh_token)
        clock.advance(timedelta(seconds=10))
        second = await auth.refresh(pair.refresh_token)
        assert second.refresh_token == first.refresh_token
        clock.advance(timedelta(minutes=10))
        assert await auth.refresh(second.refresh_token)

    async def test_tabs_that_refresh_at_once_get_the_same_token(
        self, auth: Auth, person: Person, clock: ManualClock
    ) -> None:
        pair = await auth.login(person)
        answers = await asyncio.gather(*(auth.refresh(pair.refresh_token) for _ in range(10)))
        (token,) = {answer.refresh_token for answer in answers}
        clock.advance(timedelta(minutes=10))
        assert await auth.refresh(token)

    async def test_a_slow_tab_gets_the_newest_token(self, auth: Auth, person: Person) -> None:
        pair = await auth.login(person)
        second = await auth.refresh(pair.refresh_token)
        third = await auth.refresh(second.refresh_token)
        slow = await auth.refresh(pair.refresh_token)
        assert slow.refresh_token == third.refresh_token

    async def test_a_session_that_is_not_refreshed_expires(
        self, auth: Auth, person: Person, clock: ManualClock
    ) -> None:
        pair = await auth.login(person)
        clock.advance(timedelta(days=29))
        following = await auth.refresh(pair.refresh_token)
        clock.advance(timedelta(days=30))
        assert await outcome(auth.refresh(following.refresh_token)) == "invalid_refresh_token"

    async def test_no_session_lasts_longer_than_ninety_days(
        self, auth: Auth, person: Person, clock: ManualClock
    ) -> None:
        token = (await auth.login(person)).refresh_token
        for _ in range(4):
            clock.advance(timedelta(days=20))
            token = (await auth.refresh(token)).refresh_token
        clock.advance(timedelta(days=10) - timedelta(seconds=30))
        last = await auth.refresh(token)
        assert last.expires_in == 30
        clock.advance(timedelta(seconds=30))
        assert await outcome(auth.refresh(last.refresh_token)) == "invalid_refresh_token"

    @pytest.mark.parametrize("token", ["x", "mwr_" + "A" * 43, "é"])
    async def test_an_unknown_token_is_refused(self, auth: Auth, token: str) -> None:
        assert await outcome(auth.refresh(token)) == "invalid_refresh_token"


class TestSessions:
    async def test_a_session_shows_where_it_is_used(self, auth: Auth, person: Person) -> None:
        request = pb.LoginRequest(email=person.email, password=person.password)
        answer = await auth.answer("Login", request, ip="192.0.2.9")
        here = await auth.who(answer.message)
        there = await auth.sign_in(person)
        listed = await auth.call("ListSessions", pb.ListSessionsRequest(), here)
        shown = {session.id: session for session in listed.sessions}
        assert shown.keys() == {str(here.session_id), str(there.session_id)}
        assert shown[str(here.session_id)].ip == "192.0.2.9"
        assert shown[str(here.session_id)].current
        assert not shown[str(there.session_id)].current
        assert not listed.HasField("next_page_token")

    async def test_sessions_come_in_pages(self, auth: Auth, person: Person) -> None:
        caller, *_ = [await auth.sign_in(person) for _ in range(3)]
        first = await auth.call("ListSessions", pb.ListSessionsRequest(page_size=2), caller)
        rest = pb.ListSessionsRequest(page_size=2, page_token=first.next_page_token)
        second = await auth.call("ListSessions", rest, caller)
        assert len({s.id for s in [*first.sessions, *second.sessions]}) == 3
        assert not second.HasField("next_page_token")

    async def test_logout_ends_the_session_and_says_so(
        self, auth: Auth, person: Person, published: Published
    ) -> None:
        pair = await auth.login(person)
        caller = await auth.who(pair)
        await auth.call("Logout", pb.LogoutRequest(), caller)
        await auth.call("Logout", pb.LogoutRequest(), caller)
        assert await outcome(auth.refresh(pair.refresh_token)) == "invalid_refresh_token"
        types = [envelope.type for envelope in await published()]
        assert types.count("user.logout") == types.count("user.session.invalid") == 1

    async def test_one_session_is_ended_and_the_others_are_not(
        self, auth: Auth, person: Person
    ) -> None:
        here, there = await auth.sign_in(person), await auth.sign_in(person)
        await auth.call("DeleteSession", pb.DeleteSessionRequest(id=str(there.session_id)), here)
        assert await auth.is_open(here)
        assert not await auth.is_open(there)

    async def test_a_session_of_another_user_does_not_exist(
        self, auth: Auth, person: Person
    ) -> None:
        caller = await auth.sign_in(person)
        stranger = await auth.sign_in(await auth.register())
        for session_id in (stranger.session_id, uuid4()):
            with pytest.raises(NotFound):
                await auth.call(
                    "DeleteSession", pb.DeleteSessionRequest(id=str(session_id)), caller
                )
        assert await auth.is_open(stranger)

    async def test_all_others_are_ended_at_once(
        self, auth: Auth, person: Person, published: Published
    ) -> None:
        here, *others = [await auth.sign_in(person) for _ in range(3)]
        stranger = await auth.sign_in(await auth.register())
        await auth.call("DeleteOtherSessions", pb.DeleteOtherSessionsRequest(), here)
        assert await auth.is_open(here)
        assert await auth.is_open(stranger)
        assert not any([await auth.is_open(other) for other in others])
        ended = {
            e.data["session_id"]
            for e in await published()
            if e.type == "user.session.invalid" and isinstance(e.data, dict)
        }
        assert ended == {str(other.session_id) for other in others}

    async def test_two_sessions_that_end_each_other_do_not_lock_each_other_up(
        self, auth: Auth, person: Person
    ) -> None:
        one, other = await auth.sign_in(person), await auth.sign_in(person)
        request = pb.DeleteOtherSessionsRequest()
        outcomes = await asyncio.gather(
            outcome(auth.call("DeleteOtherSessions", request, one)),
            outcome(auth.call("DeleteOtherSessions", request, other)),
        )
        assert sorted(outcomes) == ["ok", "session_ended"]

    async def test_an_ended_session_changes_nothing_with_its_last_access_token(
        self, auth: Auth, person: Person
    ) -> None:
        caller = await auth.sign_in(person)
        await auth.call("Logout", pb.LogoutRequest(), caller)
        attempts = {
            "UpdateMe": pb.UpdateMeRequest(display_name="Eve"),
            "CreateApiKey": pb.CreateApiKeyRequest(name="k", scopes=["org:read"]),
            "DeleteApiKey": pb.DeleteApiKeyRequest(id=str(uuid4())),
            "DeleteSession": pb.DeleteSessionRequest(id=str(uuid4())),
            "DeleteOtherSessions": pb.DeleteOtherSessionsRequest(),
            "ChangePassword": pb.ChangePasswordRequest(
                current_password=PASSWORD, password=NEW_PASSWORD
            ),
        }
        for method, request in attempts.items():
            assert await outcome(auth.call(method, request, caller)) == "session_ended"


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
