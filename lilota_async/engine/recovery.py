"""Leases: who may take what from whom, and when.

- A node owns the running tasks whose `locked_by` is its id, and nobody else writes to them.
- It renews its lease by a heartbeat, at least three times per lease, be it the shortest one of
  all nodes: one small update, however many tasks it runs. The database's clock counts, never a
  host's.
- Any node may take over from a node that has been silent for longer than that one's lease, if it
  has itself seen the database up for as long, so that after an outage everybody can renew first.
  It may do so at once from a node whose process is known to be gone: same boot, same
  PID namespace, and no process of that PID and start time.
- Taking over is removing the dead node's row, then adopting running tasks of no node: they
  get a new `locked_by`, and one more in `interruptions`. What the old owner still writes is
  fenced off by (`id`, `attempts`, `locked_by`). Each node adopts the names it has registered.
- An adopted task is pending again, or failed as `interrupted` where its registration says so
  (`lifecycle.after_interruption`).
- A node whose own row is gone has been taken from: it ends its tasks and writes nothing about
  them. What nobody has adopted of it, it adopts itself; then it registers again. While it has
  not renewed its lease in time, it claims nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import UUID

from msgspec.structs import replace

from lilota_async.engine.lifecycle import after_interruption
from lilota_async.errors import StoreError, StoreUnavailable
from lilota_async.execution.identity import is_certainly_dead
from lilota_async.options import MIN_LEASE_SECONDS
from lilota_async.registry import Registry
from lilota_async.storage.store import Store
from lilota_async.storage.transitions import Finish, LiveNode, NodeRecord, Renewal, Requeue
from lilota_async.storage.writer import Writer

HEARTBEATS_PER_LEASE = 3
LONGEST_PAUSE_SECONDS = 10.0  # another node may have come, and have a short lease
RETRY_SECONDS = 1.0  # after an error of the database, at most
ADOPTED_AT_ONCE = 500
logger = logging.getLogger("lilota_async")


class Recovery:
    """One node's heartbeat, and its eye on the others."""

    def __init__(
        self,
        node: NodeRecord,
        registry: Registry,
        writer: Writer,
        store: Store,
        *,
        names: Callable[[], tuple[str, ...]],
        on_work: Callable[[], None],
        on_lease_lost: Callable[[], None],
    ) -> None:
        self._node = node
        self._registry = registry
        self._writer = writer
        self._store = store
        self._names = names
        self._on_work = on_work
        self._on_lease_lost = on_lease_lost
        self._clock = asyncio.get_running_loop().time
        self._last_answer = float("-inf")
        self._last_beat = float("-inf")
        self._gaps: list[tuple[float, float]] = []
        """Lengths and ends of the times without an answer, each longer than the next one."""
        self._pause = _pause_of(node.lease_seconds)
        self._loop_task: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()

    @property
    def holds_lease(self) -> bool:
        """Whether the lease was renewed in time, so that nobody else may have the node's tasks."""
        return self._clock() - self._last_beat < self._node.lease_seconds

    async def start(self) -> None:
        """Register the node and take over from those that are gone."""
        await self._register()
        try:
            await self._take_over(await self._renew())
        except StoreUnavailable:
            raise
        except Exception:
            logger.exception("Taking over failed in an unforeseen way; trying on")
        self._loop_task = asyncio.create_task(self._beat_on(), name="lilota recovery")

    async def close(self) -> None:
        """Give the lease back."""
        if self._loop_task is not None:
            self._loop_task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loop_task
        if not self._writer.is_connected:
            return  # the lease runs out by itself
        with contextlib.suppress(StoreError):
            await self._writer.execute(lambda c: self._store.remove_node(c, self._node.id))

    async def _register(self) -> None:
        self._node = replace(self._node, names=self._names())
        await self._writer.execute(lambda c: self._store.register_node(c, self._node))
        self._note_answer()
        self._note_beat()

    def beat_soon(self) -> None:
        """Renew the lease, and see who else is there, before it is time."""
        self._hurry.set()

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._hurry.wait()
        self._hurry.clear()

    async def _beat_on(self) -> None:
        is_away = False
        while True:
            await self._sleep(min(self._pause, RETRY_SECONDS) if is_away else self._pause)
            is_away = False
            try:
                await self._take_over(await self._beat())
            except StoreUnavailable:
                is_away = True  # the writer says so, once
            except Exception:
                logger.exception("A heartbeat failed in an unforeseen way; trying on")

    async def _renew(self) -> Renewal:
        names = tuple(self._registry)
        renew = partial(self._store.renew, node_id=self._node.id, names=names)
        renewal = await self._writer.execute(renew, in_transaction=False)
        leases = [self._node.lease_seconds, *map(self._lease_of, renewal.nodes)]
        self._pause = _pause_of(min(leases))
        return renewal

    async def _beat(self) -> Renewal:
        renewal = await self._renew()
        self._note_answer()
        if renewal.is_known:
            self._note_beat()
            if self._names() != self._node.names:  # something was registered since
                await self._register()
            return renewal
        logger.warning(
            "This node was silent for longer than its lease of %g s and its tasks were taken "
            "over; it ends them here and goes on with new ones",
            self._node.lease_seconds,
        )
        self._on_lease_lost()
        await self._adopt_lost()  # before it registers, since afterwards they are its own
        self._on_lease_lost()  # what a claim under way had brought was adopted as well
        await self._register()
        return renewal

    def _note_answer(self) -> None:
        """The database has answered; a long gap since the last time means that it hung, for all.

        What is long depends on a lease; a gap tells nothing more once there is a longer one.
        """
        now = self._clock()
        gap = now - self._last_answer
        self._gaps = [each for each in self._gaps if each[0] > gap] + [(gap, now)]
        self._last_answer = now

    def _note_beat(self) -> None:
        held = self.holds_lease
        self._last_beat = self._clock()
        if not held:
            self._on_work()  # nothing was claimed for want of a lease

    async def _take_over(self, renewal: Renewal) -> None:
        others = [node for node in renewal.nodes if node.id != self._node.id]
        self._store.has_listeners = bool(others)
        has_lost = renewal.has_lost
        for node in others:
            if is_certainly_dead(node.machine, node.pid, node.pid_started):
                await self._remove(node.id)
            elif self._has_fallen_silent(node):
                await self._remove(node.id, silent_for=self._lease_of(node))
            else:
                continue
            has_lost = True
        if has_lost:
            await self._adopt_lost()

    async def _adopt_lost(self) -> None:
        taken = ADOPTED_AT_ONCE
        while self._registry and taken == ADOPTED_AT_ONCE:
            taken = await self._writer.execute(self._adopt)
            if taken:
                logger.info("Took over %d tasks whose node is gone", taken)
                self._on_work()

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

    def _has_fallen_silent(self, node: LiveNode) -> bool:
        lease = self._lease_of(node)
        long_gap = 2 / HEARTBEATS_PER_LEASE * lease
        gap_ended = max(end for gap, end in self._gaps if gap > long_gap)  # the first is infinite
        up_since = max(gap_ended, self._writer.back_at)  # however short an outage was
        return min(node.silent_seconds, self._clock() - up_since) > lease

    def _lease_of(self, node: LiveNode) -> float:
        """As its row says, unless that was edited by hand to what no node can have."""
        is_possible = node.lease_seconds >= MIN_LEASE_SECONDS
        return node.lease_seconds if is_possible else self._node.lease_seconds

    async def _remove(self, node_id: UUID, *, silent_for: float | None = None) -> None:
        await self._writer.execute(
            partial(self._store.remove_node, node_id=node_id, silent_for=silent_for)
        )


def _pause_of(lease_seconds: float) -> float:
    return min(lease_seconds / HEARTBEATS_PER_LEASE, LONGEST_PAUSE_SECONDS)
