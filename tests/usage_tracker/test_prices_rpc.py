"""PriceService behind the kit's real gRPC server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from common.clock import ManualClock
from common.database import Database, Scope
from common.errors import Conflict, Invalid, NotFound, PermissionDenied, Unauthenticated
from common.identity.call import ANONYMOUS, Principal
from common.rpc.fields import timestamp
from common.testing import Served, a_project_key, a_user, serve
from mindweave.usage_tracker.v1 import prices_pb2 as pb
from services.usage_tracker.actions.prices import PriceActions
from services.usage_tracker.rpc.prices import PriceServicer
from services.usage_tracker.store.prices import PriceStore, last_price, price_entries
from tests.conftest import Published
from tests.usage_tracker.conftest import NOW

pytestmark = pytest.mark.rpc

SERVICE = "mindweave.usage_tracker.v1.PriceService"


@pytest.fixture(scope="module")
async def database(service_database: Callable[..., Awaitable[Any]]) -> Database:
    made: Database = await service_database("usage_tracker", clock=ManualClock(NOW))
    return made


@pytest.fixture
async def served(database: Database) -> AsyncIterator[Served]:
    servicer = PriceServicer(PriceActions(database, ManualClock(NOW)))
    async with serve([(SERVICE, servicer)], database=database) as running:
        yield running


@pytest.fixture
def org_id() -> UUID:
    return uuid4()


@pytest.fixture
def admin(served: Served, org_id: UUID) -> Principal:
    user = a_user()
    served.access.grant(user, org_id, "admin")
    return user


def stating(org_id: UUID, model: str = "ours-1", **given: Any) -> pb.CreatePriceRequest:
    given.setdefault("effective_from", timestamp(NOW))
    return pb.CreatePriceRequest(org_id=str(org_id), model=model, **given)


def unit_prices(**usd: str) -> pb.StatedUnitPrices:
    return pb.StatedUnitPrices(
        **{kind: pb.StatedUnitPrice(usd_per_million=text) for kind, text in usd.items()}
    )


async def call(served: Served, method: str, request: Any, who: Principal, **more: Any) -> Any:
    return (await served.invoke(f"/{SERVICE}/{method}", request, who, **more)).message


async def test_a_price_is_stated_as_exact_decimals_and_listed_newest_first(
    served: Served, admin: Principal, org_id: UUID
) -> None:
    steps = [
        pb.StatedStep(prompt_over=200_000, usd_per_million="6"),
        pb.StatedStep(prompt_over=1_000, usd_per_million="0.000000001"),
    ]
    prices = pb.StatedUnitPrices(input=pb.StatedUnitPrice(usd_per_million="3.05", steps=steps))
    request = stating(org_id, unit_prices=prices, provider="us", service_tier="Batch")
    first = (await call(served, "CreatePrice", request, admin)).price
    until = timestamp(NOW + timedelta(days=1))
    second = (
        await call(served, "CreatePrice", stating(org_id, "b", effective_until=until), admin)
    ).price

    assert (first.provider, first.service_tier, first.discount_bp) == ("us", "batch", 0)
    assert not first.HasField("effective_until")
    assert first.unit_prices.input.usd_per_million == "3.050000000"
    assert [(s.prompt_over, s.usd_per_million) for s in first.unit_prices.input.steps] == [
        (1_000, "0.000000001"),
        (200_000, "6.000000000"),
    ]
    assert not first.unit_prices.HasField("output")
    assert not second.HasField("unit_prices")
    page = await call(served, "ListPrices", pb.ListPricesRequest(org_id=str(org_id)), admin)
    assert list(page.prices) == [second, first]
    one = pb.ListPricesRequest(org_id=str(org_id), page_size=1)
    start = await call(served, "ListPrices", one, admin)
    one.page_token = start.next_page_token
    rest = await call(served, "ListPrices", one, admin)
    assert [*start.prices, *rest.prices] == [second, first]
    assert not rest.HasField("next_page_token")
    named = pb.ListPricesRequest(org_id=str(org_id), model="b")
    assert list((await call(served, "ListPrices", named, admin)).prices) == [second]


async def test_who_has_one_organization_need_not_name_it_and_who_has_two_is_told_to(
    served: Served, admin: Principal, org_id: UUID
) -> None:
    stated = (await call(served, "CreatePrice", stating(org_id), admin)).price
    page = await call(served, "ListPrices", pb.ListPricesRequest(), admin)
    assert list(page.prices) == [stated]
    served.access.grant(admin, uuid4(), "admin")
    for method, request in (
        ("ListPrices", pb.ListPricesRequest()),
        ("ListUnpriced", pb.ListUnpricedRequest()),
        ("GetReconciliation", pb.GetReconciliationRequest()),
    ):
        with pytest.raises(Invalid, match="name one with org_id"):
            await call(served, method, request, admin)


async def test_a_repeat_with_its_key_states_no_second_price_and_all_is_told(
    served: Served, admin: Principal, org_id: UUID, published: Published
) -> None:
    request = stating(org_id, discount_bp=500)
    first = await call(served, "CreatePrice", request, admin, idempotency_key="k")
    assert await call(served, "CreatePrice", request, admin, idempotency_key="k") == first
    told = await published()
    assert [event.type for event in told] == ["price.changed", "audit.recorded"]
    assert told[0].data["price_id"] == told[1].data["resource_id"] == first.price.id
    assert told[1].data["org_id"] == str(org_id)


@pytest.mark.parametrize(
    "wrong",
    [
        {"discount_bp": -1},
        {"discount_bp": 10_001},
        {"unit_prices": pb.StatedUnitPrices()},
        {"unit_prices": unit_prices(input="-1")},
        {"unit_prices": unit_prices(input="1e3")},
        {"unit_prices": unit_prices(input="0.0000000001")},
        {"unit_prices": unit_prices(input="")},
        {"effective_until": timestamp(NOW)},
        {"model": ""},
        {"effective_from": None},
        {
            "unit_prices": pb.StatedUnitPrices(
                input=pb.StatedUnitPrice(
                    usd_per_million="1",
                    steps=[pb.StatedStep(prompt_over=5, usd_per_million="1")] * 2,
                )
            )
        },
    ],
)
async def test_what_is_no_price_is_refused_with_its_field(
    served: Served, admin: Principal, org_id: UUID, wrong: dict[str, Any]
) -> None:
    with pytest.raises(Invalid) as refused:
        await call(served, "CreatePrice", stating(org_id, **wrong), admin)
    (field,) = wrong
    assert [error.pointer.split("/")[1] for error in refused.value.fields] == [field]


READS = {
    "ListPrices": pb.ListPricesRequest,
    "ListUnpriced": pb.ListUnpricedRequest,
    "GetReconciliation": pb.GetReconciliationRequest,
}


@pytest.mark.parametrize("method", [*READS, "CreatePrice"])
async def test_only_admins_and_owners_see_and_state_prices(
    served: Served, org_id: UUID, method: str
) -> None:
    request = stating(org_id) if method == "CreatePrice" else READS[method](org_id=str(org_id))
    for role, may in {"owner": True, "admin": True, "member": False, "viewer": False}.items():
        user = a_user()
        served.access.grant(user, org_id, role)
        if may:
            await call(served, method, request, user)
        else:
            with pytest.raises(PermissionDenied):
                await call(served, method, request, user)
    with pytest.raises(PermissionDenied):
        await call(served, method, request, a_project_key(org_id, uuid4(), {"events:write"}))
    with pytest.raises(NotFound):
        await call(served, method, request, a_user())
    with pytest.raises(Unauthenticated):
        await call(served, method, request, ANONYMOUS)


async def test_another_organization_sees_nothing_of_it(
    served: Served, admin: Principal, org_id: UUID, database: Database
) -> None:
    other, stranger = uuid4(), a_user()
    served.access.grant(stranger, other, "owner")
    await call(served, "CreatePrice", stating(org_id), admin)
    page = await call(served, "ListPrices", pb.ListPricesRequest(org_id=str(other)), stranger)
    assert not page.prices
    # Nor would a query that forgot to ask whose they are.
    async with database.read(Scope((other,))) as connection:
        assert await PriceStore(connection).prices(org_id, None, None, 10) == []
        assert await connection.fetchval("SELECT count(*) FROM prices") == 0


async def test_a_worker_is_shown_the_entries_of_all_in_the_order_of_their_numbers(
    served: Served, admin: Principal, org_id: UUID, database: Database
) -> None:
    other, second = uuid4(), a_user()
    served.access.grant(second, other, "owner")
    async with database.session() as connection:
        before = await last_price(connection)
    prices = unit_prices(input="1", cache_write_1h="2")
    for org, who in ((org_id, admin), (other, second)):
        await call(served, "CreatePrice", stating(org, unit_prices=prices), who)
    async with database.session() as connection:
        found = await price_entries(connection, before)
        assert await last_price(connection) == found[-1].seq == before + 2
    assert [entry.org_id for entry in found] == [org_id, other]
    assert [rate and rate.base for rate in found[0].rates or ()] == [10**9, *[None] * 3, 2 * 10**9]


async def test_an_organization_has_room_for_so_many_entries_and_others_for_theirs(
    database: Database, org_id: UUID
) -> None:
    servicer = PriceServicer(PriceActions(database, ManualClock(NOW), most=1))
    async with serve([(SERVICE, servicer)], database=database) as served:
        user, other = a_user(), uuid4()
        for org in (org_id, other):
            served.access.grant(user, org, "owner")
            await call(served, "CreatePrice", stating(org), user)
        with pytest.raises(Conflict) as refused:
            await call(served, "CreatePrice", stating(org_id), user)
        assert refused.value.code == "too_many_prices"


async def test_times_at_both_ends_of_the_calendar_break_nothing(
    served: Served, admin: Principal, org_id: UUID, database: Database
) -> None:
    first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    for wrong in ({"effective_from": first}, {"effective_from": last}, {"effective_until": last}):
        given = {name: timestamp(time) for name, time in wrong.items()}
        with pytest.raises(Invalid):
            await call(served, "CreatePrice", stating(org_id, **given), admin)
    ends = {
        "effective_from": timestamp(datetime(1970, 1, 1, tzinfo=UTC)),
        "effective_until": timestamp(datetime(8999, 12, 31, tzinfo=UTC)),
    }
    prices = unit_prices(input="1")
    await call(served, "CreatePrice", stating(org_id, unit_prices=prices, **ends), admin)
    async with database.session() as connection:
        found = await price_entries(connection, await last_price(connection) - 1)
    assert [entry.since for entry in found] == [0]
    asked = pb.GetReconciliationRequest(org_id=str(org_id), start=timestamp(first))
    asked.end.CopyFrom(timestamp(last))
    assert not (await call(served, "GetReconciliation", asked, admin)).models
    asked = pb.GetReconciliationRequest(org_id=str(org_id), end=timestamp(first))
    with pytest.raises(Invalid):
        await call(served, "GetReconciliation", asked, admin)


async def test_a_wrong_page_token_or_time_is_refused(
    served: Served, admin: Principal, org_id: UUID
) -> None:
    wrong: list[tuple[str, Any]] = [
        ("ListPrices", pb.ListPricesRequest(org_id=str(org_id), page_token="x")),
        ("ListUnpriced", pb.ListUnpricedRequest(org_id=str(org_id), page_token="WyIxIl0")),
        (
            "GetReconciliation",
            pb.GetReconciliationRequest(
                org_id=str(org_id), start=timestamp(NOW), end=timestamp(NOW)
            ),
        ),
    ]
    for method, request in wrong:
        with pytest.raises(Invalid):
            await call(served, method, request, admin)
