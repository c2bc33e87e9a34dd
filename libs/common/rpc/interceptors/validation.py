"""Whether a request has the shape that its proto demands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError, Message

from common.errors import FieldError, Invalid
from common.rpc.contract import Operation
from common.rpc.exchange import Check, Exchange

if TYPE_CHECKING:
    from protovalidate import Validator, Violation


class Validation:
    """Parses requests and holds them against the rules of ``buf.validate``."""

    def __init__(self, validator: Validator) -> None:
        self._validator = validator

    def check(self, operation: Operation) -> Check:
        parse = operation.request_class.FromString
        violations_of = self._validator.collect_violations

        def check(exchange: Exchange) -> None:
            try:
                message = parse(exchange.body)
            except DecodeError:
                raise Invalid("The request is no message of this operation.") from None
            violations = violations_of(message)
            if violations:
                raise invalid(violations)
            if b"\0" in exchange.body and (fields := list(_holding_nul(message))):
                raise _naming(fields)
            exchange.message = message

        return check


def invalid(violations: list[Violation]) -> Invalid:
    """The error that names every field that breaks a rule."""
    return _naming([_field_error(violation) for violation in violations])


def _naming(fields: list[FieldError]) -> Invalid:
    names = ", ".join(dict.fromkeys(field.pointer for field in fields))
    return Invalid(f"These fields are not valid: {names}.", fields=fields)


def _field_error(violation: Violation) -> FieldError:
    told = violation.proto
    required = told.rule_id == "required"
    return FieldError(
        pointer=_pointer(violation),
        code="missing_field" if required else "invalid_value",
        message=told.message or told.rule_id,
    )


def _holding_nul(message: Message, above: str = "") -> Iterator[FieldError]:
    """The texts that hold a NUL, which PostgreSQL keeps in none."""
    for field, held in message.ListFields():
        here = f"{above}/{field.name}"
        each = [(f"{here}/{i}", one) for i, one in enumerate(held)] if field.is_repeated else []
        for pointer, one in each or [(here, held)]:
            if isinstance(one, Message):
                yield from _holding_nul(one, pointer)
            elif isinstance(one, str) and "\0" in one:
                yield FieldError(pointer, "invalid_value", "must not hold U+0000")


def _pointer(violation: Violation) -> str:
    """The field's path as a JSON pointer (RFC 6901)."""
    parts: list[str] = []
    path = violation.proto.field
    for element in path.elements if path is not None else ():
        parts.append(element.field_name)
        if element.subscript is not None:
            parts.append(str(element.subscript.value))
    return "".join(f"/{part.replace('~', '~0').replace('/', '~1')}" for part in parts)
