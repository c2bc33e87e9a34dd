"""Which organization and team a project belongs to, as the project service says."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Collection, Sequence
from contextvars import Context
from datetime import datetime, timedelta
from uuid import UUID

from common.clock import Clock
from common.errors import DeadlineExceeded, Unavailable
from common.renewal import AHEAD, not_needed_yet
from mindweave.project.v1.project_pb2 import ResolvedProject, ResolveProjectsRequest
from mindweave.project.v1.project_pb2_grpc import ProjectServiceStub
from services.usage_tracker.domain.judging import Project

FRESH = timedelta(seconds=3)
STANDS = timedelta(seconds=60)
_ASK_SECONDS = 2.0
_PAGE = 500
_REMEMBERED = 50_000
_log = logging.getLogger(__name__)


class Projects:
    """Asks for projects and remembers the answers.

    An answer is used for 3 s, and asked for again, while it is used, before they are over. That a
    project does not exist is never remembered. While the project service is down, an answer of the
    last 60 s stands. One question at a time is asked about a project, whoever waits for it.
    """

    def __init__(self, stub: ProjectServiceStub, clock: Clock) -> None:
        self._stub = stub
        self._clock = clock
        self._known: OrderedDict[UUID, tuple[Project, datetime]] = OrderedDict()
        self._asking: dict[UUID, asyncio.Task[dict[UUID, Project]]] = {}

    async def resolve(self, ids: Collection[UUID]) -> dict[UUID, Project]:
        """The projects that exist, by id.

        Raises:
            Unavailable: the project service cannot be asked, and no answer may stand in.
        """
        found = self._remembered(ids, FRESH)
        missing = [i for i in ids if i not in found]
        if not missing:
            self._renew(ids)
            return found
        try:
            return found | await self._answers(missing)
        except (Unavailable, DeadlineExceeded) as error:
            stale = self._remembered(missing, STANDS)
            if len(stale) < len(missing):
                _log.warning("projects cannot be checked: %s", error)
                raise Unavailable("Projects cannot be checked now.", retry_after=1) from error
            return found | stale

    def evict(self, *, project_id: UUID | None = None, org_id: UUID | None = None) -> None:
        """Forget a project, or all of an organization; also answers that are on their way."""
        if project_id is not None:
            self._known.pop(project_id, None)
            self._asking.pop(project_id, None)
        if org_id is not None:
            self._asking.clear()
            for i in [i for i, (known, _) in self._known.items() if known.org_id == org_id]:
                del self._known[i]

    def _remembered(self, ids: Collection[UUID], age: timedelta) -> dict[UUID, Project]:
        now = self._clock.now()
        return {
            i: self._known[i][0]
            for i in ids
            if i in self._known and timedelta() <= now - self._known[i][1] < age
        }

    def _renew(self, ids: Collection[UUID]) -> None:
        young = self._remembered(ids, FRESH * AHEAD)
        for task in self._asked([i for i in ids if i not in young]):
            task.add_done_callback(not_needed_yet)

    async def _answers(self, ids: Sequence[UUID]) -> dict[UUID, Project]:
        answers = await asyncio.gather(*map(asyncio.shield, self._asked(ids)))
        wanted = set(ids)
        return {i: p for answer in answers for i, p in answer.items() if i in wanted}

    def _asked(self, ids: Sequence[UUID]) -> Collection[asyncio.Task[dict[UUID, Project]]]:
        """The questions about these that are under way, those put now among them."""
        new = [i for i in ids if i not in self._asking]
        for start in range(0, len(new), _PAGE):
            page = new[start : start + _PAGE]
            # Nothing of the request that happens to ask (its user, its deadline) goes with it.
            task = asyncio.create_task(self._ask(page), context=Context())
            self._asking |= dict.fromkeys(page, task)
        return dict.fromkeys(self._asking[i] for i in ids)

    async def _ask(self, ids: Sequence[UUID]) -> dict[UUID, Project]:
        asked, me = self._clock.now(), asyncio.current_task()
        try:
            answer = await self._stub.ResolveProjects(
                ResolveProjectsRequest(ids=[str(i) for i in ids]), timeout=_ASK_SECONDS
            )
            found = {p.project_id: p for p in map(_project, answer.projects)}
            # What was evicted meanwhile must not come back with an answer from before.
            for i in [i for i in ids if self._asking.get(i) is me]:
                self._known.pop(i, None)
                if i in found:
                    self._known[i] = (found[i], asked)
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
            return found
        finally:
            for i in ids:
                if self._asking.get(i) is me:
                    del self._asking[i]


def _project(message: ResolvedProject) -> Project:
    team_id = UUID(message.team_id) if message.HasField("team_id") else None
    return Project(UUID(message.id), UUID(message.org_id), team_id)
