"""The OpenAPI document: valid, honest, current, and readable."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from common.rpc.contract import Operation, operations
from services.gateway.http.openapi import document, rendered
from services.gateway.http.openapi.__main__ import main
from services.gateway.http.openapi.paths import operation_id
from services.gateway.http.openapi.standing import PROBLEMS
from services.gateway.http.reading import Faults, ObjectReader
from services.gateway.http.routes import clearable_fields, path_fields, route_of, transcoded
from services.gateway.http.shapes import fields_of
from services.gateway.http.writing import writer_of

pytestmark = pytest.mark.unit

KEPT = Path(__file__).resolve().parents[2] / "docs" / "api" / "openapi.json"
DOCUMENT = document()
ROUTED = [o for o in operations().values() if o.route is not None]
TRANSCODED = list(transcoded())


def entries() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, verbs in DOCUMENT["paths"].items():
        for verb, entry in verbs.items():
            yield verb, path, entry


def entry_of(operation: Operation) -> dict[str, Any]:
    route = route_of(operation)
    found: dict[str, Any] = DOCUMENT["paths"][route.template][route.verb.lower()]
    return found


def named(operation: Operation) -> str:
    return operation_id(operation)


def check(schema: dict[str, Any], value: Any) -> None:
    jsonschema.Draft202012Validator(
        {**schema, "components": DOCUMENT["components"]},
        format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER,
    ).validate(value)


def test_the_document_is_valid_openapi_3_1() -> None:
    OpenAPIV31SpecValidator(DOCUMENT).validate()
    assert DOCUMENT["openapi"].startswith("3.1")


def test_the_document_that_is_kept_is_what_the_protos_make(tmp_path: Path) -> None:
    assert main(["--check", str(KEPT)]) == 0
    made = tmp_path / "api" / "openapi.json"
    assert main(["--check", str(made)]) == 1
    assert main([str(made)]) == 0
    assert made.read_bytes() == rendered() == KEPT.read_bytes()
    made.write_text("{}")
    assert main(["--check", str(made)]) == 1


def test_every_route_of_the_protos_is_described_and_no_internal_one() -> None:
    described = {(verb.upper(), path) for verb, path, _ in entries()}
    routed = {(route_of(o).verb, route_of(o).template) for o in ROUTED}
    pages = {"/health/live", "/health/ready", "/openapi.json", "/docs"}
    assert described == routed | {("GET", page) for page in pages}
    assert not [o.name for o in ROUTED if o.internal]


def test_operation_ids_are_unique_and_tags_are_described() -> None:
    ids = [entry["operationId"] for _, _, entry in entries()]
    assert len(ids) == len(set(ids))
    tags = {tag["name"]: tag["description"] for tag in DOCUMENT["tags"]}
    assert all(tags.values())
    assert {tag for _, _, entry in entries() for tag in entry["tags"]} == set(tags)
    assert all(entry["summary"] for _, _, entry in entries())


def test_public_operations_ask_for_no_credential_and_others_for_one() -> None:
    for operation in ROUTED:
        entry = entry_of(operation)
        assert (entry["security"] == []) == operation.public
        if not operation.public:
            assert entry["security"] == [{"bearer": []}, {"api_key": []}]
            assert {"401", "403"} <= entry["responses"].keys()
    for path in ("/health/live", "/health/ready", "/openapi.json", "/docs"):
        assert DOCUMENT["paths"][path]["get"]["security"] == []


def test_every_example_fits_its_schema() -> None:
    seen = 0
    for _, _, entry in entries():
        contents = [entry["requestBody"]["content"]] if "requestBody" in entry else []
        contents += [r["content"] for r in entry["responses"].values() if "content" in r]
        contents += [r["content"] for r in DOCUMENT["components"]["responses"].values()]
        for content in contents:
            for kind, held in content.items():
                if "example" in held:
                    check(held["schema"], held["example"])
                    seen += kind != "application/problem+json"
    assert seen > 30


@pytest.mark.parametrize("operation", [o for o in TRANSCODED if route_of(o).body], ids=named)
def test_the_gateway_takes_the_example_of_each_body(operation: Operation) -> None:
    patch = route_of(operation).verb == "PATCH"
    reader = ObjectReader(
        operation.request,
        hidden=path_fields(route_of(operation)),
        partial=patch,
        clearable=clearable_fields(operation) if patch else (),
    )
    body = entry_of(operation)["requestBody"]["content"]["application/json"]
    assert_no_faults(reader, body["example"])
    schema = DOCUMENT["components"]["schemas"][body["schema"]["$ref"].rpartition("/")[2]]
    required = set(schema.get("required", []))
    for name in body["example"]:
        without = {n: v for n, v in body["example"].items() if n != name}
        told = faults_of(reader, without)
        assert (f"/{name}" in told) == (name in required)
        told = faults_of(reader, {**without, name: None})
        nullable = takes_null(schema["properties"][name])
        assert (f"/{name}" in told) == (not nullable)
    assert schema["additionalProperties"] is False


def takes_null(schema: dict[str, Any]) -> bool:
    return "null" in schema.get("type", ()) or any(map(takes_null, schema.get("anyOf", ())))


def faults_of(reader: ObjectReader, value: Any) -> set[str]:
    faults = Faults()
    reader.check(value, "", faults)
    return {fault.pointer for fault in faults.found}


def assert_no_faults(reader: ObjectReader, value: Any) -> None:
    assert faults_of(reader, value) == set()


@pytest.mark.parametrize("operation", [o for o in TRANSCODED if o.success_status != 204], ids=named)
def test_an_answer_has_the_fields_that_its_schema_requires(operation: Operation) -> None:
    content = entry_of(operation)["responses"][str(operation.success_status)]["content"]
    shown = route_of(operation).response_body
    descriptor = fields_of(operation.response)[shown].inner if shown else operation.response
    name = content["application/json"]["schema"]["$ref"].rpartition("/")[2]
    schema = DOCUMENT["components"]["schemas"][name]
    written = writer_of(descriptor)(operation.response_class() if not shown else _empty(operation))
    assert list(written) == schema["required"] == list(schema["properties"])


def _empty(operation: Operation) -> Any:
    return getattr(operation.response_class(), route_of(operation).response_body)


def test_deletions_answer_204_without_content() -> None:
    deletions = [o for o in ROUTED if route_of(o).verb == "DELETE"]
    assert deletions
    for operation in deletions:
        assert "content" not in entry_of(operation)["responses"]["204"]


def test_every_problem_has_a_type_of_its_own_and_every_answer_its_headers() -> None:
    for _, path, entry in entries():
        for status, response in entry["responses"].items():
            if "$ref" in response:
                assert response["$ref"].endswith(f"/{PROBLEMS[int(status)][0]}")
                response = DOCUMENT["components"]["responses"][PROBLEMS[int(status)][0]]
            assert {"X-Correlation-Id", "traceparent"} <= response["headers"].keys()
            assert path.startswith("/health") or "RateLimit" in response["headers"]
    for status in (429, 503):
        name = PROBLEMS[status][0]
        assert "Retry-After" in DOCUMENT["components"]["responses"][name]["headers"]


def test_what_changes_takes_an_idempotency_key_and_what_has_a_version_if_match() -> None:
    def takes(path: str, verb: str) -> set[str]:
        entry = DOCUMENT["paths"][path][verb]
        return {p["$ref"].rpartition("/")[2] for p in entry["parameters"] if "$ref" in p}

    assert "IdempotencyKey" in takes("/orgs", "post")
    assert "IdempotencyKey" in takes("/v1/track", "post")
    assert "IdempotencyKey" not in takes("/auth/login", "post")
    assert "IfMatch" in takes("/orgs/{id}", "patch")
    assert "IfMatch" in takes("/orgs/{id}", "delete")
    assert "IfMatch" not in takes("/auth/sessions/{id}", "delete")
    for path, verb, status in (("/orgs", "post", "201"), ("/orgs/{id}", "get", "200")):
        assert "ETag" in DOCUMENT["paths"][path][verb]["responses"][status]["headers"]
    assert "ETag" not in DOCUMENT["paths"]["/orgs"]["get"]["responses"]["200"]["headers"]


def test_limits_come_from_the_rules_of_the_protos() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    register = schemas["auth.RegisterRequest"]["properties"]
    assert register["password"]["minLength"] == 15
    assert register["email"]["format"] == "email"
    assert register["email"]["maxLength"] == 254
    key = schemas["auth.CreateApiKeyRequest"]["properties"]
    assert key["scopes"]["uniqueItems"] is True
    assert key["scopes"]["maxItems"] == 50
    assert key["expires_at"] == {"type": ["string", "null"], "format": "date-time"}
    role = schemas["team.AddMemberRequest"]["properties"]["role"]
    assert role["enum"] == ["owner", "admin", "member", "viewer", "billing"]
    usage = DOCUMENT["paths"]["/analytics/usage"]["get"]["parameters"]
    grouped = next(p for p in usage if p.get("name") == "group_by")
    assert (grouped["style"], grouped["explode"]) == ("form", False)
    assert "model" in grouped["schema"]["items"]["enum"]
    size = next(p for p in usage if p.get("name") == "page_size")["schema"]
    assert (size["minimum"], size["maximum"], size["default"]) == (0, 500, 50)


def test_money_is_a_string_of_nine_decimals() -> None:
    totals = DOCUMENT["components"]["schemas"]["analytics.UsageTotals"]["properties"]
    assert totals["cost_usd"]["type"] == "string"
    assert re.fullmatch(totals["cost_usd"]["pattern"], "0.001234500")
    assert not re.fullmatch(totals["cost_usd"]["pattern"], "0.0012345")
    assert totals["events"] == {"type": "integer", "format": "int64"}


def test_an_object_that_an_answer_may_lack_may_be_null_and_no_other_one() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    prices = schemas["usage_tracker.Price"]["properties"]
    assert {"type": "null"} in prices["unit_prices"]["anyOf"]
    assert "$ref" in schemas["analytics.GetUsageResponse"]["properties"]["totals"]
    assert prices["effective_from"]["type"] == "string"
    assert prices["effective_until"]["type"] == ["string", "null"]


def test_what_takes_a_query_tells_that_it_may_be_too_long() -> None:
    told = {
        ("414" in entry["responses"], any(p.get("in") == "query" for p in entry["parameters"]))
        for _, _, entry in entries()
        if "parameters" in entry
    }
    assert told == {(True, True), (False, False)}


def test_events_are_described_as_they_are_taken() -> None:
    events = DOCUMENT["paths"]["/v1/events"]["post"]
    batch = events["requestBody"]["content"]["application/json"]["schema"]
    event = events["requestBody"]["content"]["application/json"]["example"]["events"][0]
    assert {"202", "401", "413", "415", "422", "429", "503"} <= events["responses"].keys()
    check(batch, {"events": [event]})
    wrong: dict[str, Any]
    for wrong in (
        {"events": []},
        {"events": [{n: v for n, v in event.items() if n != "event_id"}]},
        {"events": [{n: v for n, v in event.items() if n != "model"}]},
        {"events": [event | {"event_type": "mcp_tool"}]},
        {"events": [event | {"unknown": 1}]},
        {"events": [event], "more": 1},
    ):
        with pytest.raises(jsonschema.ValidationError):
            check(batch, wrong)
    for money in (1.5, "1.5", None):
        check(batch, {"events": [event | {"cost_usd": money}]})
    track = DOCUMENT["paths"]["/v1/track"]["post"]["requestBody"]["content"]["application/json"]
    assert "event_id" not in track["example"]
    check(track["schema"], track["example"])
    problem = events["responses"]["422"]["content"]["application/problem+json"]["schema"]
    rejected = [{"index": 0, "code": "too_old", "field": None, "message": "m"}]
    told = DOCUMENT["components"]["responses"]["Invalid"]["content"]["application/problem+json"]
    check(problem, told["example"] | {"rejected": rejected})
