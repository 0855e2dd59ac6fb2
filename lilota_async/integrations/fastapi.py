"""The router as a FastAPI `APIRouter`, with its answers in the OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias
from uuid import UUID

from fastapi import APIRouter, Header, Path, Query, Request
from pydantic import BaseModel
from sse_starlette.sse import EventSourceResponse
from starlette.responses import Response

from lilota_async.integrations.authorization import Authorize, allow_all
from lilota_async.integrations.dashboard import dashboard
from lilota_async.integrations.endpoints import (
    LONGEST_WAIT_SECONDS,
    MOST_PAGE_ROWS,
    PAGE_ROWS,
    Endpoints,
    Tags,
    answering,
)
from lilota_async.integrations.streams import HEARTBEAT_SECONDS
from lilota_async.models.values import Duration, TaskStatus

if TYPE_CHECKING:
    from lilota_async.core import Lilota

__all__ = ["allow_all", "dashboard", "router"]


class ScheduledTask(BaseModel):
    """A task that was accepted; `url` is where to look at it."""

    id: UUID
    name: str
    status: TaskStatus
    url: str


class TaskState(BaseModel):
    """How a task is; `error` is the kind of its failure."""

    id: UUID
    name: str
    status: TaskStatus
    progress: int
    tags: list[str]
    attempts: int
    max_attempts: int
    created_at: datetime
    run_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    error: str | None


class TaskResult(TaskState):
    """How a task is, and what it has returned."""

    output: Any


class TaskPage(BaseModel):
    """The newest tasks first; `next` is the `before` of the next page, null on the last."""

    tasks: list[TaskState]
    next: UUID | None


class HealthState(BaseModel):
    """Whether tasks can be taken and run."""

    status: str
    checks: dict[str, bool] = {}


class Problem(BaseModel):
    """What is wrong; `id` when a task may have been accepted all the same."""

    detail: Any
    id: UUID | None = None


Answers: TypeAlias = dict[int | str, dict[str, Any]]

_PROBLEMS = {
    400: "the body broke off",
    401: "not signed in",
    403: "not allowed, or asked for by another site",
    404: "no such task",
    409: "the task is not in a state for that",
    413: "the input is too large",
    415: "the input is no JSON",
    422: "a value does not fit",
    503: "not now; Retry-After says when",
}
_EVENTS = {
    "description": "`status`, `progress` and `log` events; it ends after the final status",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}


def router(
    lilota: Lilota,
    *,
    authorize: Authorize,
    tags: Tags | None = None,
    trusted_origins: Iterable[str] = (),
    heartbeat: Duration = HEARTBEAT_SECONDS,
) -> APIRouter:
    """The routes of `lilota_async.integrations.starlette.router`, which tells of the arguments.

    Example:
        >>> app = FastAPI(lifespan=lilota.lifespan)
        >>> app.include_router(router(lilota, authorize=allow_all), prefix="/tasks")
    """
    endpoints = Endpoints(
        lilota, authorize, tags=tags, trusted_origins=trusted_origins, heartbeat=heartbeat
    )
    api = APIRouter(tags=["tasks"])
    _add_looking(api, endpoints)
    _add_following(api, endpoints)
    _add_changing(api, endpoints)
    return api


def _problems(*codes: int) -> Answers:
    return {code: {"model": Problem, "description": _PROBLEMS[code]} for code in codes}


def _add_looking(api: APIRouter, endpoints: Endpoints) -> None:
    @api.get("/", response_model=TaskPage, responses=_problems(401, 403, 422, 503))
    async def list_tasks(
        request: Request,
        status: TaskStatus | None = None,
        name: Annotated[str | None, Query(max_length=MOST_PAGE_ROWS)] = None,
        tag: Annotated[str | None, Query(max_length=MOST_PAGE_ROWS)] = None,
        limit: Annotated[int, Query(ge=0, le=MOST_PAGE_ROWS)] = PAGE_ROWS,
        before: UUID | None = None,
    ) -> Response:
        """The newest tasks that fit and that you may see."""
        return await answering(endpoints.listing)(request)

    @api.get("/healthz", response_model=HealthState, response_model_exclude_unset=True)
    async def is_alive(request: Request) -> Response:
        """This process serves requests."""
        return await answering(endpoints.healthz)(request)

    not_ready: Answers = {
        503: {"model": HealthState, "description": "not ready; `checks` says why"}
    }

    @api.get("/readyz", response_model=HealthState, responses=not_ready)
    async def is_ready(request: Request) -> Response:
        """Tasks can be taken and run here."""
        return await answering(endpoints.readyz)(request)


def _add_following(api: APIRouter, endpoints: Endpoints) -> None:
    problems = _problems(401, 403, 404, 422, 503)

    @api.get("/{task_id}", response_model=TaskState, responses=problems)
    async def read_task(request: Request, task_id: UUID) -> Response:
        """How the task is, without its payloads."""
        return await answering(endpoints.read)(request)

    not_final: Answers = {
        202: {"model": TaskResult, "description": "not final yet; Retry-After says when"}
    }

    @api.get("/{task_id}/result", response_model=TaskResult, responses={**not_final, **problems})
    async def read_result(
        request: Request,
        task_id: UUID,
        wait: Annotated[int, Query(ge=0, le=int(LONGEST_WAIT_SECONDS))] = 0,
    ) -> Response:
        """The output, once there is one; `wait` for it so many seconds."""
        return await answering(endpoints.result)(request)

    ended: Answers = {204: {"description": "Last-Event-ID says that the end was seen"}}

    @api.get(
        "/{task_id}/events",
        response_class=EventSourceResponse,
        responses={200: _EVENTS, **ended, **problems},
    )
    async def follow_task(
        request: Request,
        task_id: UUID,
        last_event_id: Annotated[str | None, Header(description="what was seen already")] = None,
    ) -> Response:
        """What happens to the task, as server-sent events."""
        return await answering(endpoints.events)(request)


def _add_changing(api: APIRouter, endpoints: Endpoints) -> None:
    problems = _problems(401, 403, 404, 409, 422, 503)
    cancelling: Answers = {
        202: {"model": TaskState, "description": "asked to end, and has not ended yet"}
    }

    @api.post(
        "/{task_id:uuid}/cancel", response_model=TaskState, responses={**cancelling, **problems}
    )
    async def cancel_task(request: Request, task_id: UUID) -> Response:
        """Stop the task."""
        return await answering(endpoints.cancel)(request)

    @api.post("/{task_id:uuid}/retry", response_model=TaskState, responses=problems)
    async def retry_task(request: Request, task_id: UUID) -> Response:
        """Run the task again."""
        return await answering(endpoints.retry)(request)

    body = {"required": False, "content": {"application/json": {"schema": {}}}}

    @api.post(
        "/{name:path}",
        status_code=202,
        response_model=ScheduledTask,
        responses=_problems(400, 401, 403, 404, 413, 415, 422, 503),
        openapi_extra={"requestBody": body},
    )
    async def schedule_task(request: Request, name: Annotated[str, Path()]) -> Response:
        """Commit a task of this name, with the body as its input."""
        return await answering(endpoints.schedule)(request)
