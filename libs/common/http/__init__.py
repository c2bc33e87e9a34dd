"""HTTP at the edge of the platform: what happens to a request before a handler sees it.

A service's ``http.py`` makes a bare app::

    async def send_events(request: Request) -> Response:         # starlette's
        call = current_call()                  # principal, permission, ip, idempotency_key …
        body = await read_body(request, limit=10_000_000)        # unpacked, capped, timed
        call.roles = await runtime.access.resolve(call.principal, org_id)
        call.authorize(org_id, project_id)     # NotFound or PermissionDenied
        return answer({"accepted": 1}, status=202)

    app = RestApp({"/mindweave.usage_tracker.v1.UsageTrackerService/SendEvents": send_events})
    Parts(app=app)

The process mounts all apps under ONE ``Edge`` (see ``edge.py``), which finds the operation of a
route, checks the credential before the body is read, limits the rate, binds ``current_call()``,
keeps time, and turns every error that a handler raises into problem details.
"""
