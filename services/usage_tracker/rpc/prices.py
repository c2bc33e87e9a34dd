"""PriceService: messages to prices, and back."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any
from uuid import UUID

from google.protobuf.message import Message

from common.database import Change
from common.errors import FieldError, Invalid
from common.identity.call import current_call
from common.paging import decode_key, encode_token, page_size
from common.rpc.fields import moment, timestamp
from mindweave.usage_tracker.v1 import prices_pb2 as pb
from mindweave.usage_tracker.v1.prices_pb2_grpc import PriceServiceServicer
from services.usage_tracker.actions.prices import PriceActions
from services.usage_tracker.domain import judging
from services.usage_tracker.domain.pricing import NANO, Rate, Tokens, usd
from services.usage_tracker.store.prices import Reconciled, Stated, UnpricedModel


class PriceServicer(PriceServiceServicer):
    """What organizations pay, and what came of it."""

    def __init__(self, prices: PriceActions) -> None:
        self._prices = prices

    async def CreatePrice(
        self, request: pb.CreatePriceRequest, context: Any
    ) -> pb.CreatePriceResponse:
        def answer(change: Change, stated: Stated) -> pb.CreatePriceResponse:
            return change.answer(pb.CreatePriceResponse(price=_price(stated)))

        return await self._prices.create(
            UUID(request.org_id),
            request.model,
            provider=request.provider if request.HasField("provider") else None,
            service_tier=request.service_tier if request.HasField("service_tier") else None,
            since=moment(request.effective_from),
            until=_given(request, "effective_until"),
            rates=_rates(request.unit_prices) if request.HasField("unit_prices") else None,
            discount_bp=request.discount_bp,
            answer=answer,
        )

    async def ListPrices(
        self, request: pb.ListPricesRequest, context: Any
    ) -> pb.ListPricesResponse:
        size = page_size(request.page_size)
        before = decode_key(request.page_token, _number)
        model = request.model if request.HasField("model") else None
        found = await self._prices.prices(
            _org(request), model, before[0] if before else None, size + 1
        )
        more = len(found) > size
        return pb.ListPricesResponse(
            prices=[_price(stated) for stated in found[:size]],
            next_page_token=encode_token(str(found[size - 1].entry.seq)) if more else None,
        )

    async def ListUnpriced(
        self, request: pb.ListUnpricedRequest, context: Any
    ) -> pb.ListUnpricedResponse:
        size = page_size(request.page_size)
        found = await self._prices.unpriced(_org(request), _after(request), size + 1)
        return pb.ListUnpricedResponse(
            unpriced=[
                pb.UnpricedModel(
                    model=one.model,
                    provider=one.provider,
                    events=one.events,
                    first_at=timestamp(one.first_at),
                    last_at=timestamp(one.last_at),
                )
                for one in found[:size]
            ],
            next_page_token=_token(found, size),
        )

    async def GetReconciliation(
        self, request: pb.GetReconciliationRequest, context: Any
    ) -> pb.GetReconciliationResponse:
        size = page_size(request.page_size)
        found = await self._prices.reconciled(
            _org(request),
            _given(request, "start"),
            _given(request, "end"),
            _after(request),
            size + 1,
        )
        return pb.GetReconciliationResponse(
            models=[_reconciled(one) for one in found[:size]],
            next_page_token=_token(found, size),
        )


def _org(
    request: pb.ListPricesRequest | pb.ListUnpricedRequest | pb.GetReconciliationRequest,
) -> UUID:
    return current_call().organization(request.org_id if request.HasField("org_id") else None)


def _given(request: Message, name: str) -> Any:
    return moment(getattr(request, name)) if request.HasField(name) else None


def _after(request: pb.ListUnpricedRequest | pb.GetReconciliationRequest) -> Any:
    """The last model and provider of the page before; '' where it has none."""
    return decode_key(request.page_token, str, str)


def _token(found: Sequence[UnpricedModel] | Sequence[Reconciled], size: int) -> str | None:
    if len(found) <= size:
        return None
    last = found[size - 1]
    return encode_token(last.model, last.provider or "")


def _number(text: str) -> int:
    number = int(text)
    if not 0 <= number < 2**63:
        raise ValueError(text)
    return number


def _rates(message: pb.StatedUnitPrices) -> tuple[Rate | None, ...]:
    given = {field.name: value for field, value in message.ListFields()}
    return tuple(_rate(kind, given[kind]) if kind in given else None for kind in Tokens._fields)


def _rate(kind: str, message: pb.StatedUnitPrice) -> Rate:
    steps = {step.prompt_over: _nano(step.usd_per_million) for step in message.steps}
    if len(steps) < len(message.steps):
        raise Invalid(
            fields=[
                FieldError(f"/unit_prices/{kind}/steps", "invalid_value", "names a length twice")
            ]
        )
    return Rate(_nano(message.usd_per_million), tuple(sorted(steps.items(), reverse=True)))


def _nano(text: str) -> int:
    return int(Decimal(text) * NANO)


def _price(stated: Stated) -> pb.Price:
    entry = stated.entry
    return pb.Price(
        id=str(entry.id),
        org_id=str(entry.org_id),
        model=entry.model,
        provider=entry.provider,
        service_tier=entry.service_tier,
        effective_from=timestamp(judging.moment(entry.since)),
        effective_until=None if entry.until is None else timestamp(judging.moment(entry.until)),
        unit_prices=None if entry.rates is None else _unit_prices(entry.rates),
        discount_bp=entry.discount_bp,
        created_at=timestamp(stated.created_at),
    )


def _unit_prices(rates: Sequence[Rate | None]) -> pb.UnitPrices:
    found = pb.UnitPrices()
    for kind, rate in zip(Tokens._fields, rates, strict=True):
        if rate is not None:
            steps = [
                pb.PriceStep(prompt_over=over, usd_per_million=usd(nano))
                for over, nano in reversed(rate.steps)
            ]
            getattr(found, kind).CopyFrom(pb.UnitPrice(usd_per_million=usd(rate.base), steps=steps))
    return found


def _reconciled(one: Reconciled) -> pb.ReconciledModel:
    return pb.ReconciledModel(
        model=one.model,
        provider=one.provider,
        events=one.events,
        differing_events=one.differing_events,
        client_cost_usd=usd(one.client_nano),
        cost_usd=usd(one.cost_nano),
        difference_usd=usd(one.client_nano - one.cost_nano),
        unpriced_events=one.unpriced_events,
        without_client_cost=one.without_client_cost,
    )
