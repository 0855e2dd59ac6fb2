"""Applications with the router, in this process and behind a real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import uvicorn

DEADLINE = 30.0


def client_of(app: Any, **options: Any) -> httpx.AsyncClient:
    """A client that calls the application in this process."""
    transport = httpx.ASGITransport(app=app)
    return httpx.AsyncClient(transport=transport, base_url="http://testserver", **options)


@asynccontextmanager
async def served(app: Any, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application behind a uvicorn, on this loop; streams need one."""
    config = uvicorn.Config(app, port=0, lifespan="off", log_level="warning", **options)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    try:
        async with asyncio.timeout(DEADLINE):
            while not server.started:
                await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", timeout=DEADLINE, limits=limits
        ) as client:
            yield client
    finally:
        server.should_exit = True
        await serving


class Event:
    """One server-sent event."""

    def __init__(self, fields: dict[str, str]) -> None:
        self.kind = fields.get("event", "")
        self.id = fields.get("id", "")
        self.data: dict[str, Any] = json.loads(fields["data"])

    def __repr__(self) -> str:
        return f"{self.kind} {self.id} {self.data}"


async def events_of(response: httpx.Response) -> AsyncIterator[Event]:
    """The events of a stream, without its comments."""
    fields: dict[str, str] = {}
    async for line in response.aiter_lines():
        if not line:
            if "data" in fields:
                yield Event(fields)
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value
