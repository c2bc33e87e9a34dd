"""Which organization and team a project belongs to, as the project service says."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from uuid import UUID

from common.clock import Clock
from common.errors import DeadlineExceeded, Unavailable
from mindweave.project.v1.project_pb2 import ResolvedProject, ResolveProjectsRequest
from mindweave.project.v1.project_pb2_grpc import ProjectServiceStub
from services.usage_tracker.domain.judging import Project

FRESH = timedelta(seconds=3)
STANDS = timedelta(seconds=60)
_ASK_SECONDS = 2.0
_PAGE = 500
_REMEMBERED = 50_000


class Projects:
    """Asks for projects and remembers the answers.

    An answer is used for 3 s. That a project does not exist is never remembered. While the project
    service is down, an answer of the last 60 s stands.
    """

    def __init__(self, stub: ProjectServiceStub, clock: Clock) -> None:
        self._stub = stub
        self._clock = clock
        self._known: OrderedDict[UUID, tuple[Project, datetime]] = OrderedDict()
        self._evictions = 0

    async def resolve(self, ids: Collection[UUID]) -> dict[UUID, Project]:
        """The projects that exist, by id.

        Raises:
            Unavailable: the project service cannot be asked, and no answer may stand in.
        """
        found = self._remembered(ids, FRESH)
        missing = [i for i in ids if i not in found]
        if not missing:
            return found
        try:
            return found | await self._ask(missing)
        except (Unavailable, DeadlineExceeded) as error:
            stale = self._remembered(missing, STANDS)
            if len(stale) < len(missing):
                raise Unavailable("Projects cannot be checked now.", retry_after=1) from error
            return found | stale

    def evict(self, *, project_id: UUID | None = None, org_id: UUID | None = None) -> None:
        """Forget a project, or all of an organization."""
        self._evictions += 1
        for known, _ in list(self._known.values()):
            if known.project_id == project_id or known.org_id == org_id:
                del self._known[known.project_id]

    def _remembered(self, ids: Collection[UUID], age: timedelta) -> dict[UUID, Project]:
        now = self._clock.now()
        return {
            i: self._known[i][0]
            for i in ids
            if i in self._known and timedelta() <= now - self._known[i][1] < age
        }

    async def _ask(self, ids: Sequence[UUID]) -> dict[UUID, Project]:
        asked, evictions = self._clock.now(), self._evictions
        found: dict[UUID, Project] = {}
        for start in range(0, len(ids), _PAGE):
            answer = await self._stub.ResolveProjects(
                ResolveProjectsRequest(ids=[str(i) for i in ids[start : start + _PAGE]]),
                timeout=_ASK_SECONDS,
            )
            found |= {p.project_id: p for p in map(_project, answer.projects)}
        # What was evicted meanwhile must not come back with an answer from before.
        if evictions == self._evictions:
            for project in found.values():
                self._known[project.project_id] = (project, asked)
                self._known.move_to_end(project.project_id)
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        for i in ids:
            if i not in found:
                self._known.pop(i, None)
        return found


def _project(message: ResolvedProject) -> Project:
    team_id = UUID(message.team_id) if message.HasField("team_id") else None
    return Project(UUID(message.id), UUID(message.org_id), team_id)
