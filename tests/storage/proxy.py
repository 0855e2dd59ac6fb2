"""A TCP proxy in front of a database that can lose its answers, or go away."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import Self

from sqlalchemy import make_url

_PORTS = {"postgresql": 5432, "mysql": 3306}


class Proxy:
    """Forwards connections; `mute()` swallows the server's answers, `cut()` ends everything."""

    def __init__(self, url: str) -> None:
        self._target = make_url(url)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        # Bound for as long as it may be wanted again: nobody else gets the port meanwhile.
        self._held = socket.socket()
        self._port = 0
        self._muted = False
        self.swallowed = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._held.bind(("127.0.0.1", 0))
        self._port = self._held.getsockname()[1]
        await self.restore()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cut()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._held.close()

    @property
    def url(self) -> str:
        """The URL of the database by way of the proxy."""
        url = self._target.set(host="127.0.0.1", port=self._port)
        url = url.difference_update_query(["host", "port"])
        return url.render_as_string(hide_password=False)

    def mute(self) -> None:
        """Let requests through, but no answer; `swallowed` is set when one came."""
        self._muted = True

    async def cut(self) -> None:
        """Close all connections and refuse new ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            writer.transport.abort()

    async def restore(self) -> None:
        """Accept connections and let everything through, on the same port as before."""
        self._muted = False
        self.swallowed.clear()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        server_reader, server_writer = await self._open()
        if writer.transport.is_closing():  # cut off meanwhile
            server_writer.transport.abort()
            return
        self._writers.add(server_writer)
        for task in (
            asyncio.create_task(self._forward(reader, server_writer, answers=False)),
            asyncio.create_task(self._forward(server_reader, writer, answers=True)),
        ):
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        url = self._target
        port = url.port or _PORTS[url.get_backend_name()]
        host = url.host or url.query.get("host")
        assert isinstance(host, str)
        if host.startswith("/"):
            return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        return await asyncio.open_connection(host, port)

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool
    ) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                if answers and self._muted:
                    self.swallowed.set()
                    continue
                writer.write(data)
                await writer.drain()
        writer.close()
        self._writers.discard(writer)
