"""The rules of identity."""

from __future__ import annotations

import hashlib
import string
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import Invalid, PreconditionFailed
from common.identity.api_keys import KeyKind, is_well_formed, new_secret
from common.identity.permissions import PROJECT_SCOPES, SCOPES
from services.auth.domain.api_keys import (
    EXCHANGED_FOR,
    NewKey,
    Owner,
    check_scopes,
    new_key,
    secret_digest,
    shown_prefix,
)
from services.auth.domain.limits import Limit, admit
from services.auth.domain.passwords import check_password
from services.auth.domain.sessions import (
    GRACE,
    LONGEST_SESSION,
    RefreshToken,
    Session,
    conceal_successor,
    new_refresh_token,
    reveal_successor,
    shortened,
    token_digest,
)
from services.auth.domain.signing_keys import (
    LEAD,
    OVERLAP,
    ROTATE_AFTER,
    SigningKey,
    new_signing_key,
    next_start,
    published,
    signer,
)
from services.auth.domain.users import User, clean_email, email_key

pytestmark = pytest.mark.unit

NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)
TEN_IN_FIVE_MINUTES = Limit("guesses", 10, timedelta(minutes=5))


def a_user() -> User:
    return User(uuid4(), "ada@example.org", "Ada", False, 1, NOW, NOW)


def a_session() -> Session:
    return Session(uuid4(), uuid4(), NOW, NOW, NOW + timedelta(days=30), "192.0.2.1", "curl/8")


def the_fields(refused: pytest.ExceptionInfo[Invalid]) -> list[tuple[str, str]]:
    return [(field.pointer, field.code) for field in refused.value.fields]


class TestAddresses:
    def test_an_address_is_shown_as_it_was_written_without_blanks(self) -> None:
        assert clean_email("  Ada.Lovelace@Example.ORG\t") == "Ada.Lovelace@Example.ORG"

    def test_two_spellings_of_one_address_are_the_same_address(self) -> None:
        assert email_key(" ADA@Example.org ") == email_key("ada@example.ORG")

    def test_composed_and_decomposed_letters_are_the_same_address(self) -> None:
        assert email_key("ren\u00e9@example.org") == email_key("rene\u0301@example.org")

    def test_case_is_folded_beyond_ascii(self) -> None:
        assert email_key("STRASSE@example.org") == email_key("straße@example.org")

    def test_two_people_have_two_addresses(self) -> None:
        assert email_key("ada@example.org") != email_key("ada@example.com")

    @given(st.text())
    def test_the_key_of_a_key_is_the_key(self, text: str) -> None:
        assert email_key(email_key(text)) == email_key(text)


class TestUsers:
    def test_a_new_name_is_a_new_version(self) -> None:
        renamed = a_user().renamed("Ada L.", NOW + timedelta(days=1))
        assert (renamed.display_name, renamed.version) == ("Ada L.", 2)
        assert renamed.updated_at == NOW + timedelta(days=1)

    def test_the_same_name_changes_nothing(self) -> None:
        user = a_user()
        assert user.renamed("Ada", NOW + timedelta(days=1)) == user

    def test_a_change_made_for_another_version_is_refused(self) -> None:
        a_user().expect(None)
        a_user().expect(1)
        with pytest.raises(PreconditionFailed):
            a_user().expect(2)


class TestPasswords:
    def accepted(self, password: str) -> str:
        return check_password(password, email="ada@example.org", display_name="Ada Lovelace")

    def test_fifteen_characters_are_enough(self) -> None:
        assert self.accepted("x" * 15) == "x" * 15
        with pytest.raises(Invalid) as refused:
            self.accepted("x" * 14)
        assert the_fields(refused) == [("/password", "too_short")]

    def test_256_characters_are_the_most(self) -> None:
        assert self.accepted("é" * 256) == "é" * 256
        with pytest.raises(Invalid) as refused:
            self.accepted("x" * 257)
        assert the_fields(refused) == [("/password", "too_long")]

    def test_length_is_counted_in_the_normal_form(self) -> None:
        # One character that is written with eighteen.
        assert len(self.accepted("\ufdfa")) == 18
        with pytest.raises(Invalid):
            self.accepted("e\u0301" * 14)

    def test_two_keyboards_give_the_same_password(self) -> None:
        assert self.accepted("passphrase ﬁfteen é") == self.accepted("passphrase fifteen e\u0301")

    @pytest.mark.parametrize("password", ["ADA@example.org", "Ada@Example.Org "])
    def test_the_address_is_no_password(self, password: str) -> None:
        with pytest.raises(Invalid) as refused:
            self.accepted(password)
        assert the_fields(refused) == [("/password", "names_user")]

    def test_the_display_name_is_no_password(self) -> None:
        with pytest.raises(Invalid) as refused:
            check_password(
                "ada king lovelace", email="ada@example.org", display_name="Ada King Lovelace"
            )
        assert the_fields(refused) == [("/password", "names_user")]

    def test_a_refused_password_is_not_repeated_in_the_error(self) -> None:
        with pytest.raises(Invalid) as refused:
            self.accepted("hunter2")
        assert "hunter2" not in str(refused.value) + repr(refused.value.fields)


class TestRefreshTokens:
    def test_a_token_holds_256_random_bits(self) -> None:
        tokens = {new_refresh_token() for _ in range(100)}
        assert len(tokens) == 100
        assert {len(token) for token in tokens} == {len("mwr_") + 43}

    def test_a_successor_is_read_with_the_token_before_it_and_with_no_other(self) -> None:
        spent, successor = new_refresh_token(), new_refresh_token()
        concealed = conceal_successor(spent, successor)
        assert reveal_successor(spent, concealed) == successor
        assert reveal_successor(new_refresh_token(), concealed) != successor

    def test_what_is_stored_shows_neither_token(self) -> None:
        spent, successor = new_refresh_token(), new_refresh_token()
        concealed = conceal_successor(spent, successor)
        assert concealed != token_digest(successor) != token_digest(spent)
        assert token_digest(spent) == hashlib.sha256(spent.encode()).digest()

    def test_the_grace_lasts_ten_seconds_from_the_first_use(self) -> None:
        token = RefreshToken(b"d", uuid4(), NOW, b"s")
        assert token.in_grace(NOW)
        assert token.in_grace(NOW + GRACE)
        assert not token.in_grace(NOW + GRACE + timedelta(microseconds=1))
        assert timedelta(seconds=10) == GRACE

    def test_an_unspent_token_is_in_no_grace(self) -> None:
        assert not RefreshToken(b"d", uuid4(), None, None).in_grace(NOW)


class TestSessions:
    def test_a_refresh_moves_the_end(self) -> None:
        later = NOW + timedelta(days=10)
        seen = a_session().seen(later, timedelta(days=30), "192.0.2.2", "firefox")
        assert seen.expires_at == later + timedelta(days=30)
        assert (seen.last_seen_at, seen.ip, seen.user_agent) == (later, "192.0.2.2", "firefox")

    def test_no_refresh_moves_the_end_past_ninety_days(self) -> None:
        seen = a_session().seen(NOW + timedelta(days=80), timedelta(days=30), None, None)
        assert seen.expires_at == NOW + LONGEST_SESSION

    def test_a_refresh_from_nowhere_keeps_what_was_known(self) -> None:
        seen = a_session().seen(NOW, timedelta(days=30), None, None)
        assert (seen.ip, seen.user_agent) == ("192.0.2.1", "curl/8")

    def test_a_user_agent_is_kept_as_far_as_people_read_it(self) -> None:
        assert shortened("x" * 10_000) == "x" * 512
        assert shortened("curl\x00/8\n") == "curl/8"
        assert shortened("") is None
        assert shortened("\n") is None


class TestApiKeys:
    @pytest.mark.parametrize(("kind", "mark"), [("user", "mwu_"), ("project", "mwp_")])
    def test_a_key_shows_its_kind(self, kind: KeyKind, mark: str) -> None:
        secret = new_secret(kind)
        assert secret.startswith(mark)
        assert is_well_formed(secret)

    def test_a_key_has_at_least_160_random_bits(self) -> None:
        random = new_secret("user")[4:-6]
        assert 62 ** len(random) > 2**160
        assert set(random) <= set(string.ascii_letters + string.digits)

    @given(st.integers(0, 41), st.sampled_from(string.ascii_letters + string.digits + "_-é"))
    def test_a_key_with_one_wrong_character_is_no_key(self, at: int, wrong: str) -> None:
        secret = new_secret("user")
        mistyped = secret[:at] + wrong + secret[at + 1 :]
        assert is_well_formed(mistyped) == (mistyped == secret)

    @pytest.mark.parametrize("text", ["", "mwu_", "mwx_" + "a" * 38, "é" * 42, "mwu_" + "0" * 400])
    def test_what_is_no_key_is_seen_without_a_look_up(self, text: str) -> None:
        assert not is_well_formed(text)

    def test_a_user_s_key_is_not_well_formed_as_a_project_s(self) -> None:
        assert not is_well_formed("mwp_" + new_secret("user")[4:])

    def test_only_the_prefix_and_the_digest_are_kept(self) -> None:
        key, secret = new_key(Owner(user_id=uuid4()), NewKey("ci", ["org:read"]), None, NOW)
        assert key.prefix == shown_prefix(secret) == secret[:12]
        assert secret[12:] not in repr(key)
        assert secret_digest(secret) == hashlib.sha256(secret.encode()).digest()

    def test_an_unknown_scope_is_named_by_its_place(self) -> None:
        with pytest.raises(Invalid) as refused:
            check_scopes("user", ["org:read", "org:paint", "events:write", ""])
        assert the_fields(refused) == [
            ("/scopes/1", "unknown_scope"),
            ("/scopes/3", "unknown_scope"),
        ]

    def test_a_user_s_key_takes_every_scope_and_no_self_service(self) -> None:
        assert set(check_scopes("user", sorted(SCOPES))) == SCOPES
        with pytest.raises(Invalid):
            check_scopes("user", ["self:write"])

    def test_a_project_s_key_takes_nothing_that_reaches_beyond_its_project(self) -> None:
        assert set(check_scopes("project", sorted(PROJECT_SCOPES))) == PROJECT_SCOPES
        for scope in SCOPES - PROJECT_SCOPES:
            with pytest.raises(Invalid):
                check_scopes("project", [scope])

    def test_a_key_that_would_have_expired_is_not_made(self) -> None:
        with pytest.raises(Invalid) as refused:
            new_key(Owner(user_id=uuid4()), NewKey("ci", ["org:read"], NOW), None, NOW)
        assert the_fields(refused) == [("/expires_at", "in_past")]

    def test_a_key_s_token_ends_with_the_key(self) -> None:
        soon = NOW + timedelta(seconds=20)
        key, _ = new_key(Owner(user_id=uuid4()), NewKey("ci", ["org:read"], soon), None, NOW)
        assert key.valid_until(NOW - EXCHANGED_FOR) == NOW
        assert key.valid_until(NOW) == soon
        assert key.valid_until(soon) is None

    def test_a_key_speaks_for_its_owner_and_scopes_alone(self) -> None:
        org_id, project_id = uuid4(), uuid4()
        owner = Owner(org_id=org_id, project_id=project_id)
        key, _ = new_key(owner, NewKey("ingest", ["events:write"]), uuid4(), NOW)
        principal = key.principal()
        assert (principal.kind, principal.user_id) == ("project_key", None)
        assert (principal.org_id, principal.project_id) == (org_id, project_id)
        assert principal.scopes == {"events:write"}


class TestSigningKeys:
    def in_use_since(self, *ages: timedelta) -> list[SigningKey]:
        return [new_signing_key(NOW - age) for age in ages]

    def test_the_first_key_signs_at_once(self) -> None:
        assert next_start([], NOW) == NOW

    def test_the_next_key_is_made_before_it_is_needed(self) -> None:
        young = self.in_use_since(ROTATE_AFTER - LEAD - timedelta(seconds=1))
        old = self.in_use_since(ROTATE_AFTER - LEAD)
        assert next_start(young, NOW) is None
        assert next_start(old, NOW) == NOW + LEAD

    def test_a_key_that_is_overdue_is_still_published_before_it_signs(self) -> None:
        assert next_start(self.in_use_since(ROTATE_AFTER * 3), NOW) == NOW + LEAD

    def test_no_second_key_is_made_while_one_waits(self) -> None:
        keys = [*self.in_use_since(ROTATE_AFTER * 3), new_signing_key(NOW + LEAD)]
        assert next_start(keys, NOW) is None

    def test_a_published_key_does_not_sign_before_its_time(self) -> None:
        old, new = [*self.in_use_since(ROTATE_AFTER), new_signing_key(NOW + LEAD)]
        assert published([new, old], NOW) == [old, new]
        assert signer([new, old], NOW) is old
        assert signer([new, old], NOW + LEAD) is new

    def test_a_key_stays_published_while_a_token_of_it_may_live(self) -> None:
        old, new = self.in_use_since(ROTATE_AFTER, timedelta())
        assert timedelta(minutes=15) < OVERLAP
        assert published([old, new], NOW + OVERLAP - timedelta(seconds=1)) == [old, new]
        assert published([old, new], NOW + OVERLAP) == [new]

    def test_a_clock_that_went_back_still_finds_a_key(self) -> None:
        keys = [new_signing_key(NOW)]
        assert signer(keys, NOW - timedelta(days=1)) is keys[0]

    def test_without_keys_nothing_is_signed(self) -> None:
        with pytest.raises(LookupError):
            signer([], NOW)

    def test_a_key_is_named_by_its_thumbprint(self) -> None:
        first, second = new_signing_key(NOW), new_signing_key(NOW)
        assert first.kid != second.kid
        assert len(first.kid) == 43
        assert "private" not in repr(first)


class TestLimits:
    def test_the_window_slides(self) -> None:
        moments = tuple(NOW + timedelta(seconds=30 * n) for n in range(10))
        after = admit(TEN_IN_FIVE_MINUTES, moments, NOW + timedelta(seconds=299))
        assert after.retry_at == NOW + timedelta(minutes=5)
        assert admit(TEN_IN_FIVE_MINUTES, moments, NOW + timedelta(minutes=5)).retry_at is None

    def test_a_refused_attempt_does_not_prolong_the_wait(self) -> None:
        full = (NOW,) * 10
        assert admit(TEN_IN_FIVE_MINUTES, full, NOW + timedelta(minutes=1)).moments == full

    @given(st.lists(st.integers(0, 2000), min_size=1, max_size=80))
    def test_no_window_ever_holds_more_than_the_limit(self, seconds: list[int]) -> None:
        admitted: list[datetime] = []
        moments: tuple[datetime, ...] = ()
        for second in sorted(seconds):
            now = NOW + timedelta(seconds=second)
            admission = admit(TEN_IN_FIVE_MINUTES, moments, now)
            moments = admission.moments
            if admission.retry_at is None:
                admitted.append(now)
        for moment in admitted:
            window = [m for m in admitted if moment <= m < moment + TEN_IN_FIVE_MINUTES.window]
            assert len(window) <= TEN_IN_FIVE_MINUTES.most
