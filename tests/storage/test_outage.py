"""The database goes away and comes back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from lilota_async.errors import ScheduleUnknown, StoreError, StoreUnavailable
from lilota_async.models import TaskStatus
from lilota_async.storage.database import Database, begin, rollback
from lilota_async.storage.migrate import migrate
from lilota_async.storage.operation import Kind
from lilota_async.storage.queries import get_task, get_tasks
from lilota_async.storage.store import Store
from lilota_async.storage.stores import create_store
from lilota_async.storage.transitions import Claim, Finish
from lilota_async.storage.writer import Writer
from tests.api.support import until
from tests.storage.proxy import Proxy
from tests.storage.support import NODE, claim_new, ended, eventually, kill_others, new_task, row_of

pytestmark = pytest.mark.anyio

CLAIM_ONE = Claim(node_id=NODE, names=("add",), pids=(1,))


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A writer behind a proxy, and the database without it."""

    proxy: Proxy
    writer: Writer
    direct: Database
    store: Store


@asynccontextmanager
async def behind_proxy(url: str, store_timeout: float = 10.0) -> AsyncIterator[Setting]:
    """Set it up, and close it even while the database is away."""
    if url.startswith("sqlite"):
        pytest.skip("SQLite has no network")
    direct = Database(url)
    await direct.open()
    await migrate(direct)
    store = create_store(direct)
    async with Proxy(url) as proxy:
        database = Database(proxy.url)
        await database.open()
        writer = Writer(database, store, store_timeout=store_timeout)
        await writer.start()
        try:
            yield Setting(proxy=proxy, writer=writer, direct=direct, store=store)
        finally:
            await writer.close(timeout=1.0)
            await database.close()
            await direct.close()


async def test_a_killed_connection_is_replaced(
    database: Database, writer: Writer, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """An idle connection that the server ends costs one warning and no answer.

    Not even a warning where the driver hears of it by itself.
    """
    caplog.set_level(logging.INFO, "lilota_async")
    attempt = (await claim_new(database, store)).attempt
    connection = await writer._link.connect()
    await kill_others(database)
    hears = database.url.drivername == "postgresql+asyncpg"
    if hears:
        await until(lambda: store.is_closed(connection), "the driver's hearing of it", 5.0)
    done = Finish(attempt=attempt, status=TaskStatus.COMPLETED, output="1")
    with anyio.fail_after(5):
        task = new_task()
        answers = await asyncio.gather(ended(writer, done), writer.insert([task]))
    assert list(answers) == [True, set()]
    assert (await row_of(database, attempt.id)).status == TaskStatus.COMPLETED
    assert await get_task(database, task.id) is not None
    levels = [record.levelname for record in caplog.records if record.name == "lilota_async"]
    assert levels == ([] if hears else ["WARNING", "INFO"])
    assert writer.is_connected


async def test_nothing_is_sent_over_a_connection_that_is_known_to_be_closed(
    postgresql_url: str,
) -> None:
    """Where the driver hears of it, a write is not in doubt while nobody can take it."""
    async with behind_proxy(postgresql_url, store_timeout=0.3) as setting:
        await setting.writer.insert([new_task()])
        connection = await setting.writer._link.connect()
        await setting.proxy.cut()
        await until(lambda: setting.store.is_closed(connection), "the end of the connection", 5.0)
        with pytest.raises(StoreUnavailable):
            await setting.writer.insert([new_task()])
        await setting.proxy.restore()
        await until(lambda: setting.writer.is_connected, "the return", 5.0)
        task = new_task()
        await setting.writer.insert([task])
        assert await get_task(setting.direct, task.id) is not None


async def test_the_return_of_the_database_ends_the_pauses_of_all(tmp_path: Path) -> None:
    """Who hears of it first tells those that pause between two tries."""
    database = Database(f"sqlite:///{tmp_path}/lilota.db")
    waiting = [asyncio.ensure_future(database.wait_for_return(60.0)) for _ in range(2)]
    await asyncio.sleep(0.01)
    database.note_return()
    with anyio.fail_after(5):
        await asyncio.gather(*waiting)
        await database.wait_for_return(0.01)  # of the next one it has not heard


async def test_one_of_two_writers_speaks_of_an_outage(
    postgresql_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The other one reconnects without a word."""
    caplog.set_level(logging.INFO, "lilota_async")
    async with behind_proxy(postgresql_url) as setting:
        database = Database(setting.proxy.url)
        async with Writer(database, setting.store, is_quiet=True) as quiet:
            await setting.proxy.cut()
            task = new_task()
            inserting = quiet.insert([task])
            await until(lambda: not quiet.is_connected, "the loss", 5.0)
            await setting.proxy.restore()
            assert await inserting == set()
        await database.close()
    assert [record for record in caplog.records if record.name == "lilota_async"] == []


async def test_reads_survive_dead_connections(database: Database, store: Store) -> None:
    """Those that lie in the pool are replaced without the caller's noticing."""
    task = new_task()
    async with Writer(database, store) as writer:
        await writer.insert([task])
    outside = Database(database.url)
    await kill_others(outside)
    assert await get_task(database, task.id) is not None


async def test_writes_are_held_while_the_database_is_away(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Claims fail at once; the end of an attempt and an insert arrive when it is back."""
    async with behind_proxy(database_url) as setting:
        attempt = (await claim_new(setting.direct, setting.store)).attempt
        await setting.proxy.cut()
        done = Finish(attempt=attempt, status=TaskStatus.COMPLETED, output="1")
        task = new_task()
        finishing = ended(setting.writer, done)
        inserting = asyncio.ensure_future(setting.writer.insert([task]))
        with anyio.fail_after(5):
            for _ in range(3):
                with pytest.raises(StoreUnavailable):
                    await setting.writer.claim(lambda: CLAIM_ONE)
        assert not setting.writer.is_connected
        assert not finishing.done()
        assert not inserting.done()
        await setting.proxy.restore()
        with anyio.fail_after(10):
            assert await finishing is True
            await inserting
            (claimed,) = (await setting.writer.claim(lambda: CLAIM_ONE)).tasks
        assert claimed.attempt.id == task.id
        warnings = [record for record in caplog.records if record.levelname == "WARNING"]
        assert len(warnings) == 1


async def test_an_idle_writer_reconnects(database_url: str) -> None:
    """With nothing to write, claims work again soon after the database is back."""
    async with behind_proxy(database_url) as setting:
        await setting.proxy.cut()
        with pytest.raises(StoreUnavailable):
            await setting.writer.claim(lambda: CLAIM_ONE)
        await setting.proxy.restore()

        async def is_back() -> bool:
            return setting.writer.is_connected

        await eventually(is_back, 10.0)
        assert (await setting.writer.claim(lambda: CLAIM_ONE)).tasks == []


async def test_inserts_give_up_in_time(database_url: str) -> None:
    """Nothing was written, says the error, and it stays so after the database is back."""
    async with behind_proxy(database_url, store_timeout=0.5) as setting:
        await setting.proxy.cut()
        # Until the loss is noticed, a write may go out and leave its caller in doubt.
        with pytest.raises(StoreUnavailable):
            await setting.writer.claim(lambda: CLAIM_ONE)
        with anyio.fail_after(5), pytest.raises(StoreUnavailable):
            await setting.writer.insert([new_task()])
        with anyio.fail_after(5), pytest.raises(StoreUnavailable):
            await setting.writer.execute(setting.store.nodes)
        await setting.proxy.restore()

        async def is_back() -> bool:
            return setting.writer.is_connected

        await eventually(is_back, 10.0)
        assert await get_tasks(setting.direct) == []


async def test_a_lost_answer_is_unknown(database_url: str) -> None:
    """The commit may have been made: the error says which id to look up."""
    async with behind_proxy(database_url, store_timeout=0.5) as setting:
        await setting.writer.insert([new_task()])
        task = new_task()
        setting.proxy.mute()
        with anyio.fail_after(5), pytest.raises(ScheduleUnknown) as caught:
            await setting.writer.insert([task])
        assert caught.value.task_ids == (task.id,)
        await setting.proxy.cut()


async def test_an_answer_stays_lost(database_url: str) -> None:
    """A commit in doubt is still in doubt when the database does not come back in time."""
    async with behind_proxy(database_url, store_timeout=2.0) as setting:
        await setting.writer.insert([new_task()])
        setting.proxy.mute()
        inserting = asyncio.ensure_future(setting.writer.insert([new_task()]))
        # A flush of more than one statement is muted at its BEGIN, and in no doubt.
        one_statement = setting.store.is_atomic(Kind.INSERT, [[new_task()]])
        with anyio.fail_after(5):
            await setting.proxy.swallowed.wait()
            await setting.proxy.cut()
            with pytest.raises(ScheduleUnknown if one_statement else StoreUnavailable):
                await inserting


async def test_what_was_given_up_is_not_written_later(
    database: Database, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An insert that said "nothing was written" keeps its word when a slow connect succeeds."""
    gate = asyncio.Event()
    async with Writer(database, store, store_timeout=0.3) as writer:
        connect = writer._link.connect

        async def slow() -> AsyncConnection:
            await gate.wait()
            return await connect()

        monkeypatch.setattr(writer._link, "connect", slow)
        with anyio.fail_after(5), pytest.raises(StoreUnavailable):
            await writer.insert([new_task()])
        gate.set()
        last = new_task()
        await writer.insert([last])
        assert [task.id for task in await get_tasks(database)] == [last.id]


async def test_a_lost_answer_is_asked_for_again(database_url: str) -> None:
    """When the database is back in time, the second try finds the first one's rows."""
    async with behind_proxy(database_url) as setting:
        await setting.writer.insert([new_task()])
        (claimed,) = (await setting.writer.claim(lambda: CLAIM_ONE)).tasks
        task = new_task()
        done = Finish(attempt=claimed.attempt, status=TaskStatus.FAILED)
        await setting.writer.execute(setting.store.nodes)
        setting.proxy.mute()
        inserting = asyncio.ensure_future(setting.writer.insert([task]))
        finishing = ended(setting.writer, done)
        with anyio.fail_after(10):
            await setting.proxy.swallowed.wait()
            await setting.proxy.cut()
            await setting.proxy.restore()
            await inserting
            assert await finishing is True
        assert len(await get_tasks(setting.direct)) == 2
        row = await row_of(setting.direct, claimed.attempt.id)
        assert (row.status, row.attempts) == (TaskStatus.FAILED, 1)


async def test_close_gives_up_in_time(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """What is held is given up with a line in the log, and nothing hangs."""
    async with behind_proxy(database_url) as setting:
        attempt = (await claim_new(setting.direct, setting.store)).attempt
        await setting.proxy.cut()
        done = Finish(attempt=attempt, status=TaskStatus.COMPLETED)
        finishing = ended(setting.writer, done)
        await asyncio.sleep(0)
        with anyio.fail_after(5):
            await setting.writer.close(timeout=0.3)
            with pytest.raises(StoreUnavailable):
                await finishing
        assert "1 attempts are not written" in caplog.text


async def test_close_gives_up_on_a_hanging_database(database_url: str) -> None:
    """A server that does not answer any more cannot keep close() waiting."""
    async with behind_proxy(database_url) as setting:
        await setting.writer.insert([new_task()])
        setting.proxy.mute()
        inserting = asyncio.ensure_future(setting.writer.insert([new_task()]))
        await setting.proxy.swallowed.wait()
        with anyio.fail_after(8):
            await setting.writer.close(timeout=0.3)
            with pytest.raises(ScheduleUnknown):
                await inserting


async def test_start_without_a_database() -> None:
    """It says so at once."""
    database = Database("postgresql://user:s3cret@127.0.0.1:1/none")
    await database.open()
    writer = Writer(database, create_store(database))
    with pytest.raises(StoreUnavailable):
        await writer.start()
    await writer.close()
    await database.close()


async def test_a_write_that_breaks_the_connection_fails_alone(
    database: Database, writer: Writer
) -> None:
    """It is tried a few times, alone in the end; the others of its flush are written."""
    suicides = {
        "postgresql": "SELECT pg_terminate_backend(pg_backend_pid())",
        "mariadb": "KILL CONNECTION_ID()",
    }
    if database.dialect not in suicides:
        pytest.skip("SQLite has no server")
    statement = text(suicides[database.dialect])
    with anyio.fail_after(8):
        *others, broken = await asyncio.gather(
            *(writer.insert([new_task()]) for _ in range(5)),
            writer.execute(lambda connection: connection.execute(statement)),
            return_exceptions=True,
        )
    assert type(broken) is StoreError
    assert others == [set()] * 5
    assert len(await get_tasks(database)) == 5


async def test_a_locked_sqlite_file_is_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Another program that holds the write lock for long delays writes and loses none."""
    database = Database(f"sqlite:///{tmp_path / 'lilota.db'}?timeout=0.05")
    await database.open()
    await migrate(database)
    store = create_store(database)
    async with Writer(database, store) as writer:
        async with database.connect() as other:
            await begin(other)

            lose = writer._link.lose
            losses = []

            async def counted(error: BaseException) -> None:
                losses.append(error)
                await lose(error)

            async def has_been_lost(count: int) -> bool:
                return len(losses) >= count

            writer._link.lose = counted  # type: ignore[method-assign]
            inserting = asyncio.ensure_future(writer.insert([new_task()]))
            # Longer than what a write that breaks connections is allowed.
            await eventually(lambda: has_been_lost(7), 20.0)
            assert await get_tasks(database) == []
            assert not inserting.done()
            await rollback(other)
        with anyio.fail_after(5):
            await inserting
    await database.close()
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "locked" in caplog.text
