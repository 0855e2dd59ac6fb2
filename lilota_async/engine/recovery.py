"""Leases: who may take what from whom, and when.

- A node owns the running tasks whose `locked_by` is its id, and nobody else writes to them.
- It renews its lease by a heartbeat, three times per lease: one small update, however many
  tasks it runs. The database's clock counts, never a host's.
- Any node may take over from a node that has been silent for longer than a lease, and at
  once from one whose process is known to be gone: same boot, same PID namespace, and no
  process of that PID and start time.
- Taken over, a task is pending again and its `interruptions` are one more. What the old
  owner still writes is fenced off by (`id`, `attempts`, `locked_by`).
- A node whose own row is gone has been taken from: it ends its tasks and writes nothing.
- Running rows of no node at all, as after an import by hand, are taken over too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from lilota_async.errors import StoreError
from lilota_async.execution.identity import is_certainly_dead
from lilota_async.storage.store import Store
from lilota_async.storage.transitions import LiveNode, NodeRecord
from lilota_async.storage.writer import Writer

HEARTBEATS_PER_LEASE = 3
logger = logging.getLogger("lilota_async")


class Recovery:
    """One node's heartbeat, and its eye on the others."""

    def __init__(
        self,
        node: NodeRecord,
        lease_seconds: float,
        writer: Writer,
        store: Store,
        *,
        on_taken_over: Callable[[], None],
        on_lease_lost: Callable[[], None],
    ) -> None:
        self._node = node
        self._lease_seconds = lease_seconds
        self._writer = writer
        self._store = store
        self._on_taken_over = on_taken_over
        self._on_lease_lost = on_lease_lost
        self._loop_task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Register the node and take over from those that are gone."""
        await self._register()
        await self._take_over()
        self._loop_task = asyncio.create_task(self._beat(), name="lilota recovery")

    async def close(self) -> None:
        """Give the lease back."""
        if self._loop_task is not None:
            self._loop_task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loop_task
        with contextlib.suppress(StoreError):  # then the lease runs out by itself
            await self._writer.execute(lambda c: self._store.remove_node(c, self._node.id))

    async def _register(self) -> None:
        await self._writer.execute(lambda c: self._store.register_node(c, self._node))

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._lease_seconds / HEARTBEATS_PER_LEASE)
            try:
                if not await self._writer.execute(
                    lambda c: self._store.heartbeat(c, self._node.id)
                ):
                    logger.warning(
                        "This node was silent for longer than its lease of %g s and its tasks "
                        "were taken over; it ends them here and goes on with new ones",
                        self._lease_seconds,
                    )
                    self._on_lease_lost()
                    await self._register()
                await self._take_over()
            except StoreError:
                continue  # the writer says that the database is away, once

    async def _take_over(self) -> None:
        nodes = await self._writer.execute(self._store.nodes)
        dead = [node.id for node in nodes if self._is_dead(node)]
        taken = await self._writer.execute(lambda c: self._store.take_over(c, dead))
        if taken:
            logger.info("Took over %d tasks of %d nodes that are gone", taken, len(dead))
            self._on_taken_over()

    def _is_dead(self, node: LiveNode) -> bool:
        if node.id == self._node.id:
            return False
        return node.silent_seconds > self._lease_seconds or is_certainly_dead(
            node.machine, node.pid, node.pid_started
        )
