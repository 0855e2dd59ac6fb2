"""PostgreSQL's LISTEN: other nodes' new tasks and cancel requests, without polling for them.

One connection for each node. While it is down, and on other databases, the polls do the work.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

from lilota_async.errors import StoreError
from lilota_async.storage.database import Database, discard
from lilota_async.storage.failures import is_disconnect
from lilota_async.storage.postgresql_sql import CHANNEL
from lilota_async.storage.transitions import News

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0
_CHECK_SECONDS = 60.0
_NEWS = {news.value: news for news in News}  # what newer versions add means a look
_logger = logging.getLogger("lilota_async")


class Notifications:
    """Calls `on_notify` when another node says that there is something to do.

    `on_up` is called when it begins to listen, and `on_down` when it does so no more.
    """

    def __init__(
        self,
        database: Database,
        origin: str,
        on_notify: Callable[[News], None],
        *,
        on_up: Callable[[], None],
        on_down: Callable[[], None],
    ) -> None:
        self._database = database
        self._origin = origin  # its own notifications tell a node nothing
        self._on_notify = on_notify
        self._on_up = on_up  # what was said before was not heard
        self._on_down = on_down
        self._task: asyncio.Task[None] | None = None
        self.is_up = False

    def start(self) -> None:
        self._task = asyncio.create_task(self._listen_on(), name="lilota notifications")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _listen_on(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            try:
                await self._listen()
                pause = _FIRST_PAUSE
            except Exception as error:
                if not isinstance(error, StoreError) and not is_disconnect(error):
                    _logger.exception("Listening failed in an unforeseen way; trying on")
            self.is_up = False
            self._on_down()
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _listen(self) -> None:
        """Listen until the connection breaks."""
        connection = await self._database.acquire()
        try:
            driver: Any = (await connection.get_raw_connection()).driver_connection
            if hasattr(driver, "add_listener"):
                await self._listen_by_asyncpg(driver)
            else:
                await self._listen_by_psycopg(driver)
        finally:
            await discard(connection)  # it listens: no other use may get it

    async def _listen_by_asyncpg(self, driver: Any) -> None:
        ended = asyncio.Event()
        driver.add_termination_listener(lambda _: ended.set())
        await driver.add_listener(CHANNEL, lambda *told: self._hear(told[-1]))
        self.is_up = True
        self._on_up()
        await ended.wait()

    async def _listen_by_psycopg(self, driver: Any) -> None:
        await driver.execute(f"LISTEN {CHANNEL}")
        self.is_up = True
        self._on_up()
        while True:
            async for notify in driver.notifies(timeout=_CHECK_SECONDS):
                self._hear(notify.payload)

    def _hear(self, payload: str) -> None:
        origin, _, news = payload.partition(" ")
        if origin != self._origin:
            self._on_notify(_NEWS.get(news, News.LOOK))
