"""From JSON and query parameters to messages: exact types, and every fault is told."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp

from common.errors import FieldError, Invalid
from services.gateway.http.shapes import Field, fields_of

MAX_FAULTS = 100
_SHOWN_NAME = 200

_TIME = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)", re.ASCII
)
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,19})", re.ASCII)
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?", re.ASCII)
_UNSENDABLE = re.compile("[\x00\ud800-\udfff]")


class Faults:
    """Collects what is wrong with a request, up to ``MAX_FAULTS``."""

    def __init__(self) -> None:
        self.found: list[FieldError] = []

    def add(self, pointer: str, code: str, message: str) -> None:
        if len(self.found) < MAX_FAULTS:
            self.found.append(FieldError(pointer, code, message))

    def raise_any(self) -> None:
        """Refuse the request where anything is wrong.

        Raises:
            Invalid: with every fault.
        """
        if self.found:
            first = self.found[0]
            raise Invalid(f"{first.pointer or 'The body'} {first.message}.", fields=self.found)


def child(pointer: str, name: str | int) -> str:
    """The JSON pointer of a member (RFC 6901); a very long name is cut."""
    text = _UNSENDABLE.sub("\ufffd", str(name)[:_SHOWN_NAME])
    return f"{pointer}/{text.replace('~', '~0').replace('/', '~1')}"


class ObjectReader:
    """Reads the JSON object that stands for a message.

    Args:
        descriptor: of the message.
        hidden: fields that the body does not carry: those of the path, an update mask.
        partial: the body is a merge patch (RFC 7396): nothing is required, and null clears only
            fields in ``clearable``.
        clearable: see ``partial``.
    """

    def __init__(
        self,
        descriptor: Descriptor,
        *,
        hidden: Iterable[str] = (),
        partial: bool = False,
        clearable: Iterable[str] = (),
    ) -> None:
        without = set(hidden)
        self._fields: dict[str, tuple[Field, Check, bool]] = {}
        for field in fields_of(descriptor).values():
            if field.name not in without and field.kind != "mask":
                null = field.name in set(clearable) if partial else field.nullable
                self._fields[field.name] = (field, _check(field), null)
        self._required = (
            ()
            if partial
            else tuple(name for name, (field, _, _) in self._fields.items() if field.required)
        )

    def check(self, value: Any, pointer: str, faults: Faults) -> None:
        """Collect what is wrong with ``value``."""
        if not isinstance(value, dict):
            faults.add(pointer, "invalid_type", f"must be an object, not {_named(value)}")
            return
        for name, item in value.items():
            known = self._fields.get(name)
            here = child(pointer, name)
            if known is None:
                faults.add(here, "unknown_field", "is not a field of this body")
            elif item is not None:
                known[1](item, here, faults)
            elif not known[2]:
                faults.add(here, "invalid_type", "must not be null")
        for name in self._required:
            if name not in value:
                faults.add(child(pointer, name), "missing_field", "is required")


Check = Callable[[Any, str, Faults], None]


def _check(field: Field) -> Check:
    one = _CHECKS[field.kind](field)
    if not field.repeated:
        return one

    def many(value: Any, pointer: str, faults: Faults) -> None:
        if not isinstance(value, list):
            faults.add(pointer, "invalid_type", f"must be an array, not {_named(value)}")
            return
        for index, item in enumerate(value):
            one(item, child(pointer, index), faults)

    return many


def _string(_: Field) -> Check:
    def check(value: Any, pointer: str, faults: Faults) -> None:
        if not isinstance(value, str):
            faults.add(pointer, "invalid_type", f"must be a string, not {_named(value)}")
        elif _UNSENDABLE.search(value):
            faults.add(pointer, "invalid_value", "must not hold U+0000 or a lone surrogate")

    return check


def _boolean(_: Field) -> Check:
    def check(value: Any, pointer: str, faults: Faults) -> None:
        if not isinstance(value, bool):
            faults.add(pointer, "invalid_type", f"must be true or false, not {_named(value)}")

    return check


def _integer(field: Field) -> Check:
    def check(value: Any, pointer: str, faults: Faults) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            faults.add(pointer, "invalid_type", f"must be an integer, not {_named(value)}")
        elif not field.low <= value <= field.high:
            faults.add(pointer, "invalid_value", f"must be {field.low} to {field.high}")

    return check


def _number(_: Field) -> Check:
    def check(value: Any, pointer: str, faults: Faults) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            faults.add(pointer, "invalid_type", f"must be a number, not {_named(value)}")
        elif not _is_finite(value):
            faults.add(pointer, "invalid_value", "must be a number that fits into 64 bits")

    return check


def _timestamp(_: Field) -> Check:
    def check(value: Any, pointer: str, faults: Faults) -> None:
        if not isinstance(value, str):
            faults.add(pointer, "invalid_type", f"must be a string, not {_named(value)}")
        elif not _is_time(value):
            faults.add(pointer, "invalid_value", "must be a time as RFC 3339 writes it")

    return check


def _nested(field: Field) -> Check:
    return ObjectReader(field.inner).check


def _unsupported(field: Field) -> Check:
    raise ValueError(f"{field.full_name}: the gateway reads no field of this kind")


_CHECKS: Mapping[str, Callable[[Field], Check]] = {
    "string": _string,
    "boolean": _boolean,
    "integer": _integer,
    "number": _number,
    "timestamp": _timestamp,
    "message": _nested,
    "struct": _unsupported,
    "value": _unsupported,
    "mask": _unsupported,
    "bytes": _unsupported,
    "http_body": _unsupported,
}


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _is_time(text: str) -> bool:
    if not _TIME.fullmatch(text):
        return False
    try:
        Timestamp().FromJsonString(text)
    except ValueError:
        return False
    return True


def _named(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int():
            return "an integer"
        case float():
            return "a number with a fraction or exponent"
        case str():
            return "a string"
        case list():
            return "an array"
    return "an object"


class QueryReader:
    """Reads query parameters as fields of a message.

    A repeated field is one parameter whose items are separated by commas.

    Args:
        descriptor: of the message.
        hidden: fields that do not come from the query.
    """

    def __init__(self, descriptor: Descriptor, *, hidden: Iterable[str] = ()) -> None:
        without = set(hidden)
        self._fields = {
            field.name: (field, _check(field))
            for field in fields_of(descriptor).values()
            if field.name not in without and field.kind != "mask"
        }
        nested = [n for n, (field, _) in self._fields.items() if field.kind not in _FROM_TEXT]
        if nested:
            raise ValueError(f"{descriptor.full_name}: {nested} cannot be query parameters")

    def read(
        self, pairs: Iterable[tuple[str | None, str | None]], faults: Faults
    ) -> dict[str, Any]:
        """JSON values by field; ``pairs`` are decoded, None where that failed."""
        found: dict[str, Any] = {}
        for name, text in pairs:
            if name is None or name not in self._fields:
                shown = child("", "?" if name is None else name)
                faults.add(shown, "unknown_parameter", "is not a query parameter of this route")
            elif text is None:
                faults.add(child("", name), "invalid_value", "must be UTF-8, percent-encoded")
            elif name in found:
                faults.add(child("", name), "repeated_parameter", "must be given once")
            else:
                field, check = self._fields[name]
                parse = _FROM_TEXT[field.kind]
                value = [parse(t) for t in text.split(",")] if field.repeated else parse(text)
                check(value, child("", name), faults)
                found[name] = value
        return found


def _integer_of(text: str) -> Any:
    return int(text) if _INTEGER.fullmatch(text) else text


def _number_of(text: str) -> Any:
    return float(text) if _NUMBER.fullmatch(text) else text


def _boolean_of(text: str) -> Any:
    return {"true": True, "false": False}.get(text, text)


_FROM_TEXT: Mapping[str, Callable[[str], Any]] = {
    "string": str,
    "timestamp": str,
    "integer": _integer_of,
    "number": _number_of,
    "boolean": _boolean_of,
}


def message_of(descriptor: Descriptor, values: Mapping[str, Any]) -> Message:
    """The message of values that were checked."""
    message: Message = ParseDict(dict(values), GetMessageClass(descriptor)())
    return message
