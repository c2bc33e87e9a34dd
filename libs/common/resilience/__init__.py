"""What stands between a service and a callee that is down: a breaker and a bulkhead."""

from common.resilience.breaker import Breaker, BreakerOpen, Pass, State
from common.resilience.guard import Guard, Outcome

__all__ = ["Breaker", "BreakerOpen", "Guard", "Outcome", "Pass", "State"]
