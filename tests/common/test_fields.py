"""A PATCH names its fields by its mask, or by what it sets."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from common.errors import Invalid
from common.rpc.fields import changed_fields, moment, timestamp
from mindweave.project.v1.project_pb2 import UpdateProjectRequest

pytestmark = pytest.mark.unit


def changed(**fields: Any) -> frozenset[str]:
    request = UpdateProjectRequest(id=str(uuid4()), **fields)
    return changed_fields(request, request.update_mask, required={"name"}, nullable={"team_id"})


def test_without_a_mask_the_fields_that_are_set_change() -> None:
    assert changed() == frozenset()
    assert changed(name="Search") == {"name"}
    assert changed(name="Search", team_id=str(uuid4())) == {"name", "team_id"}


def test_with_a_mask_its_fields_change_and_no_others() -> None:
    assert changed(name="Search", update_mask=FieldMask()) == frozenset()
    assert changed(name="Search", update_mask=FieldMask(paths=["team_id"])) == {"team_id"}


def test_every_wrong_field_is_named() -> None:
    with pytest.raises(Invalid) as refused:
        changed(update_mask=FieldMask(paths=["name", "org_id"]))
    assert {(f.pointer, f.code) for f in refused.value.fields} == {
        ("/org_id", "unknown_field"),
        ("/name", "invalid_value"),
    }


def test_a_time_comes_back_as_it_was() -> None:
    at = datetime(2026, 7, 1, 12, 30, 15, 123456, tzinfo=UTC)
    assert moment(timestamp(at)) == at
