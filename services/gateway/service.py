"""The edge: public REST in front of every service."""

from __future__ import annotations

from common.http.app import RestApp
from common.service import Parts, Runtime, Service
from services.gateway.http.pages import pages
from services.gateway.http.routes import handlers


async def build(runtime: Runtime) -> Parts:
    return Parts(app=RestApp(handlers=handlers(runtime.channel), pages=pages()))


SERVICE = Service("gateway", build, None)
