"""AuthService behind the kit's real gRPC server: signing in, staying signed in."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import uuid4

import pytest

from common.clock import ManualClock
from common.errors import NotFound, Unauthenticated
from mindweave.auth.v1 import auth_pb2 as pb
from tests.auth.conftest import NEW_PASSWORD, PASSWORD, Auth, Person, outcome
from tests.conftest import Published

pytestmark = pytest.mark.rpc


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
