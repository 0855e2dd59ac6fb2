"""The database goes away and comes back, seen from the application."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from lilota_async import Lilota, TaskId
from lilota_async.errors import ScheduleUnknown, StoreUnavailable
from lilota_async.storage.operation import Kind
from lilota_async.storage.writer import Writer
from tests.api.support import until
from tests.api.tasks import echo, hold, hold_counted
from tests.faults.cluster import Cluster
from tests.faults.history import Tables
from tests.faults.tasks import hold_and_ask, talk
from tests.storage.proxy import Proxy

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(90)]
DEADLINE = 60.0
OUTAGE_SECONDS = 2.5
WRITERS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
    " AND pid <> pg_backend_pid() AND query NOT LIKE 'LISTEN%'"
)

_until = partial(until, deadline=20.0)


def _make(url: str, **options: Any) -> Lilota:
    lilota = Lilota(url, **{"number_of_processes": 2, "lease": 3.0, "grace": 0.2, **options})
    for function in (echo, hold, hold_and_ask, hold_counted, talk):
        lilota.register(function)
    return lilota


def _writer(lilota: Lilota) -> Writer:
    assert lilota._node is not None
    return lilota._node.writer


@asynccontextmanager
async def _down(cluster: Cluster) -> AsyncIterator[None]:
    """The database is away for the time of the block."""
    await asyncio.to_thread(cluster.stop_immediately)
    try:
        yield
    finally:
        await asyncio.to_thread(cluster.start)


def _messages(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [
        (record.levelname, record.getMessage())
        for record in caplog.records
        if record.name == "lilota_async" and "Took over" not in record.getMessage()
    ]


@pytest.fixture
def directories(tmp_path: Path) -> tuple[Path, Path]:
    """Where two tasks leave their marks."""
    made = (tmp_path / "first", tmp_path / "second")
    for each in made:
        each.mkdir()
    return made


async def test_tasks_run_on(
    cluster: Cluster, directories: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """What ends meanwhile is written after, and what was scheduled meanwhile then runs."""
    caplog.set_level(logging.INFO, "lilota_async")
    first, second = directories
    async with asyncio.timeout(DEADLINE), _make(cluster.url) as lilota:
        ends_meanwhile = await lilota.schedule(talk, str(first))
        runs_on = await lilota.schedule(hold, str(second))
        await _until((first / "started").exists, "the start")
        await _until((second / "started").exists, "the start")
        async with _down(cluster):
            (first / "release").touch()
            scheduling = asyncio.ensure_future(lilota.schedule(echo, 7))
            await asyncio.sleep(OUTAGE_SECONDS)
            assert not scheduling.done()
        assert await lilota.result(ends_meanwhile) == "released"
        assert await lilota.result(await scheduling) == 7
        (second / "release").touch()
        assert await lilota.result(runs_on) == "released"
        tasks = await lilota.get_all_tasks()
    assert {(str(task.status), task.attempts, task.interruptions) for task in tasks} == {
        ("completed", 1, 0)
    }
    (gone, back) = _messages(caplog)
    assert gone[0] == "WARNING"
    assert "The database cannot be used" in gone[1]
    assert back[0] == "INFO"
    assert "The database is back after" in back[1]


async def test_a_task_that_asks_for_others_meanwhile(
    cluster: Cluster, directories: tuple[Path, Path]
) -> None:
    """It completes, however long the database is away, and what it has asked for is there."""
    first, second = directories
    async with asyncio.timeout(DEADLINE), _make(cluster.url, store_timeout=0.5) as lilota:
        ended = await lilota.schedule(echo, 1)
        asking = [
            await lilota.schedule(hold_and_ask, [str(each), str(ended)]) for each in directories
        ]
        await _until((first / "started").exists, "the start")
        await _until((second / "started").exists, "the start")
        async with _down(cluster):
            (first / "release").touch()
            (second / "release").touch()
            await asyncio.sleep(OUTAGE_SECONDS)
        for task_id in asking:
            children = await lilota.result(task_id)
            assert [await lilota.result(TaskId(each)) for each in children] == [2, 3]


async def test_reports_do_not_pile_up(cluster: Cluster, directories: tuple[Path, Path]) -> None:
    """Progress and checkpoints are held, the last of each; they are in the row afterwards."""
    directory, _ = directories
    async with asyncio.timeout(DEADLINE), _make(cluster.url) as lilota:
        task_id = await lilota.schedule(talk, str(directory))
        await _until((directory / "started").exists, "the start")
        await asyncio.sleep(0.5)
        async with _down(cluster):
            await asyncio.sleep(OUTAGE_SECONDS)
            reports = [each for each in _writer(lilota)._queue if each.kind is Kind.REPORT]
            assert len(reports) <= 1
        before = now = await lilota.get_task_by_id(task_id)
        assert before is not None
        assert before.checkpoint
        while now is None or now.checkpoint <= before.checkpoint:
            await asyncio.sleep(0.05)
            now = await lilota.get_task_by_id(task_id)
        (directory / "release").touch()
        task = await lilota.wait(task_id)
    assert 0 < before.checkpoint < task.checkpoint
    assert task.progress_percentage == 100


async def test_schedule_gives_up_in_time(cluster: Cluster) -> None:
    """Nothing is half done then, and the same id can be scheduled when the database is back."""
    loop = asyncio.get_running_loop()
    task_id: TaskId[Any] = TaskId()
    async with asyncio.timeout(DEADLINE), _make(cluster.url, store_timeout=0.5) as lilota:
        async with _down(cluster):
            # Until a heartbeat notices, a write may go out and leave its caller in doubt.
            await _until(lambda: not _writer(lilota).is_connected, "the loss")
            for own_id in (None, task_id):
                start = loop.time()
                with pytest.raises(StoreUnavailable):
                    await lilota.schedule(echo, 1, task_id=own_id)
                assert loop.time() - start < 2.0
            with pytest.raises(StoreUnavailable):
                await lilota.get_task_by_id(task_id)
        await _until(lambda: _writer(lilota).is_connected, "the return")
        assert await lilota.get_all_tasks() == []
        assert await lilota.schedule(echo, 2, task_id=task_id) == task_id
        assert await lilota.result(task_id) == 2


@pytest.mark.parametrize("own_id", [True, False])
async def test_a_commit_whose_answer_is_lost(postgresql_url: str, own_id: bool) -> None:
    """ScheduleUnknown carries the id; scheduling it again makes no second row, and it runs once."""
    task_id: TaskId[Any] | None = TaskId() if own_id else None
    async with (
        asyncio.timeout(DEADLINE),
        Proxy(postgresql_url) as proxy,
        _make(proxy.url, store_timeout=0.5) as lilota,
    ):
        await lilota.result(await lilota.schedule(echo, 1))
        proxy.mute()
        with pytest.raises(ScheduleUnknown) as unknown:
            await lilota.schedule(echo, 2, task_id=task_id)
        assert task_id is None or unknown.value.task_id == task_id
        await proxy.cut()
        await proxy.restore()
        await _until(lambda: _writer(lilota).is_connected, "the return")
        again: TaskId[Any] = TaskId(unknown.value.task_id)
        await lilota.schedule(echo, 2, task_id=again)
        assert await lilota.result(again) == 2
        tasks = await lilota.get_all_tasks()
    assert [(str(task.status), task.attempts) for task in tasks] == [("completed", 1)] * 2


@pytest.mark.parametrize("drain", [True, False])
async def test_stop_while_the_database_is_away(
    cluster: Cluster, directories: tuple[Path, Path], drain: bool
) -> None:
    """It ends in time all the same; what it could not write is taken over by the next one."""
    directory, _ = directories
    lilota = _make(cluster.url, store_timeout=1.0)
    async with asyncio.timeout(DEADLINE):
        await lilota.start()
        task_id = await lilota.schedule(hold_counted, str(directory))
        await _until((directory / "attempt-1").exists, "the start")
        async with _down(cluster):
            async with asyncio.timeout(8):
                await lilota.stop(drain=drain, timeout=0.5)
            assert not lilota.is_running
        async with _make(cluster.url, lease=1.0) as other:
            task = await other.wait(task_id)
    assert (task.status, task.output, task.attempts) == ("completed", 2, 2)


async def test_connections_that_the_server_ends(postgresql_url: str) -> None:
    """A node that only listens and has lost its other connection takes new tasks at once."""
    url = postgresql_url
    tables = Tables(url)
    async with (
        asyncio.timeout(DEADLINE),
        _make(url, lease=30.0) as node,
        _make(url, lease=30.0, number_of_processes=0) as source,
    ):
        await source.result(await source.schedule(echo, 0))
        for number in range(3):
            await asyncio.to_thread(tables.fetch, WRITERS)
            task_id = await source.schedule(echo, number)
            assert await source.result(task_id, timeout=5.0) == number
        assert node.is_running


async def test_an_application_that_uses_up_its_pool(postgresql_url: str) -> None:
    """The heartbeat has a connection of its own: the node keeps its lease, and its tasks."""
    url = postgresql_url
    engine = create_async_engine(make_url(url), pool_size=3, max_overflow=0)
    lilota = Lilota(engine=engine, number_of_processes=1, lease=1.0)
    lilota.register(echo)
    try:
        async with (
            asyncio.timeout(DEADLINE),
            _make(url, lease=1.0, number_of_processes=0),
            lilota,
        ):
            async with engine.connect():
                waiting = [asyncio.ensure_future(engine.connect().start()) for _ in range(3)]
                await asyncio.sleep(2.5)  # more than two leases
                task_id = await lilota.schedule(echo, 1)
                for each in waiting:
                    each.cancel()
                await asyncio.gather(*waiting, return_exceptions=True)
            assert await lilota.result(task_id) == 1
            task = await lilota.get_task_by_id(task_id)
            assert task is not None
            assert (task.attempts, task.interruptions) == (1, 0)
            nodes = Tables(url).fetch("SELECT count(*) FROM lilota_node")
            assert nodes == [(2,)]
    finally:
        await engine.dispose()
