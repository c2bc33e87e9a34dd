"""Whether a request has the shape that its proto demands."""

from __future__ import annotations

from google.protobuf.message import DecodeError
from protovalidate import Validator, Violation

from common.errors import FieldError, Invalid
from common.rpc.contract import Operation
from common.rpc.exchange import Check, Exchange


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
            exchange.message = message

        return check


def invalid(violations: list[Violation]) -> Invalid:
    """The error that names every field that breaks a rule."""
    fields = [_field_error(violation) for violation in violations]
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


def _pointer(violation: Violation) -> str:
    """The field's path as a JSON pointer (RFC 6901)."""
    parts: list[str] = []
    path = violation.proto.field
    for element in path.elements if path is not None else ():
        parts.append(element.field_name)
        if element.subscript is not None:
            parts.append(str(element.subscript.value))
    return "".join(f"/{part.replace('~', '~0').replace('/', '~1')}" for part in parts)
