"""Who may do what, and whether a browser was made to ask by another site."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request

from lilota_async.errors import ConfigurationError

if TYPE_CHECKING:
    from lilota_async.models.tables import Task

Action: TypeAlias = Literal[
    "list", "read", "result", "events", "schedule", "cancel", "retry", "delete", "payloads"
]
"""What somebody wants to do. `list` is asked once without a task, then for each that would be
shown, which has been read without its payloads: go by its name and tags. `schedule` has the task's
name in `request.path_params["name"]`. `payloads` is to see input, output and checkpoint in the
dashboard."""

Authorize: TypeAlias = Callable[[Request, Any, Any], bool | Awaitable[bool]]
"""`(request, action, task)`; `task` is None for `list` as a whole, for `schedule`, and for an id
that has no task."""

_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


def allow_all(_request: Request, _action: Action, _task: Task | None) -> bool:
    """Everybody may do everything: for a network that only operators reach, or for trying out."""
    return True


def check_lilota(lilota: object) -> None:
    """Raise ConfigurationError unless it is a Lilota, before the first request finds out."""
    from lilota_async.core import Lilota

    if not isinstance(lilota, Lilota):
        raise ConfigurationError(
            f"The first argument must be a Lilota, such as Lilota(db_url=...), not {lilota!r:.250}"
        )


class Guard:
    """Asks `authorize`, and refuses what another site makes a browser send."""

    def __init__(self, authorize: Authorize, trusted_origins: Iterable[str] = ()) -> None:
        if not callable(authorize):
            raise ConfigurationError(
                "authorize must be a callable (request, action, task) -> bool, or "
                f"lilota_async.integrations.allow_all, not {authorize!r}"
            )
        if isinstance(trusted_origins, str):
            raise ConfigurationError(f"trusted_origins takes several: [{trusted_origins!r}]")
        if not isinstance(trusted_origins, Iterable):
            raise ConfigurationError(
                "trusted_origins takes origins such as ['https://example.com'], "
                f"not {trusted_origins!r:.250}"
            )
        self._authorize = authorize
        self._trusted = frozenset(_checked_origin(origin) for origin in trusted_origins)

    async def allows(self, request: Request, action: Action, task: Task | None = None) -> bool:
        """What `authorize` says; only True is a yes."""
        answer = self._authorize(request, action, task)
        if inspect.isawaitable(answer):
            answer = await answer
        return answer is True

    async def require(self, request: Request, action: Action, task: Task | None = None) -> None:
        """403 unless `authorize` says yes, and unless a change comes from where it may."""
        if request.method not in ("GET", "HEAD"):
            self.check_origin(request)
        if not await self.allows(request, action, task):
            raise HTTPException(403, f"You may not do this: {action}")

    def check_origin(self, request: Request) -> None:
        """403 when a browser says that another site has made this request.

        Browsers send Sec-Fetch-Site or, older ones, Origin; other clients send neither, and
        carry no cookies of a user along without their knowing.
        """
        origin = request.headers.get("origin")
        if origin is not None and origin.lower() in self._trusted:
            return
        site = request.headers.get("sec-fetch-site")
        if site is not None:
            foreign = site not in ("same-origin", "none")
        else:
            foreign = origin is not None and not _is_own(origin, request)
        if foreign:
            raise HTTPException(
                403, "Another site has made this request; name it in trusted_origins to allow it"
            )


def _is_own(origin: str, request: Request) -> bool:
    """Whether the origin is the host that was asked; a proxy may have changed the scheme."""
    try:
        asked = urlsplit(f"//{request.headers.get('host', '')}")
        parts = urlsplit(origin)
        default = _DEFAULT_PORTS.get(parts.scheme)
        return (
            default is not None
            and bool(parts.hostname)
            and parts.hostname == asked.hostname
            and (parts.port or default) == (asked.port or default)
        )
    except ValueError:
        return False


def _checked_origin(origin: object) -> str:
    try:
        parts = urlsplit(origin) if isinstance(origin, str) else None
    except ValueError:
        parts = None
    if parts is None or not parts.scheme or not parts.netloc or parts[2:] != ("", "", ""):
        raise ConfigurationError(
            f"A trusted origin is scheme and host, such as 'https://example.com', not {origin!r}"
        )
    return parts.geturl().lower()
