"""Templates to responses; everything that is shown is escaped."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from lilota_async.integrations.dashboard import formatting

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
TOKEN_COOKIE = "lilota_csrf"  # noqa: S105  # its name
TOKEN_LENGTH = 43
_TITLES = {403: "Not allowed", 404: "Not found", 409: "Not possible", 503: "Not available"}


class Renderer:
    """Reads the templates when the first page is asked for, once for all who ask meanwhile."""

    def __init__(self) -> None:
        self._environment: Environment | None = None
        self._loading = anyio.Lock()

    async def fragment(self, request: Request, template: str, **values: Any) -> str:
        """The HTML of a template."""
        environment = self._environment or await self._loaded()
        context = {"root": root_of(request), "csrf": token_of(request), **values}
        return environment.get_template(template).render(context)

    async def _loaded(self) -> Environment:
        async with self._loading:
            if self._environment is None:
                self._environment = await anyio.to_thread.run_sync(_load)
            return self._environment

    async def page(
        self, request: Request, template: str, status: int = 200, **values: Any
    ) -> Response:
        """The page of a template; the first one gives the browser its token."""
        known = request.cookies.get(TOKEN_COOKIE)
        html = await self.fragment(request, template, **values)
        response = HTMLResponse(html, status, {"cache-control": "no-store"})
        if known != token_of(request):
            response.set_cookie(
                TOKEN_COOKIE,
                token_of(request),
                path=root_of(request) or "/",
                httponly=True,
                samesite="strict",
                secure=request.url.scheme == "https",
            )
        return response

    async def problem(
        self,
        request: Request,
        status: int,
        detail: str,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """The page that says what is wrong."""
        response = await self.page(
            request,
            "problem.html",
            status,
            title=_TITLES.get(status, "Not possible"),
            detail=detail,
        )
        response.headers.update(headers or {})
        return response


def root_of(request: Request) -> str:
    """The path that the dashboard is mounted at, as the browser knows it."""
    root: str = request.scope.get("root_path", "")
    return root.rstrip("/")


def token_of(request: Request) -> str:
    """The token of this browser, which its forms send back; a new one if it has none."""
    if not hasattr(request.state, "lilota_csrf"):
        known = request.cookies.get(TOKEN_COOKIE, "")
        is_one = len(known) == TOKEN_LENGTH and known.isascii()
        request.state.lilota_csrf = known if is_one else secrets.token_urlsafe(32)
    token: str = request.state.lilota_csrf
    return token


def _load() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        auto_reload=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(formatting.FILTERS)
    for name in environment.list_templates(extensions=["html"]):
        environment.get_template(name)
    return environment
