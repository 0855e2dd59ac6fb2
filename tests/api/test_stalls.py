"""The database is there and answers late, or not to everybody: locks, time limits, lost callers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest
from sqlalchemy import Row, make_url, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from lilota_async import AlreadyScheduled, Lilota, TaskFailed, TaskId, TaskStatus
from lilota_async.engine import dispatcher
from lilota_async.errors import ScheduleUnknown, StoreError
from tests.api.support import MakeLilota, marked, row, row_when, session, until
from tests.api.tasks import echo, fail_and_hold, hold
from tests.storage.proxy import Proxy
from tests.storage.support import raw

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(90)]
DEADLINE = 60.0


@asynccontextmanager
async def locked(url: str) -> AsyncIterator[AsyncConnection]:
    """Nobody writes into the table for the time of the block, as while an index is built."""
    engine = create_async_engine(make_url(url).set(drivername="postgresql+asyncpg"))
    try:
        async with engine.begin() as connection:
            await connection.execute(text("LOCK TABLE lilota_task IN SHARE MODE"))
            yield connection
    finally:
        await engine.dispose()


WAITING = (
    "SELECT pid, waitstart FROM pg_locks"
    " WHERE waitstart IS NOT NULL AND relation = 'lilota_task'::regclass"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


async def waiting_for_lock(connection: AsyncConnection) -> Row[Any]:
    """Until somebody waits for the table: who, and since when."""
    while (waits := (await connection.execute(text(WAITING))).first()) is None:
        await asyncio.sleep(0.02)
    return waits


async def cancel_waiting(connection: AsyncConnection) -> None:
    """Cancel the statement that waits for the table, until it waits no more."""
    waits = await waiting_for_lock(connection)
    await connection.execute(text(f"SELECT pg_cancel_backend({waits.pid})"))
    while waits in (await connection.execute(text(WAITING))).all():
        await asyncio.sleep(0.02)


async def nothing_left(_kind: str) -> bool:
    """What a dispatcher finds that does not claim."""
    return True


@pytest.fixture
def made(make_lilota: MakeLilota, postgresql_url: str) -> Callable[..., Lilota]:
    """A Lilota on PostgreSQL, which writes over two connections."""

    def make(**options: Any) -> Lilota:
        return make_lilota(echo, hold, fail_and_hold, **{"db_url": postgresql_url, **options})

    return make


def _be_impatient(lilota: Lilota, seconds: float) -> None:
    """From now on; before, a busy machine may need longer for a statement."""
    assert lilota._node is not None
    for writer in {lilota._node.writer, lilota._node._inserter}:
        writer._store_timeout = seconds


def _dispatcher(lilota: Lilota) -> dispatcher.Dispatcher:
    assert lilota._node is not None
    return lilota._node.dispatcher


async def test_an_insert_that_comes_after_it_was_given_up(
    made: Callable[..., Lilota], postgresql_url: str
) -> None:
    """Its row says that it runs, which nobody believed any more; it runs all the same."""
    async with asyncio.timeout(DEADLINE), made() as lilota:
        await lilota.result(await lilota.schedule(echo, 1))
        async with locked(postgresql_url) as connection:
            _be_impatient(lilota, 1.0)
            scheduling = asyncio.ensure_future(lilota.schedule(echo, 2))
            await waiting_for_lock(connection)
            with pytest.raises(ScheduleUnknown) as unknown:
                await scheduling
            await until(lambda: not _dispatcher(lilota)._claim_in_doubt, "the end of the doubt")
        late: TaskId[Any] = TaskId(unknown.value.task_id)
        while await lilota.get_task_by_id(late) is None:  # the table is free for it only now
            await asyncio.sleep(0.02)
        assert await lilota.result(late) == 2


async def test_a_claim_that_comes_after_its_connection_was_lost(
    made: Callable[..., Lilota], postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server goes on with what waits for a lock: what nobody heard of is found in time."""
    async with (
        asyncio.timeout(DEADLINE),
        Proxy(postgresql_url) as proxy,
        made(db_url=proxy.url) as lilota,
    ):
        await lilota.result(await lilota.schedule(echo, 1))
        node, claim_for = _dispatcher(lilota), _dispatcher(lilota)._claim_for
        monkeypatch.setattr(node, "_claim_for", nothing_left)
        task_id = await lilota.schedule(echo, 2, delay=0.01)
        async with locked(postgresql_url) as connection:
            await asyncio.sleep(0.05)  # it is due by then
            monkeypatch.setattr(node, "_claim_for", claim_for)
            node.wake()
            await waiting_for_lock(connection)
            await proxy.cut()
            await until(lambda: node._claim_in_doubt, "the doubt")
            monkeypatch.setattr(node, "_claim_for", nothing_left)  # no second one
            await proxy.restore()
            await until(lambda: not node._claim_in_doubt, "the end of the doubt")
        await row_when(lilota, task_id, lambda task: task.status is TaskStatus.RUNNING)
        monkeypatch.setattr(node, "_claim_for", claim_for)
        monkeypatch.setattr(dispatcher, "DOUBT_SECONDS", 0.0)
        node.wake()  # as once in a while
        assert await lilota.result(task_id) == 2


async def test_a_running_row_that_nobody_knows(
    make_lilota: MakeLilota, fast_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that says that this node runs it, and it does not, goes back and is run."""
    monkeypatch.setattr(dispatcher, "DOUBT_SECONDS", 0.5)
    monkeypatch.setattr(dispatcher, "NOTIFIED_POLL_SECONDS", 0.2)
    lilota = make_lilota(echo, db_url=fast_database_url)
    async with asyncio.timeout(DEADLINE), lilota:
        task_id = await lilota.schedule(echo, 1, delay=3600)
        assert lilota._node is not None
        await raw(
            lilota.database,
            "UPDATE lilota_task SET status = 'running', attempts = 1, run_at = created_at,"
            " locked_by = (SELECT id FROM lilota_node)",
        )
        assert await lilota.result(task_id) == 1
        task = await lilota.get_task_by_id(task_id)
        assert task is not None
        assert task.attempts == 1  # the other one was none


async def test_an_attempt_that_begins_before_the_last_one_is_forgotten(
    made: Callable[..., Lilota],
    directory: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It stays known, so that it can be cancelled and is waited for."""
    async with asyncio.timeout(DEADLINE), made() as lilota:
        waits = await lilota.schedule(echo, 1, delay=3600)
        await lilota.schedule(echo, 2, after=[waits])
        assert lilota._node is not None
        thens: list[Callable[[], None]] = []
        patch = pytest.MonkeyPatch()
        patch.setattr(lilota._node.dependencies, "on_end", lambda _, then: thens.append(then))
        task_id = await lilota.schedule(fail_and_hold, str(directory))
        with pytest.raises(TaskFailed):
            await lilota.result(task_id)
        first = lilota._node.running.find(task_id)
        assert first is not None
        assert await lilota.retry(task_id)
        await marked(directory)
        concluded = first.concluded
        patch.undo()
        for then in thens:
            then()
        await concluded
        second = lilota._node.running.find(task_id)
        assert second is not None
        assert second is not first
        (directory / "release").touch()
        assert await lilota.result(task_id) == "released"
        await until(lambda: not len(_dispatcher(lilota).running), "the end of the attempt")
    assert not [each for each in caplog.records if each.levelno >= logging.ERROR]


async def test_a_time_limit_of_the_database(
    made: Callable[..., Lilota], postgresql_url: str, directory: Path
) -> None:
    """A role's limit for statements, or for locks, does not lose the end of a task."""
    name = make_url(postgresql_url).database
    engine = create_async_engine(postgresql_url, isolation_level="AUTOCOMMIT")
    async with engine.connect() as admin:
        for limit in ("statement_timeout", "lock_timeout"):
            await admin.execute(text(f"ALTER DATABASE {name} SET {limit} = '1s'"))
        try:
            async with asyncio.timeout(DEADLINE), made() as lilota:
                task_id = await lilota.schedule(hold, str(directory))
                await marked(directory)
                async with locked(postgresql_url) as connection:
                    (directory / "release").touch()
                    await waiting_for_lock(connection)
                    await asyncio.sleep(2)
                assert await lilota.result(task_id) == "released"
        finally:
            await admin.execute(text(f"ALTER DATABASE {name} RESET ALL"))
    await engine.dispose()


async def test_a_statement_that_an_administrator_cancels(
    made: Callable[..., Lilota], postgresql_url: str, directory: Path
) -> None:
    """It is sent again."""
    async with asyncio.timeout(DEADLINE), made() as lilota:
        task_id = await lilota.schedule(hold, str(directory))
        await marked(directory)
        async with locked(postgresql_url) as connection:
            (directory / "release").touch()
            for _ in range(3):
                await cancel_waiting(connection)
        assert await lilota.result(task_id) == "released"


async def test_a_claim_that_is_refused(
    make_lilota: MakeLilota, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing runs for as long as the database refuses it, which the log tells."""
    async with asyncio.timeout(DEADLINE), make_lilota(echo) as lilota:
        assert lilota._node is not None
        with monkeypatch.context() as patch:
            refused = AsyncMock(side_effect=StoreError("too many terms"))
            patch.setattr(lilota._node.store, "claim", refused)
            task_id = await lilota.schedule(echo, 1, delay=0.1)
            await until(lambda: refused.call_count > 1, "another try")
            assert (await row(lilota, task_id)).status is TaskStatus.PENDING
        assert [str(each.exc_info[1]) for each in caplog.records if each.exc_info] == [
            "too many terms"
        ]
        assert await lilota.result(task_id) == 1


async def test_stop_while_a_claim_hangs(made: Callable[..., Lilota], postgresql_url: str) -> None:
    """It ends, soon after nobody waits for the database any more."""
    lilota = made()
    async with asyncio.timeout(DEADLINE):
        await lilota.start()
        await lilota.result(await lilota.schedule(echo, 1))
        await lilota.schedule(echo, 2, delay=2)  # time to lock the table before
        async with locked(postgresql_url) as connection:
            await waiting_for_lock(connection)
            _be_impatient(lilota, 0.5)
            async with asyncio.timeout(15):
                await lilota.stop(drain=False, timeout=0.5)
            assert not lilota.is_running


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_listener_that_loses_its_connection(
    made: Callable[..., Lilota],
    postgresql_url: str,
    driver: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It listens again, with whichever driver."""
    url = make_url(postgresql_url).set(drivername=f"postgresql+{driver}")
    async with asyncio.timeout(DEADLINE), made(db_url=url) as lilota:
        assert lilota._node is not None
        listener = lilota._node._notifications
        assert listener is not None
        await until(lambda: listener.is_up, "the listening")
        ends, on_down = [], listener._on_down

        def noted() -> None:  # it may be up again before anybody looks
            ends.append(listener.is_up)
            on_down()

        monkeypatch.setattr(listener, "_on_down", noted)
        ended = await raw(
            lilota.database,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND query LIKE 'LISTEN%'",
        )
        assert len(ended) == 1
        await until(lambda: bool(ends), "the end of it")
        await until(lambda: listener.is_up, "listening again")


@pytest.fixture
async def pair(
    made: Callable[..., Lilota], without_polling: None
) -> AsyncIterator[tuple[Lilota, Lilota]]:
    """A node without processes and one with, who hear of each other and do not poll."""
    source, worker = made(number_of_processes=0), made()
    async with asyncio.timeout(DEADLINE), worker, source:
        assert source._node is not None
        assert worker._node is not None
        await until(lambda: bool(source._node and source._node.store.has_listeners), "hearing")
        await worker.result(await source.schedule(echo, 0))
        yield source, worker


async def test_others_hear_of_a_task_that_is_run_again(
    pair: tuple[Lilota, Lilota], directory: Path
) -> None:
    """By retry() on a node that runs nothing."""
    source, worker = pair
    task_id = await source.schedule(fail_and_hold, str(directory))
    with pytest.raises(TaskFailed):
        await worker.result(task_id)
    (directory / "release").touch()
    assert await source.retry(task_id)
    assert await source.result(task_id, timeout=10) == "released"


async def test_others_hear_of_what_a_node_puts_back(
    pair: tuple[Lilota, Lilota], made: Callable[..., Lilota], directory: Path
) -> None:
    """When it stops, as in a deployment: another one that is idle goes on with it."""
    source, worker = pair
    held = await source.schedule(hold, str(directory))
    await marked(directory)
    other = made()
    await other.start()
    task_id = await other.schedule(echo, 1, delay=0.2)
    assert await source.result(task_id, timeout=10) == 1
    await worker.stop(drain=False, timeout=0)
    (directory / "release").touch()
    assert await source.result(held, timeout=10) == "released"


async def test_a_row_whose_caller_has_gone_away(
    pair: tuple[Lilota, Lilota], postgresql_url: str
) -> None:
    """It is claimed once it is there, though nobody waits for it any more."""
    source, worker = pair
    task_id: TaskId[Any] = TaskId()
    async with session(postgresql_url) as application:
        await source.schedule(echo, 2, unique_key="key", session=application)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await worker.schedule(echo, 3, unique_key="key", task_id=task_id)
        await application.rollback()
    while await worker.get_task_by_id(task_id) is None:
        await asyncio.sleep(0.02)
    assert await worker.result(task_id, timeout=10) == 3


async def test_a_session_that_meets_a_key_keeps_nobody_waiting(
    made: Callable[..., Lilota], postgresql_url: str, directory: Path
) -> None:
    """Its transaction stays open after it has found who has the key, and that one can end."""
    async with asyncio.timeout(DEADLINE), made(number_of_processes=2) as lilota:
        held = await lilota.schedule(hold, str(directory), unique_key="key")
        await marked(directory)
        async with session(postgresql_url) as application:
            found = await lilota.schedule(hold, "", unique_key="key", session=application)
            assert found == held
            for conflict in ("reject", "replace"):
                with pytest.raises(AlreadyScheduled):
                    await lilota.schedule(
                        hold, "", unique_key="key", on_conflict=conflict, session=application
                    )
            (directory / "release").touch()
            assert await lilota.result(held, timeout=10) == "released"


async def test_a_listener_that_cannot_come_back(
    pair: tuple[Lilota, Lilota], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node polls instead, from then on."""
    source, worker = pair
    assert worker._node is not None
    listener = worker._node._notifications
    assert listener is not None

    async def no_connection() -> None:
        raise OSError("too many connections")

    monkeypatch.setattr(listener, "_listen", no_connection)
    monkeypatch.setattr(dispatcher, "POLL_SECONDS", 0.5)
    await raw(
        source.database,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND query LIKE 'LISTEN%'",
    )
    await until(lambda: not listener.is_up, "the end of the listening")
    assert await source.result(await source.schedule(echo, 1), timeout=10) == 1
