"""Page tokens give back the key that they were made of, and refuse everything else."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import Invalid
from common.paging import decode_key, decode_token, encode_token, page_size

pytestmark = pytest.mark.unit


@given(st.lists(st.text(st.characters(exclude_characters="\x00")), min_size=1, max_size=3))
def test_a_token_gives_back_its_key(parts: list[str]) -> None:
    assert decode_token(encode_token(*parts), len(parts)) == tuple(parts)


@given(st.text(min_size=1, max_size=100))
def test_what_is_no_token_is_refused_and_named(token: str) -> None:
    with pytest.raises(Invalid) as refused:
        decode_key(token, UUID, int)
    assert refused.value.fields[0].pointer == "/page_token"


def test_parts_are_read_by_their_kind() -> None:
    row = uuid4()
    assert decode_key(encode_token("7", str(row)), int, UUID) == (7, row)
    assert decode_key("", int, UUID) is None


@pytest.mark.parametrize("parts", [("seven", str(uuid4())), ("7",), ("7", "x"), ("7", "8", "9")])
def test_a_token_of_other_parts_is_refused(parts: tuple[str, ...]) -> None:
    with pytest.raises(Invalid):
        decode_key(encode_token(*parts), int, UUID)


def test_a_page_holds_50_rows_when_none_are_asked_for() -> None:
    assert [page_size(asked) for asked in (0, 1, 500)] == [50, 1, 500]
