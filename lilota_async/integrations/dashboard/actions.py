"""What the buttons do: by POST only, with the browser's token, and then back to a page."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING
from urllib.parse import parse_qs
from uuid import UUID

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from lilota_async.integrations.authorization import Action, Guard
from lilota_async.integrations.dashboard.rendering import TOKEN_COOKIE, root_of
from lilota_async.integrations.dashboard.snapshots import Snapshots

if TYPE_CHECKING:
    from lilota_async.core import Lilota

CANCEL_SECONDS = 10.0
LONGEST_FORM = 10_000


class Actions:
    """One method for each button."""

    def __init__(self, lilota: Lilota, guard: Guard, snapshots: Snapshots) -> None:
        self._lilota = lilota
        self._guard = guard
        self._snapshots = snapshots

    async def cancel(self, request: Request) -> Response:
        """Stop the task."""
        task_id = await self._allowed(request, "cancel")
        try:
            done = await self._lilota.cancel(task_id, timeout=CANCEL_SECONDS)
        except TimeoutError:
            return self._back(request, f"/tasks/{task_id}", "cancelling")
        return self._back(request, f"/tasks/{task_id}", "cancelled" if done else "final")

    async def retry(self, request: Request) -> Response:
        """Put it back to pending."""
        task_id = await self._allowed(request, "retry")
        done = await self._lilota.retry(task_id)
        return self._back(request, f"/tasks/{task_id}", "retried" if done else "not_final")

    async def delete(self, request: Request) -> Response:
        """Delete its row."""
        task_id = await self._allowed(request, "delete")
        await self._lilota.delete_task_by_id(task_id)
        return self._back(request, "/tasks", "deleted")

    def _back(self, request: Request, path: str, notice: str) -> Response:
        self._snapshots.forget()
        return RedirectResponse(f"{root_of(request)}{path}?notice={notice}", 303)

    async def _allowed(self, request: Request, action: Action) -> UUID:
        self._guard.check_origin(request)
        await _check_token(request)
        task_id = id_of(request)
        task = await self._lilota.get_task_by_id(task_id)
        await self._guard.require(request, action, task)
        if task is None:
            raise HTTPException(404, "There is no task of this id")
        return task_id


def id_of(request: Request) -> UUID:
    """The task's id in the path, or 404."""
    try:
        return UUID(request.path_params["task_id"])
    except ValueError:
        raise HTTPException(404, "This is no task's id") from None


async def _check_token(request: Request) -> None:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LONGEST_FORM:
            raise HTTPException(413, "The form is too large")
    sent = parse_qs(body.decode(errors="replace")).get("csrf", [""])[0]
    kept = request.cookies.get(TOKEN_COOKIE, "")
    if not kept or not hmac.compare_digest(sent.encode(), kept.encode()):
        raise HTTPException(
            403, "The page was open for too long, or its cookie was not kept; load it again"
        )
