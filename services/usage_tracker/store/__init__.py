"""All SQL of usage_tracker; a statement of the ledger touches one part."""

from services.usage_tracker.store.blocks import BlockStore
from services.usage_tracker.store.layout import LayoutStore
from services.usage_tracker.store.ledger import MANY_EVENTS, UsageStore, days_around
from services.usage_tracker.store.prices import PriceStore
from services.usage_tracker.store.repricing import RepricingStore

__all__ = [
    "MANY_EVENTS",
    "BlockStore",
    "LayoutStore",
    "PriceStore",
    "RepricingStore",
    "UsageStore",
    "days_around",
]
