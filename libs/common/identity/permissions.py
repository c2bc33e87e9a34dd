"""Roles and what they permit: the one place that turns a role into permissions."""

from __future__ import annotations

# What a person may do without any organization, signed in; no key may use these two.
SELF = frozenset({"self:read", "self:write"})
# What a user, or a user's key whose scopes name it, may do without an organization.
PERSONAL = frozenset({"org:create", "org:read", "metrics:read"})

_READ = frozenset({"org:read", "member:read", "project:read", "analytics:read"})
_ADMIN = _READ | {
    "org:write",
    "member:write",
    "project:write",
    "project:delete",
    "api_key:read",
    "api_key:write",
    "events:write",
    "price:read",
    "price:write",
}

ROLES: dict[str, frozenset[str]] = {
    "owner": _ADMIN | {"org:delete", "billing:read", "billing:write"},
    "admin": _ADMIN | {"billing:read"},
    "member": _READ | {"project:write", "api_key:read", "events:write"},
    "viewer": _READ,
    "billing": frozenset(
        {"org:read", "member:read", "analytics:read", "billing:read", "billing:write"}
    ),
}

# What a key may be given; "metrics:read" shows the platform's own metrics, without tenants.
SCOPES: frozenset[str] = frozenset().union(*ROLES.values()) | PERSONAL
# What a project's key may be given: nothing that reaches beyond its project.
PROJECT_SCOPES = frozenset({"events:write", "analytics:read", "project:read", "metrics:read"})
