"""Generated requests, right and wrong, to every operation of the OpenAPI document."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.openapi.checks import RejectedPositiveData
from schemathesis.specs.openapi.schemas import OpenApiSchema

from tests.e2e.hostile.known import Playground, Rows, every, filled
from tests.e2e.tenant import register, tenant

pytestmark = pytest.mark.e2e

SEED = 20_251_121
RIGHT, WRONG = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
REGISTER = "POST /auth/register"
# Of a request that does not fit the schema.
REFUSALS = [401, 403, 404, 413, 414, 415, 422]
# Rules that a value may break though it fits the schema, in the words of the answer.
BEYOND_SCHEMA = {
    "must not hold U+0000 or a lone surrogate",
    "must hold only printable characters",
    "must be greater than now",
    "not a page token",
    "out of range",
    "must be between the years 1970 and 9000",
    "must be earlier than end",
    "must be later than effective_from",
    "must hold the price of a kind of token",
    "is on a list of leaked passwords; choose another one",
    # To JSON Schema 1.0 is an integer; here an integer is written as one.
    "must be an integer, not a number with a fraction or exponent",
    "is not valid: expected `int | null`, got `float`",
}


class Findings:
    """What was answered, and what of it is not as the document says."""

    def __init__(self) -> None:
        self.statuses: defaultdict[str, Counter[int]] = defaultdict(Counter)
        self.faults: list[str] = []

    def judge(self, case: schemathesis.Case, answer: schemathesis.Response) -> None:
        label = case.operation.label
        self.statuses[label][answer.status_code] += 1
        try:
            case.validate_response(answer)
        except FailureGroup as group:
            found = list(group.exceptions)
        except Failure as failure:
            found = [failure]
        else:
            return
        for fault in found:
            if not (isinstance(fault, RejectedPositiveData) and beyond_schema(answer)):
                self.faults.append(f"{label}: {fault}\n{case.as_curl_command()}\n{answer.text}")


def beyond_schema(answer: schemathesis.Response) -> bool:
    """Whether it was refused by a rule that no schema tells, and says so."""
    # Values that each fit may be too long together.
    if answer.status_code in (412, 414):
        return True
    told = {error["message"] for error in answer.json()["errors"]}
    return bool(told) and told <= BEYOND_SCHEMA


@pytest.fixture(scope="module")
def schema(address: str) -> OpenApiSchema:
    # What a caller shows is the test's to say.
    config = schemathesis.Config.from_dict(
        {
            "generation": {"with-security-parameters": False},
            "checks": {"negative_data_rejection": {"expected-statuses": REFUSALS}},
        }
    )
    document = httpx.get(f"{address}/openapi.json", timeout=30).json()
    return schemathesis.openapi.from_dict(document, config=config)


@pytest.fixture(scope="module")
def playground(address: str) -> Playground:
    return Playground(tenant(address), register(address))


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as made:
        yield made


@pytest.fixture
def generate(
    address: str, schema: OpenApiSchema, session: requests.Session
) -> Callable[..., Findings]:
    """Sends so many requests to every operation; rows and header fields by its label."""

    def run(
        count: int,
        modes: tuple[GenerationMode, ...],
        rows_of: Callable[[str], Rows],
        shown: Callable[[Rows], dict[str, str]],
    ) -> Findings:
        findings = Findings()
        for result in schema.get_all_operations():
            operation = result.ok()
            rows = rows_of(operation.label)
            for mode in modes:
                for case in cases(operation, mode, rows, count):
                    answer = case.call(address, session, shown(rows))
                    findings.judge(case, answer)
        return findings

    return run


def cases(operation: Any, mode: GenerationMode, rows: Rows, count: int) -> list[schemathesis.Case]:
    """As many cases, or all there are; the same ones each time."""
    asked = operation.query or operation.body
    if mode is WRONG and not (asked or operation.path_parameters):
        return []
    ids = rows.ids_in(operation.path) if asked or mode is RIGHT else {}
    made: list[schemathesis.Case] = []

    @seed(SEED)
    @settings(
        max_examples=min(count, 4) if operation.label == REGISTER else count,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(mode, path_parameters=ids or None))
    def collect(case: schemathesis.Case) -> None:
        made.append(with_known(case, operation, rows) if mode is RIGHT else case)

    collect()
    return made


def with_known(case: schemathesis.Case, operation: Any, rows: Rows) -> schemathesis.Case:
    case.body = filled(case.body, rows.fields)
    named = {parameter.name for parameter in operation.query}
    query = dict(case.query or {})
    known = {n: rows.fields[n] for n in ("project_id", "user_id") if n in query}
    if "org_id" in named:
        known["org_id"] = rows.fields["org_id"]
    case.query = query | known
    return case


def whole(findings: Findings, schema: OpenApiSchema) -> None:
    """Every operation of the document was called, and every answer is one it describes."""
    assert not findings.faults, "\n\n".join(findings.faults[:5])
    assert {*findings.statuses} == {*every(schema.raw_schema)}
    assert not [s for counted in findings.statuses.values() for s in counted if s >= 500]


def test_an_owner_is_answered_as_the_document_says(schema, playground, generate):
    def shown(rows: Rows) -> dict[str, str]:
        return {"Authorization": rows.user.client.headers["authorization"]}

    findings = generate(6, (RIGHT, WRONG), playground.rows, shown)
    whole(findings, schema)
    assert not [label for label, counted in findings.statuses.items() if min(counted) >= 300]


def test_the_key_of_a_project_is_answered_as_the_document_says(schema, playground, generate):
    rows = playground.rows_of_key()
    with playground.key() as client:
        shown = {"X-API-Key": client.headers["authorization"].removeprefix("Bearer ")}
        findings = generate(3, (RIGHT, WRONG), lambda _: rows, lambda _: shown)
    whole(findings, schema)


def test_nobody_is_answered_as_the_document_says(schema, playground, generate):
    rows = playground.rows_of_key()
    findings = generate(2, (RIGHT, WRONG), lambda _: rows, lambda _: {})
    whole(findings, schema)
    guarded = {
        label
        for label in every(schema.raw_schema)
        if schema.raw_schema["paths"][label.split(" ")[1]][label.split(" ")[0].lower()]["security"]
    }
    assert {s for label in guarded for s in findings.statuses[label]} <= {401, 414}
