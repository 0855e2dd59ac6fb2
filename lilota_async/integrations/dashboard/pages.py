"""The pages, and the parts of them that change."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode
from uuid import UUID

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from lilota_async.integrations.authorization import Guard
from lilota_async.integrations.dashboard import views
from lilota_async.integrations.dashboard.actions import id_of
from lilota_async.integrations.dashboard.rendering import Renderer
from lilota_async.integrations.dashboard.snapshots import Snapshots
from lilota_async.integrations.payloads import Redaction, masked
from lilota_async.models.values import TaskStatus
from lilota_async.storage.browsing import Filters

if TYPE_CHECKING:
    from lilota_async.core import Lilota
    from lilota_async.models.tables import Task
    from lilota_async.registry import Settings

HOURS = (1, 6, 24)
LONGEST_FILTER = 200
NOTICES = {
    "cancelled": "The task is cancelled, and its process is gone.",
    "cancelling": "The task was asked to end, and has not ended yet.",
    "final": "The task had ended already.",
    "retried": "The task will run again.",
    "not_final": "The task has not ended: cancel it first.",
    "deleted": "The task is deleted.",
}


class Pages:
    """One method for each page, and one for what of it is sent again when it changes."""

    def __init__(
        self,
        lilota: Lilota,
        guard: Guard,
        snapshots: Snapshots,
        renderer: Renderer,
        show_unregistered: bool,
    ) -> None:
        self._lilota = lilota
        self._guard = guard
        self._snapshots = snapshots
        self._renderer = renderer
        self._show_unregistered = show_unregistered

    async def overview(self, request: Request) -> Response:
        """Is it healthy, what fails, and why."""
        html = await self.overview_html(request)
        return await self._page(request, "overview.html", html, f"/live?hours={_hours(request)}")

    async def overview_html(self, request: Request) -> str:
        await self._guard.require(request, "list")
        hours = _hours(request)
        overview = await self._snapshots.overview(hours)
        settings = self._settings()
        failures = await self._visible(request, overview.failures)
        groups = views.failure_groups(failures, self._hides_message)
        return await self._renderer.fragment(
            request,
            "_overview.html",
            hours=hours,
            choices=HOURS,
            stats=overview.stats,
            findings=views.findings(overview, hours, groups),
            groups=groups,
            running=await self._visible(request, overview.running[:5]),
            chart=views.chart(overview.history),
            ticks=views.ticks(settings, datetime.now(UTC)),
            names=sorted(
                overview.stats.names.values(),
                key=lambda each: (-each.failed, -each.running, -each.pending, each.name),
            ),
            slots=sum(node.slots for node in overview.stats.nodes if node.is_live),
        )

    async def tasks(self, request: Request) -> Response:
        """The list of tasks, by what is looked for."""
        html = await self.tasks_html(request)
        query = urlencode([(k, v) for k, v in request.query_params.items() if k != "notice"])
        return await self._page(
            request,
            "tasks.html",
            html,
            f"/tasks/live?{query}",
            filters=_filters(request),
            statuses=list(TaskStatus),
            known=self._lilota.registered_tasks,
        )

    async def tasks_html(self, request: Request) -> str:
        await self._guard.require(request, "list")
        filters = _filters(request)
        before = _before(request)
        page = await self._snapshots.page(filters, before)
        given = {
            "status": filters.status,
            "name": filters.name,
            "tag": filters.tag,
            "error": filters.error,
        }
        kept = {key: str(value) for key, value in given.items() if value}
        # Whether a text is found in a message tells what the message does not show.
        found = [
            task
            for task in await self._visible(request, page.tasks)
            if filters.error is None or not self._hides_message(task.name)
        ]
        older = None if page.next is None else urlencode({**kept, "before": str(page.next)})
        return await self._renderer.fragment(
            request,
            "_tasks.html",
            rows=[
                (
                    task,
                    *views.reason(task, self._hides_message(task.name)),
                    views.seconds_taken(task),
                )
                for task in found
            ],
            older=older,
            newest=urlencode(kept) if before is not None else None,
            is_search=filters.needs_scan,
            kept=kept,
        )

    async def task(self, request: Request) -> Response:
        """Everything about one task."""
        task = await self._task(request)
        html = await self.task_html(request)
        shown = "?show=payloads" if _wants_payloads(request) else ""
        log = masked(task.log, self._redaction(task).secrets_of(task)) if task.log else ""
        path = f"/tasks/{task.id}/live{shown}"
        return await self._page(request, "task.html", html, path, task=task, log=log)

    async def task_html(self, request: Request) -> str:
        task = await self._task(request)
        settings = self._lilota.settings_of(task.name)
        redaction = self._redaction(task)
        secrets = redaction.secrets_of(task)
        payloads: dict[str, Any] | None = None
        if _wants_payloads(request):
            await self._guard.require(request, "payloads", task)
            payloads = {
                "Input": redaction.value(task.input),
                "Output": redaction.value(task.output),
                "Checkpoint": redaction.value(task.checkpoint),
            }
        return await self._renderer.fragment(
            request,
            "_task.html",
            task=task,
            buttons={
                action: sensible and await self._guard.allows(request, action, task)  # type: ignore[arg-type]
                for action, sensible in views.may_be(task).items()
            },
            failure=_failure(task.exception, secrets),
            earlier=[_failure(each, secrets) for each in _listed(task.failures)],
            seconds=views.seconds_taken(task),
            payloads=payloads,
            may_see=self._knows(settings) and await self._guard.allows(request, "payloads", task),
            knows=self._knows(settings),
        )

    async def _page(
        self, request: Request, template: str, html: str, live: str, **values: Any
    ) -> Response:
        notice = NOTICES.get(request.query_params.get("notice", ""))
        return await self._renderer.page(
            request, template, html=html, live=live, notice=notice, **values
        )

    async def _task(self, request: Request) -> Task:
        task = await self._snapshots.task(id_of(request))
        await self._guard.require(request, "read", task)
        if task is None:
            raise HTTPException(404, "There is no task of this id; it may have been deleted")
        return task

    async def _visible(self, request: Request, tasks: list[Task]) -> list[Task]:
        return [task for task in tasks if await self._guard.allows(request, "list", task)]

    def _knows(self, settings: Settings | None) -> bool:
        """Whether it is known what of the payloads is not to be shown."""
        return settings is not None or self._show_unregistered

    def _hides_message(self, name: str) -> bool:
        """Whether a failure's message may hold what is not to be shown."""
        settings = self._lilota.settings_of(name)
        return bool(settings.redact) if settings is not None else not self._show_unregistered

    def _redaction(self, task: Task) -> Redaction:
        settings = self._lilota.settings_of(task.name)
        return Redaction(settings) if self._knows(settings) else Redaction(None, hides_all=True)

    def _settings(self) -> dict[str, Settings]:
        found = {}
        for name in self._lilota.registered_tasks:
            settings = self._lilota.settings_of(name)
            if settings is not None:
                found[name] = settings
        return found


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _failure(value: Any, secrets: tuple[str, ...]) -> dict[str, str] | None:
    """What the row says of a failure, as text; None when that is unreadable."""
    if not isinstance(value, dict):
        return None
    known = {"attempt": "", "kind": "error", "type": "", "message": "", "traceback": ""}
    said = {key: each for key, each in value.items() if each is not None}
    return {key: masked(str(each), secrets) for key, each in {**known, **said}.items()}


def _hours(request: Request) -> int:
    given = request.query_params.get("hours", "")
    return next((hours for hours in HOURS if str(hours) == given), HOURS[0])


def _filters(request: Request) -> Filters:
    query = request.query_params

    def text(name: str) -> str | None:
        value = query.get(name, "").strip()
        if len(value) > LONGEST_FILTER or not (value.isprintable() or not value):
            raise HTTPException(404, f"Nothing can be found by such a {name}")
        return value or None

    status = text("status")
    if status is not None and status not in list(TaskStatus):
        raise HTTPException(404, "There is no such status")
    return Filters(
        status=None if status is None else TaskStatus(status),
        name=text("name"),
        tag=text("tag"),
        error=text("error"),
    )


def _before(request: Request) -> UUID | None:
    given = request.query_params.get("before")
    try:
        return UUID(given) if given else None
    except ValueError:
        raise HTTPException(404, "There is no such page") from None


def _wants_payloads(request: Request) -> bool:
    return request.query_params.get("show") == "payloads"
