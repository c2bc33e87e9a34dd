"""What must not pass, done to the tables by hand: each takes the organization."""

from __future__ import annotations

_ONE = "(SELECT event_id FROM events WHERE org_id = $1 LIMIT 1)"
HARMS = {
    "one lost event": f"DELETE FROM events WHERE org_id = $1 AND event_id = {_ONE}",
    "one doubled event": "INSERT INTO events SELECT * FROM events WHERE org_id = $1 LIMIT 1",
    "one nano-dollar": f"UPDATE events SET cost_nano = coalesce(cost_nano, 0) + 1"
    f" WHERE org_id = $1 AND event_id = {_ONE}",
    "one lost delta": "DELETE FROM deltas WHERE (part, seq) ="
    " (SELECT part, seq FROM deltas WHERE org_id = $1 AND events > 0 LIMIT 1)",
    "one doubled delta": "UPDATE deltas SET events = events + 1 WHERE (part, seq) ="
    " (SELECT part, seq FROM deltas WHERE org_id = $1 LIMIT 1)",
}
