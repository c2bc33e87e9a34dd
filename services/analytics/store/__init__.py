"""All SQL of analytics. Every query is bound to one organization and so to one ``part``."""

from services.analytics.store.asking import Query, Result, Row
from services.analytics.store.deletions import DeletedOrgs
from services.analytics.store.windows import Appended, RollupStore

__all__ = ["Appended", "DeletedOrgs", "Query", "Result", "RollupStore", "Row"]
