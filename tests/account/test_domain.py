"""Organizations without I/O: slugs, versions, names."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import Invalid, PreconditionFailed
from common.names import clean_name
from services.account.domain import Org, slug_candidates, slug_of

pytestmark = pytest.mark.unit

NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)


def org(**changes: object) -> Org:
    fields = {
        "id": uuid4(),
        "name": "Acme",
        "slug": "acme",
        "state": "active",
        "version": 3,
        "created_by": uuid4(),
        "created_at": NOW,
        "updated_at": NOW,
    }
    return Org(**(fields | changes))


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("Acme", "acme"),
        ("Acme, Inc.", "acme-inc"),
        ("Crème Brûlée", "creme-brulee"),
        ("  --A  B--  ", "a-b"),
        ("株式会社", "org"),
        ("x" * 200, "x" * 63),
        ("y" * 62 + " z", "y" * 62),
    ],
)
def test_a_slug_is_made_of_the_names_letters_and_digits(name: str, slug: str) -> None:
    assert slug_of(name) == slug


@given(st.text(max_size=200), st.uuids())
def test_every_slug_candidate_is_lower_case_letters_digits_and_hyphens(
    name: str, org_id: UUID
) -> None:
    candidates = list(slug_candidates(name, org_id))
    assert len(set(candidates)) == len(candidates)
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug) for slug in candidates)
    assert all(len(slug) <= 63 for slug in candidates)
    assert candidates[-1].endswith(org_id.hex)


def test_renaming_keeps_the_slug_and_moves_the_version() -> None:
    renamed = org().renamed("Other", NOW.replace(hour=13))
    assert (renamed.name, renamed.slug, renamed.version) == ("Other", "acme", 4)
    assert renamed.updated_at == NOW.replace(hour=13)


def test_the_same_name_again_changes_nothing() -> None:
    same = org()
    assert same.renamed("Acme", NOW.replace(hour=13)) is same


def test_a_change_for_an_older_version_is_refused() -> None:
    org().expect(None)
    org().expect(3)
    with pytest.raises(PreconditionFailed):
        org().expect(2)


@pytest.mark.parametrize("name", ["", "   ", "\t\n", "\u200b", "a\x00b", "a\nb", "\ud800"])
def test_a_name_is_not_blank_and_stands_on_one_line(name: str) -> None:
    with pytest.raises(Invalid) as refused:
        clean_name(name)
    assert refused.value.fields[0].pointer == "/name"


def test_a_name_is_trimmed_and_composed() -> None:
    assert clean_name("  Cre\u0300me  ") == "Crème"
