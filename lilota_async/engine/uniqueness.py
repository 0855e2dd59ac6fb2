"""Scheduling tasks with a unique key."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from lilota_async.engine.backlog import Backlog
from lilota_async.errors import QueueFull
from lilota_async.models.values import TaskId
from lilota_async.options import OnConflict
from lilota_async.storage.transitions import NewTask
from lilota_async.storage.uniqueness import UniqueKeys
from lilota_async.storage.writer import Writer


class UniqueInserts:
    """Inserts through a writer of their own, which comes up with the first.

    A transaction of the application that has written a key and stays open keeps others waiting
    who want that key: it must be nobody but them.
    """

    def __init__(
        self, create_writer: Callable[[], Writer], backlog: Backlog, keys: UniqueKeys
    ) -> None:
        self._create_writer = create_writer
        self._backlog = backlog
        self._keys = keys
        self._writer: Writer | None = None
        self._starting = asyncio.Lock()

    async def insert(
        self, task: NewTask, on_conflict: OnConflict, on_written: Callable[[], None]
    ) -> TaskId:
        """Commit the row, unless another has its key; returns the id that has it then.

        `on_written` is called when there is something new, whether the caller still waits or not.

        Raises AlreadyScheduled, and QueueFull when there is no room for a new row.
        """
        writer = await self._started()
        while True:
            full = None
            if self._keys.must_wait:
                await writer.execute(partial(self._keys.wait, task=task))
            try:
                refused = await self._backlog.insert([task], on_written, writer=writer)
            except QueueFull as error:
                full = error
            if full is None and task.id not in refused:
                return task.id
            found = await writer.execute(
                partial(self._keys.settle, task=task, on_conflict=on_conflict),
                on_written=on_written,  # it may be another task now
            )
            if found is not None:
                return found
            if full is not None:
                raise full

    async def close(self) -> None:
        """Write what waits, and disconnect."""
        writer, self._writer = self._writer, None
        if writer is not None:
            await writer.close()

    async def _started(self) -> Writer:
        async with self._starting:
            if self._writer is None:
                writer = self._create_writer()
                await writer.start()
                self._writer = writer
            return self._writer
