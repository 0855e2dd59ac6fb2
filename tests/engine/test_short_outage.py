"""After an outage of the database, however short, every node has a lease's time to come back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest

from lilota_async.engine.recovery import Recovery
from lilota_async.models.values import TaskId
from lilota_async.registry import Registry
from lilota_async.storage.transitions import LiveNode, NodeRecord, Renewal

pytestmark = pytest.mark.anyio
LEASE = 1.0
OUTAGE = 0.3  # with the heartbeat's period it stays below what is noticed by the gap alone
SLOW_BEAT = 4
OWN, OTHER = TaskId[Any](), TaskId[Any]()


class Away:
    """A store and its writer: one heartbeat has to wait for the database."""

    is_connected = True
    has_listeners = False

    def __init__(self) -> None:
        self.beats = 0
        self.back_at = float("-inf")
        self.removed_at: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    async def execute(
        self, operation: Callable[[Any], Awaitable[Any]], *, in_transaction: bool = True
    ) -> Any:
        return await operation(None)

    async def register_node(self, _c: Any, _node: NodeRecord) -> None:
        pass

    async def renew(self, _c: Any, node_id: UUID, names: tuple[str, ...]) -> Renewal:
        self.beats += 1
        if self.beats == SLOW_BEAT:
            await asyncio.sleep(OUTAGE)
            self.back_at = asyncio.get_running_loop().time()
        silent = 0.1 if self.beats < SLOW_BEAT else 1.2 * LEASE
        other = LiveNode(id=OTHER, machine="", pid=1, pid_started=1, silent_seconds=silent)
        return Renewal(is_known=True, nodes=(other,), has_lost=False)

    async def remove_node(self, _c: Any, node_id: UUID, silent_for: float | None = None) -> None:
        if node_id == OTHER and not self.removed_at.done():
            self.removed_at.set_result(asyncio.get_running_loop().time())


async def test_a_short_outage_counts() -> None:
    """One that fits between two heartbeats of this node may be too long for those of another."""
    away: Any = Away()
    node = NodeRecord(id=OWN, machine="", host="h", pid=1, pid_started=1, slots=1, version="1")
    recovery = Recovery(
        node,
        LEASE,
        Registry(),
        away,
        away,
        names=tuple,
        on_work=lambda: None,
        on_lease_lost=lambda: None,
    )
    await recovery.start()
    async with asyncio.timeout(10 * LEASE):
        removed_at = await away.removed_at
    await recovery.close()
    assert removed_at - away.back_at >= LEASE
