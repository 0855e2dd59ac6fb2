"""Leases: who may take what from whom, and when.

- A node owns the running tasks whose `locked_by` is its id, and nobody else writes to them.
- It renews its lease by a heartbeat, three times per lease: one small update, however many
  tasks it runs. The database's clock counts, never a host's.
- Any node may take over from a node that has been silent for longer than a lease, if it has
  itself seen the database up for a whole lease, so that after an outage everybody can renew
  first. It may do so at once from a node whose process is known to be gone: same boot, same
  PID namespace, and no process of that PID and start time.
- Taking over is removing the dead node's row, then adopting running tasks of no node: they
  get a new `locked_by`, and one more in `interruptions`. What the old owner still writes is
  fenced off by (`id`, `attempts`, `locked_by`). Each node adopts the names it has registered.
- An adopted task is pending again, or failed as `interrupted` where its registration says so
  (`lifecycle.after_interruption`).
- A node whose own row is gone has been taken from: it ends its tasks and writes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from lilota_async.engine.lifecycle import after_interruption
from lilota_async.errors import StoreError
from lilota_async.execution.identity import is_certainly_dead
from lilota_async.registry import Registry
from lilota_async.storage.store import Store
from lilota_async.storage.transitions import Finish, LiveNode, NodeRecord, Requeue
from lilota_async.storage.writer import Writer

HEARTBEATS_PER_LEASE = 3
ADOPTED_AT_ONCE = 500
logger = logging.getLogger("lilota_async")


class Recovery:
    """One node's heartbeat, and its eye on the others."""

    def __init__(
        self,
        node: NodeRecord,
        lease_seconds: float,
        registry: Registry,
        writer: Writer,
        store: Store,
        *,
        on_taken_over: Callable[[], None],
        on_lease_lost: Callable[[], None],
    ) -> None:
        self._node = node
        self._lease_seconds = lease_seconds
        self._registry = registry
        self._writer = writer
        self._store = store
        self._on_taken_over = on_taken_over
        self._on_lease_lost = on_lease_lost
        self._last_beat = float("-inf")
        self._up_since = float("inf")
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
        self._note_beat()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._lease_seconds / HEARTBEATS_PER_LEASE)
            try:
                if await self._writer.execute(lambda c: self._store.heartbeat(c, self._node.id)):
                    self._note_beat()
                else:
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

    def _note_beat(self) -> None:
        """The database has answered; a gap since the last time means that it was away."""
        now = asyncio.get_running_loop().time()
        if now - self._last_beat > self._lease_seconds * 2 / HEARTBEATS_PER_LEASE:
            self._up_since = now
        self._last_beat = now

    async def _take_over(self) -> None:
        nodes = await self._writer.execute(self._store.nodes)
        self._store.has_listeners = len(nodes) > 1
        dead = [node.id for node in nodes if self._is_dead(node)]
        for node_id in dead:
            await self._writer.execute(partial(self._store.remove_node, node_id=node_id))
        while self._registry:
            taken = await self._writer.execute(self._adopt)
            if taken:
                logger.info("Took over %d tasks whose node is gone", taken)
                self._on_taken_over()
            if taken < ADOPTED_AT_ONCE:
                return

    async def _adopt(self, c: Any) -> int:
        """Adopt lost tasks and write what becomes of them, in one transaction."""
        names = tuple(self._registry)
        lost = await self._store.adopt(c, self._node.id, names, ADOPTED_AT_ONCE)
        ends = [after_interruption(task, self._registry[task.name].settings) for task in lost]
        finishes = [end for end in ends if isinstance(end, Finish)]
        requeues = [end for end in ends if isinstance(end, Requeue)]
        if finishes:
            await self._store.finish(c, finishes)
        if requeues:
            await self._store.requeue(c, requeues)
        return len(lost)

    def _is_dead(self, node: LiveNode) -> bool:
        if node.id == self._node.id:
            return False
        if is_certainly_dead(node.machine, node.pid, node.pid_started):
            return True
        seen_up = asyncio.get_running_loop().time() - self._up_since
        return min(node.silent_seconds, seen_up) > self._lease_seconds
