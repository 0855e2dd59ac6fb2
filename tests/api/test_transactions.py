"""schedule(session=): the row goes with the application's own transaction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Integer, String, func, select, text
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from lilota_async import Lilota, Task, TaskStatus
from lilota_async.errors import ConfigurationError, InvalidInput, NotRunning
from tests.api.support import DEADLINE, MakeLilota
from tests.api.tasks import echo

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


class Base(DeclarativeBase):
    """The application's own tables."""


class Order(Base):
    __tablename__ = "customer_order"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    item: Mapped[str] = mapped_column(String(50))


@asynccontextmanager
async def engine_for(url: str, **options: Any) -> AsyncIterator[AsyncEngine]:
    """An engine of the application's, with its table."""
    engine = create_async_engine(url, **options)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        yield engine
    finally:
        await engine.dispose()


async def count(engine: AsyncEngine, table: Any) -> int:
    """How many rows another connection sees."""
    async with AsyncSession(engine) as session:
        return int(await session.scalar(select(func.count()).select_from(table)) or 0)


async def test_order_and_task_are_committed_together(
    make_lilota: MakeLilota, database_url: str, without_polling: None
) -> None:
    """Nobody sees the row before the commit; after it the task runs at once."""
    async with make_lilota(echo, db_url=database_url) as lilota, engine_for(database_url) as engine:
        async with AsyncSession(engine) as session, session.begin():
            session.add(Order(item="book"))
            await session.flush()
            task_id = await lilota.schedule(echo, "book", session=session)
            assert await lilota.get_task_by_id(task_id) is None
            assert await count(engine, Order) == 0
        assert await count(engine, Order) == 1
        assert await lilota.result(task_id, DEADLINE) == "book"


async def test_through_a_connection(
    make_lilota: MakeLilota, database_url: str, without_polling: None
) -> None:
    """Core works like the ORM, and one connection serves one transaction after the other."""
    async with make_lilota(echo, db_url=database_url) as lilota, engine_for(database_url) as engine:
        async with engine.connect() as connection:
            for number in range(3):
                await connection.execute(
                    text("INSERT INTO customer_order (id, item) VALUES (:id, 'pen')"),
                    {"id": number + 1},
                )
                task_id = await lilota.schedule(echo, number, session=connection)
                await connection.commit()
                assert await lilota.result(task_id, DEADLINE) == number
        assert await count(engine, Order) == 3


async def test_nothing_remains_of_a_rollback(
    make_lilota: MakeLilota, database_url: str, without_polling: None
) -> None:
    """Neither the order nor the task; the same session goes on, and its next commit counts."""
    async with make_lilota(echo, db_url=database_url) as lilota, engine_for(database_url) as engine:
        async with AsyncSession(engine) as session:
            session.add(Order(item="book"))
            await session.flush()
            await lilota.schedule(echo, "never", session=session)
            await session.rollback()
            assert await lilota.get_all_tasks() == []
            session.add(Order(item="pen"))
            task_id = await lilota.schedule(echo, "pen", session=session)
            await session.commit()
        assert await lilota.result(task_id, DEADLINE) == "pen"
        assert [task.input for task in await lilota.get_all_tasks()] == ["pen"]
        assert await count(engine, Order) == 1


async def test_savepoints(
    make_lilota: MakeLilota, database_url: str, without_polling: None
) -> None:
    """What a savepoint took back is gone, what another released runs, after the whole."""
    async with make_lilota(echo, db_url=database_url) as lilota, engine_for(database_url) as engine:
        async with AsyncSession(engine) as session, session.begin():
            session.add(Order(item="book"))
            await session.flush()
            kept = await session.begin_nested()
            first = await lilota.schedule(echo, 1, session=session)
            await kept.commit()
            lost = await session.begin_nested()
            second = await lilota.schedule(echo, 2, session=session)
            await lost.rollback()
            third = await lilota.schedule(echo, 3, session=session)
            assert await lilota.get_task_by_id(first) is None
        assert await lilota.result(first, DEADLINE) == 1
        assert await lilota.result(third, DEADLINE) == 3
        assert await lilota.get_task_by_id(second) is None


async def test_only_a_rolled_back_savepoint(make_lilota: MakeLilota, database_url: str) -> None:
    """The transaction is committed without any task, and lilota goes on."""
    async with make_lilota(echo, db_url=database_url) as lilota, engine_for(database_url) as engine:
        async with AsyncSession(engine) as session, session.begin():
            session.add(Order(item="book"))
            await session.flush()
            lost = await session.begin_nested()
            await lilota.schedule(echo, 1, session=session)
            await lost.rollback()
        assert await lilota.get_all_tasks() == []
        assert await count(engine, Order) == 1
        assert await lilota.result(await lilota.schedule(echo, 2), DEADLINE) == 2


async def test_many_in_one_transaction(
    make_lilota: MakeLilota, database_url: str, without_polling: None
) -> None:
    """More rows than one insert takes are all there, or none."""
    async with make_lilota(echo, db_url=database_url) as lilota, engine_for(database_url) as engine:
        async with AsyncSession(engine) as session:
            await lilota.schedule_many(echo, range(1500), session=session)
            await session.rollback()
            assert await count(engine, Task) == 0
            ids = await lilota.schedule_many(echo, range(1500), session=session)
            await session.commit()
        assert await count(engine, Task) == 1500
        assert await lilota.result(ids[-1], DEADLINE) == 1499


async def test_another_node_hears_of_the_commit(
    make_lilota: MakeLilota, postgresql_url: str, without_polling: None
) -> None:
    """A node that only schedules has the others notified by the same transaction."""
    url = postgresql_url
    async with (
        make_lilota(echo, db_url=url) as runner,
        make_lilota(echo, db_url=url, number_of_processes=0) as lilota,
        engine_for(url) as engine,
    ):
        async with AsyncSession(engine) as session:
            task_id = await lilota.schedule(echo, "heard", session=session)
            await session.commit()
        assert await runner.result(task_id, DEADLINE) == "heard"


async def _refused(lilota: Lilota, engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session, session.begin():
        session.add(Order(item="book"))
        await session.flush()
        with pytest.raises(ConfigurationError, match="where the tables of this lilota are not"):
            await lilota.schedule(echo, 1, session=session)
    assert await count(engine, Order) == 1  # the session can still be used
    assert await lilota.get_all_tasks() == []


async def test_another_database(
    make_lilota: MakeLilota, fast_database_url: str, tmp_path: Path
) -> None:
    """One without tables of lilota is refused before anything is written."""
    async with (
        make_lilota(echo, db_url=fast_database_url) as lilota,
        engine_for(f"sqlite+aiosqlite:///{tmp_path / 'other.db'}") as engine,
    ):
        await _refused(lilota, engine)


async def test_another_schema(make_lilota: MakeLilota, postgresql_url: str) -> None:
    """On PostgreSQL the transaction goes on after the refusal."""
    url = postgresql_url
    async with make_lilota(echo, db_url=url) as lilota:
        elsewhere = {"server_settings": {"search_path": "elsewhere"}}
        setup = create_async_engine(url)
        async with setup.begin() as connection:
            await connection.execute(text("CREATE SCHEMA elsewhere"))
        await setup.dispose()
        async with engine_for(url, connect_args=elsewhere) as engine:
            await _refused(lilota, engine)


async def test_the_tables_of_another_lilota(
    make_lilota: MakeLilota, sqlite_url: str, tmp_path: Path
) -> None:
    """A database that has the tables too is still another one."""
    other = f"sqlite+aiosqlite:///{tmp_path / 'other.db'}"
    async with (
        make_lilota(echo, db_url=sqlite_url) as lilota,
        make_lilota(echo, db_url=other) as another,
        engine_for(other) as engine,
    ):
        await _refused(lilota, engine)
        assert await another.get_all_tasks() == []


async def test_what_is_no_session(make_lilota: MakeLilota, sqlite_url: str) -> None:
    """Synchronous sessions, sessions without an engine and inputs that do not fit are refused."""
    async with make_lilota(echo) as lilota, engine_for(sqlite_url) as engine:
        wrong: Any = Session()
        with pytest.raises(ConfigurationError, match="takes an AsyncSession or an AsyncConn"):
            await lilota.schedule(echo, 1, session=wrong)
        with pytest.raises(ConfigurationError, match="has no engine for the table of tasks"):
            await lilota.schedule(echo, 1, session=AsyncSession())
        async with AsyncSession(engine) as session:
            with pytest.raises(InvalidInput):
                await lilota.schedule(echo, float("nan"), session=session)
            await session.commit()
        assert await lilota.get_all_tasks() == []
    async with engine_for(sqlite_url) as engine, AsyncSession(engine) as session:
        with pytest.raises(NotRunning):
            await lilota.schedule(echo, 1, session=session)


async def test_other_kinds_of_sessions(
    make_lilota: MakeLilota, fast_database_url: str, without_polling: None
) -> None:
    """A scoped session, one with several databases, and a connection in AUTOCOMMIT."""
    url = fast_database_url
    async with make_lilota(echo, db_url=url) as lilota, engine_for(url) as engine:
        scoped = async_scoped_session(async_sessionmaker(engine), asyncio.current_task)
        first = await lilota.schedule(echo, 1, session=scoped)
        await scoped.commit()
        await scoped.remove()
        async with AsyncSession(binds={Task: engine}) as session:
            second = await lilota.schedule(echo, 2, session=session)
            await session.commit()
        alone = engine.execution_options(isolation_level="AUTOCOMMIT")
        async with alone.connect() as connection:
            third = await lilota.schedule(echo, 3, session=connection)
            assert await lilota.result(third, DEADLINE) == 3
        assert await lilota.result(first, DEADLINE) == 1
        assert await lilota.result(second, DEADLINE) == 2


async def test_with_the_applications_own_engine(
    make_lilota: MakeLilota, database_url: str, without_polling: None
) -> None:
    """Lilota(engine=...) and the sessions share one engine."""
    async with engine_for(database_url) as engine, make_lilota(echo, engine=engine) as lilota:
        async with AsyncSession(engine) as session, session.begin():
            session.add(Order(item="book"))
            task_id = await lilota.schedule(echo, "same", session=session)
        task = await lilota.wait(task_id, DEADLINE)
        assert (task.status, task.output) == (TaskStatus.COMPLETED, "same")
