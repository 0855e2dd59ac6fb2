"""Deletes what has ended and is kept no longer: in the background, a small batch at a time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Mapping
from typing import Protocol

from lilota_async.errors import StoreUnavailable
from lilota_async.models.values import TaskStatus
from lilota_async.registry import Registry

PAUSE_SECONDS = 0.05  # after each batch: others want to write, too
ROUND_SECONDS = (1.0, 60.0)
ROUNDS_PER_RETENTION = 10
logger = logging.getLogger("lilota_async")


class DeleteSome(Protocol):
    """Deletes one batch of what has ended so many seconds ago; True when there may be more."""

    def __call__(self, older_than: float, *, status: TaskStatus, name: str) -> Awaitable[bool]: ...


class Housekeeping:
    """The retention of the tasks that this node has registered; several nodes share the work."""

    def __init__(
        self,
        retention: Mapping[TaskStatus, float | None],
        registry: Registry,
        delete_some: DeleteSome,
    ) -> None:
        self._retention = retention
        self._registry = registry
        self._delete_some = delete_some
        self._loop_task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._loop_task = asyncio.create_task(self._keep(), name="lilota housekeeping")

    async def close(self) -> None:
        """Stop; a batch under way comes to its end."""
        if self._loop_task is not None:
            self._loop_task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loop_task

    def rules(self) -> list[tuple[str, TaskStatus, float]]:
        """What is kept for so many seconds, and no longer."""
        return [
            (name, status, seconds)
            for name, task in self._registry.items()
            for status, seconds in {**self._retention, **task.settings.retention}.items()
            if seconds is not None
        ]

    async def _keep(self) -> None:
        while True:
            rules = self.rules()
            for name, status, seconds in rules:
                try:
                    await self._delete(name, status, seconds)
                except StoreUnavailable:
                    break  # the writer says that the database is away; the next round is soon
                except Exception:
                    logger.exception("Deleting old tasks failed in an unforeseen way; trying on")
            await asyncio.sleep(_pause(rules))

    async def _delete(self, name: str, status: TaskStatus, seconds: float) -> None:
        while True:
            if not await self._delete_some(seconds, status=status, name=name):
                return
            await asyncio.sleep(PAUSE_SECONDS)


def _pause(rules: list[tuple[str, TaskStatus, float]]) -> float:
    """A tenth of the shortest retention, within limits; not all nodes at the same time."""
    least, most = ROUND_SECONDS
    shortest = min((seconds for _, _, seconds in rules), default=most * ROUNDS_PER_RETENTION)
    return min(max(shortest / ROUNDS_PER_RETENTION, least), most) * random.uniform(0.8, 1.2)
