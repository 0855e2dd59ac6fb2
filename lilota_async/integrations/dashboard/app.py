"""The dashboard as a Starlette application, to be mounted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lilota_async.errors import LilotaError
from lilota_async.integrations.authorization import Authorize, Guard, check_lilota
from lilota_async.integrations.dashboard.actions import Actions
from lilota_async.integrations.dashboard.live import Live
from lilota_async.integrations.dashboard.pages import Pages
from lilota_async.integrations.dashboard.rendering import Renderer
from lilota_async.integrations.dashboard.snapshots import Snapshots
from lilota_async.integrations.problems import refusal, unavailable
from lilota_async.options import checked_flag

if TYPE_CHECKING:
    from lilota_async.core import Lilota

STATIC = Path(__file__).parent / "static"
SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
        "object-src 'none'"
    ),
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


def dashboard(
    lilota: Lilota,
    *,
    authorize: Authorize,
    trusted_origins: Iterable[str] = (),
    show_unregistered: bool = False,
) -> Starlette:
    """Pages that show the tasks of this Lilota's database as they change.

    Args:
        authorize: `(request, action, task) -> bool`, sync or async; see
            `authorization.Action`. `allow_all` lets everybody do everything.
        trusted_origins: Other sites whose pages may ask for changes, as "https://host".
        show_unregistered: Show the payloads of names too that are not registered here, whose
            `redact=` is therefore not known.

    Raises ConfigurationError when `authorize` is not callable or an origin is none.

    Example:
        >>> app.mount("/lilota", dashboard(lilota, authorize=lambda request, *_: is_admin(request)))
    """
    check_lilota(lilota)
    checked_flag("show_unregistered", show_unregistered)
    guard = Guard(authorize, trusted_origins)
    renderer = Renderer()
    snapshots = Snapshots(lilota)
    pages = Pages(lilota, guard, snapshots, renderer, show_unregistered)
    actions = Actions(lilota, guard, snapshots)
    live = Live(lilota, guard, snapshots, pages)

    routes = [
        ("/", pages.overview, "GET"),
        ("/live", live.overview, "GET"),
        ("/tasks", pages.tasks, "GET"),
        ("/tasks/live", live.tasks, "GET"),
        ("/tasks/{task_id}", pages.task, "GET"),
        ("/tasks/{task_id}/live", live.task, "GET"),
        ("/tasks/{task_id}/cancel", actions.cancel, "POST"),
        ("/tasks/{task_id}/retry", actions.retry, "POST"),
        ("/tasks/{task_id}/delete", actions.delete, "POST"),
    ]
    app = Starlette(
        routes=[
            *(
                Route(path, _answering(endpoint, renderer), methods=[method])
                for path, endpoint, method in routes
            ),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
    )
    app.add_middleware(SecurityHeaders)
    return app


def _answering(
    endpoint: Callable[[Request], Awaitable[Response]], renderer: Renderer
) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint, with a page for every error that a visitor or the database causes."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except HTTPException as error:
            detail = str(error.detail)
            return await renderer.problem(request, error.status_code, detail, error.headers)
        except LilotaError as error:
            refused = refusal(error)
            if refused is not None:
                return await renderer.problem(request, *refused)
            trouble = unavailable(error)
            if trouble is None:
                raise
            headers = {"retry-after": str(trouble.retry_after)}
            return await renderer.problem(request, 503, trouble.body["detail"], headers)

    return answer


class SecurityHeaders:
    """Sets them on every answer: no other site frames a page, no script stands in one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-cache")
            await send(message)

        await self._app(scope, receive, send_with_headers)
