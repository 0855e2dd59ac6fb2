"""After an outage of the database, however short, every node has a lease's time to come back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest
from msgspec.structs import replace

from lilota_async.engine import recovery as module
from lilota_async.engine.recovery import Recovery
from lilota_async.models.values import TaskId
from lilota_async.registry import Registry
from lilota_async.storage.transitions import LiveNode, NodeRecord, Renewal
from tests.storage.support import node_record

pytestmark = pytest.mark.anyio
LEASE = 1.0
OUTAGE = 0.3  # with the heartbeat's period it stays below what is noticed by the gap alone
SLOW_BEAT = 4
OWN, OTHER, LIVE = TaskId[Any](), TaskId[Any](), TaskId[Any]()


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
        return Renewal(is_known=True, nodes=(_other(silent),), has_lost=False)

    async def remove_node(self, _c: Any, node_id: UUID, *, silent_for: float | None = None) -> None:
        if node_id == OTHER and not self.removed_at.done():
            self.removed_at.set_result(asyncio.get_running_loop().time())


class Stranger(Away):
    """A node of a shorter lease is there at the second look, and has been silent for too long."""

    async def renew(self, _c: Any, node_id: UUID, names: tuple[str, ...]) -> Renewal:
        self.beats += 1
        if self.beats == 1:
            return Renewal(is_known=True, nodes=(), has_lost=False)
        if self.beats == 2:
            self.back_at = asyncio.get_running_loop().time()
        return Renewal(is_known=True, nodes=(_other(1.2 * LEASE),), has_lost=False)


class Slow(Away):
    """Each heartbeat takes longer than a short lease allows, and a node of a long one is silent."""

    async def renew(self, _c: Any, node_id: UUID, names: tuple[str, ...]) -> Renewal:
        await asyncio.sleep(0.75 * LEASE)
        nodes = (_other(9.0, lease_seconds=2 * LEASE), _other(0.1, node_id=LIVE))
        return Renewal(is_known=True, nodes=nodes, has_lost=False)


class Edited(Away):
    """The lease in the row of a silent node is what no node can have."""

    async def renew(self, _c: Any, node_id: UUID, names: tuple[str, ...]) -> Renewal:
        nodes = (_other(9.0, lease_seconds=0.0),)
        return Renewal(is_known=True, nodes=nodes, has_lost=False)


def _other(
    silent_seconds: float, *, lease_seconds: float = LEASE, node_id: TaskId[Any] = OTHER
) -> LiveNode:
    return LiveNode(
        id=node_id,
        machine="",
        pid=1,
        pid_started=1,
        silent_seconds=silent_seconds,
        lease_seconds=lease_seconds,
    )


def _recovery(away: Any, lease_seconds: float) -> Recovery:
    node = replace(node_record(OWN), lease_seconds=lease_seconds)
    return Recovery(
        node,
        Registry(),
        away,
        away,
        names=tuple,
        on_work=lambda: None,
        on_lease_lost=lambda: None,
    )


async def removed(away: Away, lease_seconds: float) -> float:
    """Look after the others until the silent one is removed: when that is."""
    recovery = _recovery(away, lease_seconds)
    await recovery.start()
    try:
        async with asyncio.timeout(10 * LEASE):
            return await away.removed_at
    finally:
        await recovery.close()


async def test_a_short_outage_counts() -> None:
    """One that fits between two heartbeats of this node may be too long for those of another."""
    away = Away()
    removed_at = await removed(away, LEASE)
    assert removed_at - away.back_at >= LEASE


async def test_a_node_that_looks_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot tell whether the database was there for others in between: it looks once more."""
    monkeypatch.setattr(module, "LONGEST_PAUSE_SECONDS", 1.2 * LEASE)
    away = Stranger()
    removed_at = await removed(away, 300 * LEASE)
    assert removed_at - away.back_at >= LEASE


async def test_what_is_long_for_a_short_lease_is_not_for_a_long_one() -> None:
    """Answers that come late do not keep a node with a long lease from being taken from."""
    started = asyncio.get_running_loop().time()
    assert await removed(Slow(), 300 * LEASE) - started >= 2 * LEASE


async def test_a_lease_that_was_edited_by_hand() -> None:
    """One that no node can have counts as long as one's own."""
    away = Edited()
    started = asyncio.get_running_loop().time()
    assert await removed(away, 2 * LEASE) - started >= 2 * LEASE
