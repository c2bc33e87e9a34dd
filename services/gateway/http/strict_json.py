"""JSON as RFC 8259 means it and no looser: UTF-8, one value, no key twice, no NaN, not too deep."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from common.errors import FieldError, Invalid

MAX_DEPTH = 64


class _Refused(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _Refused(f"the key {json.dumps(key[:100])} occurs twice in an object")
            seen.add(key)
    return made


def _constant(name: str) -> NoReturn:
    raise _Refused(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)


def parse(body: bytes) -> Any:
    """The value that the body holds.

    Raises:
        Invalid: it is not JSON; the code is ``invalid_json``.
    """
    try:
        value = _DECODER.decode(body.decode())
    except RecursionError:
        raise _invalid(f"it is nested deeper than {MAX_DEPTH} levels") from None
    except UnicodeDecodeError as error:
        raise _invalid(f"byte {error.start} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise _invalid(f"{error.msg} (line {error.lineno}, column {error.colno})") from None
    except _Refused as error:
        raise _invalid(str(error)) from None
    except ValueError:
        raise _invalid("a number has too many digits") from None
    if _deeper_than(value, MAX_DEPTH):
        raise _invalid(f"it is nested deeper than {MAX_DEPTH} levels")
    return value


def _deeper_than(value: Any, depth: int) -> bool:
    """Whether more than ``depth`` objects and arrays stand inside each other."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(depth):
        level = [
            item
            for outer in level
            for item in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(item, dict | list)
        ]
        if not level:
            return False
    return bool(level)


def _invalid(reason: str) -> Invalid:
    return Invalid(
        f"The body is not valid JSON: {reason}.",
        code="invalid_json",
        fields=[FieldError("", "invalid_json", reason)],
    )
