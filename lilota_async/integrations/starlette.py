"""The router as a Starlette application, to be mounted; the dashboard is another."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.routing import Route

from lilota_async.integrations.authorization import Authorize, allow_all
from lilota_async.integrations.dashboard import dashboard
from lilota_async.integrations.endpoints import Endpoints, Tags, answering
from lilota_async.integrations.streams import HEARTBEAT_SECONDS
from lilota_async.models.values import Duration

if TYPE_CHECKING:
    from lilota_async.core import Lilota

__all__ = ["allow_all", "dashboard", "router"]


def router(
    lilota: Lilota,
    *,
    authorize: Authorize,
    tags: Tags | None = None,
    trusted_origins: Iterable[str] = (),
    heartbeat: Duration = HEARTBEAT_SECONDS,
) -> Starlette:
    """Scheduling and following tasks over HTTP.

    ============================  =============================================================
    `POST /{name}`                schedules a task registered with `public=True`: 202 with its
                                  Location, 422 with the reasons, 503 while that cannot be done
    `GET /`                       the newest, by `status`, `name`, `tag`; `limit`, `before`
    `GET /{id}`                   how it is
    `GET /{id}/result`            its output; 202 until it is final, `?wait=` up to 60 seconds
    `GET /{id}/events`            server-sent events: status, progress, log; ends with the task
    `POST /{id}/cancel`           stops it; 409 when it is final already
    `POST /{id}/retry`            runs it again; 409 when it is not final
    `GET /healthz`, `/readyz`     this process serves; tasks can be taken and run here
    ============================  =============================================================

    Args:
        authorize: `(request, action, task) -> bool`, sync or async; see
            `authorization.Action`. `allow_all` lets everybody do everything.
        tags: `(request)` to the tags of a task that is scheduled, such as who wanted it.
        trusted_origins: Other sites whose pages may ask for changes, as "https://host".
        heartbeat: How often an idle stream says that it is alive.

    Raises ConfigurationError when `authorize` is not callable or an origin is none.

    Example:
        >>> app = Starlette(lifespan=lilota.lifespan)
        >>> app.mount("/tasks", router(lilota, authorize=allow_all))
    """
    endpoints = Endpoints(
        lilota, authorize, tags=tags, trusted_origins=trusted_origins, heartbeat=heartbeat
    )
    routes = [
        ("/", endpoints.listing, "GET"),
        ("/healthz", endpoints.healthz, "GET"),
        ("/readyz", endpoints.readyz, "GET"),
        ("/{task_id}", endpoints.read, "GET"),
        ("/{task_id}/result", endpoints.result, "GET"),
        ("/{task_id}/events", endpoints.events, "GET"),
        ("/{task_id:uuid}/cancel", endpoints.cancel, "POST"),
        ("/{task_id:uuid}/retry", endpoints.retry, "POST"),
        ("/{name:path}", endpoints.schedule, "POST"),
    ]
    return Starlette(
        routes=[
            Route(path, answering(endpoint), methods=[method]) for path, endpoint, method in routes
        ]
    )
