"""What the router answers, for Starlette and FastAPI alike."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import quote
from uuid import UUID

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from lilota_async.errors import ConfigurationError, InvalidInput, LilotaError, NotRunning
from lilota_async.integrations.authorization import Authorize, Guard, check_lilota
from lilota_async.integrations.payloads import Redaction, summary
from lilota_async.integrations.problems import invalid_input, refusal, unavailable
from lilota_async.integrations.streams import task_stream
from lilota_async.models.values import Duration, TaskStatus, checked_duration
from lilota_async.storage.browsing import Filters, browse

if TYPE_CHECKING:
    from lilota_async.core import Lilota
    from lilota_async.models.tables import Task

Tags: TypeAlias = Callable[[Request], Iterable[str] | Awaitable[Iterable[str]]]

PAGE_ROWS = 50
MOST_PAGE_ROWS = 200
CANCEL_SECONDS = 10.0
LONGEST_WAIT_SECONDS = 60.0
RETRY_RESULT_SECONDS = 1


class Endpoints:
    """One method for each route; each authorizes before it tells or does anything."""

    def __init__(
        self,
        lilota: Lilota,
        authorize: Authorize,
        *,
        tags: Tags | None,
        trusted_origins: Iterable[str],
        heartbeat: Duration,
    ) -> None:
        check_lilota(lilota)
        if tags is not None and not callable(tags):
            raise ConfigurationError(
                "tags must be a callable (request) -> the tags of the task that is scheduled, "
                f"not {tags!r:.250}"
            )
        self._lilota = lilota
        self._guard = Guard(authorize, trusted_origins)
        self._tags = tags
        self._heartbeat = checked_duration("heartbeat", heartbeat, least=0.01)

    async def schedule(self, request: Request) -> Response:
        """Commit a task of this name: 202 with its place, or 422 with the reasons."""
        await self._guard.require(request, "schedule")
        name = request.path_params["name"]
        settings = self._lilota.settings_of(name)
        if settings is None or not settings.public:
            raise HTTPException(404, "There is no such task to schedule")
        value = await self._body(request)
        tags = self._tags(request) if self._tags else ()
        if inspect.isawaitable(tags):
            tags = await tags
        task_id = await self._lilota.schedule(name, value, tags=tags)
        place = f"{quote(_path(request).removesuffix(f'/{name}'))}/{task_id}"
        return _json(
            {"id": str(task_id), "name": name, "status": "pending", "url": place},
            202,
            {"location": place},
        )

    async def listing(self, request: Request) -> Response:
        """The newest tasks that fit and that may be seen; a page may hold fewer than its limit."""
        await self._guard.require(request, "list")
        query = request.query_params
        limit = _number(query.get("limit"), "limit", PAGE_ROWS, MOST_PAGE_ROWS)
        before = query.get("before")
        filters = Filters(
            status=_status(query.get("status")),
            name=_text(query.get("name"), "name"),
            tag=_text(query.get("tag"), "tag"),
        )
        page = await browse(
            self._lilota.database,
            filters,
            before=None if before is None else _id(before, "before"),
            limit=max(limit, 1),
        )
        shown = [task for task in page.tasks if await self._guard.allows(request, "list", task)]
        return _json(
            {
                "tasks": [summary(task) for task in shown],
                "next": None if page.next is None else str(page.next),
            }
        )

    async def read(self, request: Request) -> Response:
        """How the task is, without its payloads."""
        return _json(summary(await self._task(request, "read")))

    async def result(self, request: Request) -> Response:
        """The output once there is one; 202 before, after `wait` seconds at most."""
        task = await self._task(request, "result")
        wait = _number(request.query_params.get("wait"), "wait", 0, int(LONGEST_WAIT_SECONDS))
        if wait and not task.status.is_final:
            try:
                task = await self._lilota.wait(task.id, timeout=wait)
            except TimeoutError:
                task = await self._lilota.get_task_by_id(task.id) or task
        output = Redaction(self._lilota.settings_of(task.name)).value(task.output)
        body = {**summary(task), "output": output}
        if task.status.is_final:
            return _json(body)
        return _json(body, 202, {"retry-after": str(RETRY_RESULT_SECONDS)})

    async def events(self, request: Request) -> Response:
        """What happens to the task, as server-sent events."""
        task = await self._task(request, "events")
        if not self._lilota.is_running and not task.status.is_final:
            raise NotRunning("following a task")
        return task_stream(self._lilota, task, request, self._heartbeat)

    async def cancel(self, request: Request) -> Response:
        """Stop the task; 202 when it takes long to end, 409 when it is final already."""
        task = await self._task(request, "cancel")
        try:
            done = await self._lilota.cancel(task.id, timeout=CANCEL_SECONDS)
        except TimeoutError:
            return await self._changed(task, 202)
        return await self._changed(task, 200 if done else 409)

    async def retry(self, request: Request) -> Response:
        """Put the task back to pending; 409 when it is not final."""
        task = await self._task(request, "retry")
        return await self._changed(task, 200 if await self._lilota.retry(task.id) else 409)

    async def healthz(self, _request: Request) -> Response:
        """The process serves requests. Asks for no authorization, and tells nothing else."""
        return _json({"status": "ok"})

    async def readyz(self, _request: Request) -> Response:
        """Whether tasks can be taken and run here; 503 when not. Asks for no authorization."""
        health = await self._lilota.health()
        checks = {
            name: bool(getattr(health, name)) for name in ("running", "database", "cells", "lease")
        }
        if health.is_ready:
            return _json({"status": "ready", "checks": checks})
        return _json({"status": "unavailable", "checks": checks}, 503, {"retry-after": "5"})

    async def _changed(self, task: Task, status: int) -> Response:
        now = await self._lilota.get_task_by_id(task.id)
        return _json(summary(now or task), status)

    async def _task(self, request: Request, action: Any) -> Task:
        task_id = _id(request.path_params["task_id"], "task_id")
        task = await self._lilota.get_task_by_id(task_id)
        await self._guard.require(request, action, task)
        if task is None or not isinstance(task.status, TaskStatus):
            raise HTTPException(404, "There is no task of this id")
        return task

    async def _body(self, request: Request) -> Any:
        most = self._lilota.max_payload_bytes
        body = bytearray()
        try:
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    raise HTTPException(413, f"The input is larger than {most} bytes")
        except ClientDisconnect:
            raise HTTPException(400, "The client went away") from None
        if not body:
            return None
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and not kind.endswith("+json"):
            raise HTTPException(415, "The input is JSON: send content-type: application/json")
        try:
            return msgspec.json.decode(bytes(body))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            name = request.path_params["name"]
            raise InvalidInput(name, "$", f"it is no JSON ({error})") from None


def answering(
    endpoint: Callable[[Request], Awaitable[Response]],
) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint, with an answer for every error that a client or the database causes."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except HTTPException as error:
            return _json({"detail": error.detail}, error.status_code, error.headers)
        except InvalidInput as error:
            return _json({"detail": invalid_input(error)}, 422)
        except LilotaError as error:
            refused = refusal(error)
            if refused is not None:
                return _json({"detail": refused[1]}, refused[0])
            trouble = unavailable(error)
            if trouble is None:
                raise
            return _json(trouble.body, 503, {"retry-after": str(trouble.retry_after)})

    return answer


def _path(request: Request) -> str:
    """The path as the client knows it, with what a proxy in front has taken away."""
    root: str = request.scope.get("app_root_path", request.scope.get("root_path", ""))
    path: str = request.scope["path"]
    return path if path.startswith(root) else root + path


def _json(body: Any, status: int = 200, headers: Any = None) -> Response:
    return Response(
        msgspec.json.encode(body),
        status,
        {"cache-control": "no-store", "x-content-type-options": "nosniff", **(headers or {})},
        "application/json",
    )


def _id(text: Any, name: str) -> UUID:
    try:
        return text if isinstance(text, UUID) else UUID(text)
    except ValueError:
        raise HTTPException(422, f"{name} is no task's id: {text[:50]!r}") from None


def _status(text: str | None) -> TaskStatus | None:
    try:
        return TaskStatus(text) if text else None
    except ValueError:
        raise HTTPException(422, f"status is one of {', '.join(TaskStatus)}") from None


def _text(text: str | None, name: str) -> str | None:
    if text and (not text.isprintable() or len(text) > MOST_PAGE_ROWS):
        raise HTTPException(422, f"{name} is a printable text of up to {MOST_PAGE_ROWS} characters")
    return text or None


def _number(text: str | None, name: str, default: int, most: int) -> int:
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) <= most):
        raise HTTPException(422, f"{name} is a whole number from 0 to {most}")
    return int(text)
