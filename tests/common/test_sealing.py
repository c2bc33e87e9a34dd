from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.identity.sealing import SealBroken, Sealer

pytestmark = pytest.mark.unit

KEY = bytes(range(32))


@given(st.binary(), st.binary())
def test_what_was_sealed_can_be_opened_in_its_place(value: bytes, context: bytes) -> None:
    sealer = Sealer(KEY)
    assert sealer.open(sealer.seal(value, context), context) == value


def test_a_sealed_secret_is_not_to_be_read_and_looks_different_each_time() -> None:
    sealer = Sealer(KEY)
    first, second = (sealer.seal(b"mwu_a-secret-key", b"place") for _ in range(2))
    assert b"secret" not in first
    assert first != second


@given(st.binary(), st.binary())
def test_a_fingerprint_is_the_same_for_the_same_value_and_key_only(
    value: bytes, other: bytes
) -> None:
    sealer = Sealer(KEY)
    assert (sealer.fingerprint(value) == sealer.fingerprint(other)) == (value == other)
    assert sealer.fingerprint(value) != Sealer(KEY[::-1]).fingerprint(value)


@given(st.data())
def test_a_sealed_value_that_was_changed_anywhere_is_refused(data: st.DataObject) -> None:
    sealer = Sealer(KEY)
    sealed = bytearray(sealer.seal(b"a value", b"place"))
    at = data.draw(st.integers(0, len(sealed) - 1))
    sealed[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(SealBroken):
        sealer.open(bytes(sealed), b"place")


@pytest.mark.parametrize("sealed", [b"", b"\x01", b"\x01" + bytes(12), b"a value in the clear"])
def test_what_was_never_sealed_is_refused(sealed: bytes) -> None:
    with pytest.raises(SealBroken):
        Sealer(KEY).open(sealed, b"place")


def test_another_key_or_another_place_does_not_open_it() -> None:
    sealed = Sealer(KEY).seal(b"a value", b"place")
    with pytest.raises(SealBroken):
        Sealer(bytes(32)).open(sealed, b"place")
    with pytest.raises(SealBroken):
        Sealer(KEY).open(sealed, b"elsewhere")


def test_a_key_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Sealer(b"short")
