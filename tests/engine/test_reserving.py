"""A slot that is offered to a claim is not taken for a task that is just being scheduled."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from lilota_async import Lilota
from lilota_async.engine.running import RunningAttempts
from lilota_async.storage.operation import Kind, Operation
from lilota_async.storage.writer import Writer
from tests.api.support import marked
from tests.api.tasks import echo, hold

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


async def test_a_slot_is_given_away_once(
    fast_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a task would run, as its row says, and wait behind another for hours."""
    url = fast_database_url
    node, source = Lilota(url, number_of_processes=1), Lilota(url, number_of_processes=0)
    for lilota in (node, source):
        lilota.register(hold)
        lilota.register(echo)
    claiming, go_on = asyncio.Event(), asyncio.Event()
    commit = Writer._commit

    async def slow_commit(self: Writer, connection: Any, batch: list[Operation]) -> Any:
        if any(operation.kind is Kind.CLAIM for operation in batch):
            claiming.set()
            await go_on.wait()
        return await commit(self, connection, batch)

    async with asyncio.timeout(30), source, node:
        await node.result(await node.schedule(echo, 1))
        monkeypatch.setattr(Writer, "_commit", slow_commit)
        held = await source.schedule(hold, str(tmp_path))
        await claiming.wait()
        scheduling = asyncio.create_task(node.schedule(echo, 2))
        await asyncio.sleep(0)
        go_on.set()
        try:
            await marked(tmp_path)
            later = await scheduling
            task = await node.get_task_by_id(later)
            assert task is not None
            assert (str(task.status), task.attempts) == ("pending", 0)
        finally:
            (tmp_path / "release").touch()
        assert await node.result(later) == 2
        assert await node.result(held) == "released"


async def test_a_place_is_held_until_the_task_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In between, the writer's thread would take its row for one that nobody runs."""
    lilota = Lilota(f"sqlite+aiosqlite:///{tmp_path / 'lilota.db'}", number_of_processes=1)
    lilota.register(echo)
    begin, held = RunningAttempts.begin, []

    def noted_begin(self: RunningAttempts, claimed: Any, slot: Any) -> None:
        assert lilota._node is not None
        held.append(bool(lilota._node.dispatcher._places))
        begin(self, claimed, slot)

    monkeypatch.setattr(RunningAttempts, "begin", noted_begin)
    async with asyncio.timeout(30), lilota:
        while not any(held):  # until a task was inserted as running
            assert await lilota.result(await lilota.schedule(echo, 1)) == 1
            assert held[-1] or len(held) < 20
        assert not lilota._node.dispatcher._places  # type: ignore[union-attr]
