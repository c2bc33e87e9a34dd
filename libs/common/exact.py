"""Sums that JSON can hold."""

from __future__ import annotations

from common.errors import FieldError, Invalid

# The largest integer below which numbers that are doubles leave none out.
MAX_SUM = 2**53


class SumTooLarge(Invalid):
    """A sum of the answer is larger than a JSON number can hold exactly."""

    code = "sum_too_large"


def exact(name: str, total: int, *, asked: str = "/start") -> int:
    """The sum, where JSON can hold it.

    Args:
        name: what it is of.
        total: the sum.
        asked: points at what made it so large.

    Raises:
        SumTooLarge: it is beyond 2^53.
    """
    if abs(total) > MAX_SUM:
        raise SumTooLarge(
            f"The sum of {name} is beyond 2^53; ask for a shorter range or filter.",
            fields=[FieldError(asked, "sum_too_large", f"too much {name} in the range")],
        )
    return total
