"""Lilota: register, start, schedule, look, stop: the whole public API.

The way of a task: `schedule()` here encodes the input and makes the id -> `storage.writer`
commits the row -> `engine.dispatcher` claims it for a free slot -> `execution.cells` sends it
to a process -> `execution.runtime` runs it there -> `engine.lifecycle` decides what follows ->
the writer commits that.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar, overload
from uuid import UUID

from typing_extensions import Unpack

from lilota_async.batches import insert_all
from lilota_async.codec import DEFAULT_LIMIT
from lilota_async.errors import AlreadyRunning, ConfigurationError, NotRunning
from lilota_async.execution.context import refuse_in_task_process
from lilota_async.models.values import Duration, TaskId, checked_duration, checked_span
from lilota_async.options import (
    MIN_LEASE_SECONDS,
    IfFailed,
    NodeOptions,
    OnConflict,
    Retention,
    ScheduleOptions,
    StartMethod,
    checked_bound,
    checked_count,
    checked_executor,
    checked_flag,
    checked_processes,
    checked_retention,
    checked_size,
    checked_slots,
    checked_start_method,
    checked_waiting,
)
from lilota_async.registration import Registration
from lilota_async.registry import TaskFunction, checked_tags
from lilota_async.scheduling import checked_conflict, new_task, waiting

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from sqlalchemy.engine import URL
    from sqlalchemy.ext.asyncio import AsyncEngine

    from lilota_async.storage.enlistment import CallersSession
    from lilota_async.storage.transitions import NewTask

DEFAULT_URL = "sqlite+aiosqlite:///lilota.db"
MAPPED_CLASSES = "lilota_async.models.tables"  # which load SQLAlchemy
Out = TypeVar("Out")


class Lilota(Registration):
    """Background tasks for an asyncio application: rows in its database, functions in processes.

    Making one has no side effects, since task processes import the module that does.

    Args:
        db_url: Any SQLAlchemy URL of SQLite, PostgreSQL or MariaDB; names of synchronous
            drivers are replaced by those of asynchronous ones.
        engine: An `AsyncEngine` of the application, instead of `db_url`; never disposed.
        number_of_processes: How many tasks run at a time in processes; by default the CPUs
            that this process may use. 0: only schedule, run nothing here.
        number_of_threads: How many tasks run at a time with `executor="thread"`.
        number_of_coroutines: How many tasks run at a time with `executor="loop"`.
        executor: Any `concurrent.futures.Executor`, such as `get_executor()` of a Dask client, to
            run what is registered with `executor="process"`; it is never shut down. Give
            `number_of_processes` as many as it runs at a time.
        set_progress_manually: Leave the progress at what the task has set, instead of
            setting it to 100 at the end.
        migrate: Let `start()` create and upgrade the tables; False only checks them.
        notify: Use LISTEN and NOTIFY on PostgreSQL; False behind PgBouncer in transaction
            mode, where nodes poll every second.
        lease: Time without a sign of life after which a node's tasks are taken over.
        grace: Time between the soft interruption of a task and its kill.
        recycle_after: A task process is replaced after so many tasks; 0: never.
        recycle_growth: A task process is replaced when its resident memory has grown by so
            much since its start; None: never.
        store_timeout: How long `schedule()` waits for a database that is away.
        stop_timeout: How long `lifespan` lets tasks run on when the application stops.
        max_pending: The most tasks that may wait, on all nodes together; `schedule()` raises
            QueueFull then. No bound by default.
        retention: For how long ended tasks are kept: a duration, or one for each status such as
            `{"completed": timedelta(days=7)}`. Those of registered names are deleted then, in
            small batches. By default all are kept.
        max_payload_bytes: The largest input or output, as JSON.
        start_method: `forkserver` or `spawn`; the first on Linux, the second elsewhere.

    Raises:
        ConfigurationError: A setting that cannot work.

    Example:
        >>> lilota = Lilota(db_url="postgresql://localhost/app")
        >>> @lilota.register("add")
        ... def add(data: AddInput) -> AddOutput:
        ...     return AddOutput(sum=data.a + data.b)
        >>> async with lilota:
        ...     task_id = await lilota.schedule(add, AddInput(a=2, b=3))
        ...     print(await lilota.result(task_id))
    """

    def __init__(
        self,
        db_url: str | URL | None = None,
        *,
        engine: AsyncEngine | None = None,
        number_of_processes: int | None = None,
        executor: Executor | None = None,
        number_of_threads: int = 8,
        number_of_coroutines: int = 100,
        set_progress_manually: bool = False,
        migrate: bool = True,
        notify: bool = True,
        lease: Duration = 30.0,
        grace: Duration = 2.0,
        recycle_after: int = 100_000,
        recycle_growth: int | str | None = "512MiB",
        store_timeout: Duration = 30.0,
        stop_timeout: Duration = 10.0,
        max_pending: int | None = None,
        retention: Retention | None = None,
        max_payload_bytes: int = DEFAULT_LIMIT,
        start_method: StartMethod | None = None,
    ) -> None:
        if db_url is not None and engine is not None:
            raise ConfigurationError("Lilota takes db_url= or engine=, not both; leave one out")
        self._options = NodeOptions(
            executor=checked_executor(executor),
            processes=checked_processes(number_of_processes),
            threads=checked_slots("number_of_threads", number_of_threads),
            coroutines=checked_slots("number_of_coroutines", number_of_coroutines),
            progress_is_manual=checked_flag("set_progress_manually", set_progress_manually),
            migrate=checked_flag("migrate", migrate),
            notify=checked_flag("notify", notify),
            lease_seconds=checked_span("lease", lease, least=MIN_LEASE_SECONDS),
            grace_seconds=checked_duration("grace", grace),
            recycle_after=checked_count("recycle_after", recycle_after),
            recycle_growth_bytes=checked_size("recycle_growth", recycle_growth),
            store_timeout=checked_duration("store_timeout", store_timeout),
            max_pending=checked_bound("max_pending", max_pending),
            retention=checked_retention(retention),
            start_method=checked_start_method(start_method),
            preload=(MAPPED_CLASSES,) if MAPPED_CLASSES in sys.modules else (),
        )
        self._has_task_processes = executor is None
        self._stop_timeout = checked_duration("stop_timeout", stop_timeout)
        self._limit = checked_count("max_payload_bytes", max_payload_bytes)
        super().__init__(DEFAULT_URL if db_url is None and engine is None else db_url, engine)

    @property
    def number_of_processes(self) -> int:
        """How many tasks run at a time in processes of this application."""
        return self._options.processes

    @property
    def max_payload_bytes(self) -> int:
        """The largest input or output, as JSON."""
        return self._limit

    @property
    def is_running(self) -> bool:
        """Whether tasks can be scheduled."""
        return self._node is not None and self._node.is_accepting

    async def start(self) -> None:
        """Prepare the database, bring the task processes up, take over what was left behind.

        Raises:
            AlreadyRunning: It is started already.
            ConfigurationError: It is called while a task process imports the module, or a
                registered function's annotations cannot be read.
            StoreUnavailable, SchemaMissing, SchemaTooNew: The database cannot be used.
            WorkerStartFailed: Task processes cannot come up.
        """
        if self._node is not None:
            raise AlreadyRunning
        refuse_in_task_process()
        self._registry.resolve()
        is_first = "lilota_async.node" not in sys.modules
        from lilota_async.node import Node

        self._node = node = Node(self._options, self._registry, self._database(), new_task)
        try:
            await node.start()
        except BaseException:
            self._node = None
            raise
        if is_first and gc.isenabled():
            gc.collect()  # due after such imports, SQLAlchemy's above all: better now than later

    async def stop(self, drain: bool = True, timeout: Duration | None = None) -> None:
        """Take no more tasks, finish those that were accepted, leave nothing behind.

        Args:
            drain: Finish what is due and was scheduled before; False finishes only what runs.
            timeout: After this many seconds, running tasks are interrupted and go back to
                `pending`, as does what was not started; no attempt is counted against them.

        Raises NotRunning when it is not started.
        """
        node = self._require_node("stop()")
        if not node.is_accepting:
            raise NotRunning("stop()")
        left = None if timeout is None else checked_duration("timeout", timeout)
        stop = node.stop(drain=checked_flag("drain", drain), timeout=left)
        stopping = asyncio.ensure_future(stop)
        stopping.add_done_callback(lambda _: setattr(self, "_node", None))
        # A caller who is cancelled does not keep the parts from coming down.
        await asyncio.shield(stopping)

    async def __aenter__(self) -> Lilota:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Finish what was accepted; after an exception only what runs."""
        if self.is_running:
            await self.stop(drain=kind is None)

    @asynccontextmanager
    async def lifespan(self, _app: object = None) -> AsyncIterator[dict[str, Any]]:
        """Start and stop with a Starlette or FastAPI application.

        Handlers find the Lilota as `request.state.lilota`. At the end only running tasks are
        finished, for `stop_timeout` at most.

        Example:
            >>> app = FastAPI(lifespan=lilota.lifespan)
        """
        await self.start()
        try:
            yield {"lilota": self}
        finally:
            if self.is_running:
                await self.stop(drain=False, timeout=self._stop_timeout)

    @overload
    async def schedule(
        self,
        task: Callable[..., Coroutine[Any, Any, Out]],
        input: Any = None,
        **options: Unpack[ScheduleOptions],
    ) -> TaskId[Out]: ...
    @overload
    async def schedule(
        self, task: Callable[..., Out], input: Any = None, **options: Unpack[ScheduleOptions]
    ) -> TaskId[Out]: ...
    @overload
    async def schedule(
        self, task: str, input: Any = None, **options: Unpack[ScheduleOptions]
    ) -> TaskId[Any]: ...
    async def schedule(
        self,
        task: str | TaskFunction,
        input: Any = None,
        *,
        delay: Duration | None = None,
        run_at: datetime | None = None,
        priority: int | None = None,
        timeout: Duration | None = None,
        tags: Iterable[str] = (),
        unique_key: str | None = None,
        unique_for: Duration | None = None,
        on_conflict: OnConflict = "return_existing",
        concurrency_key: str | None = None,
        task_id: TaskId[Any] | None = None,
        session: CallersSession | None = None,
        after: Iterable[UUID] = (),
        if_failed: IfFailed = "cancel",
    ) -> TaskId[Any]:
        """Commit a task, which is durable then; it runs as soon as it is due and a slot is free.

        Args:
            task: The name or the function that was registered.
            input: What the function is called with: an instance of its model, or a dict.
            delay: Run it that long after the row is written, in seconds or a timedelta.
            run_at: Run it at this time, a datetime with a timezone. In both cases the
                database's clock counts.
            priority, timeout: Instead of what `register()` said.
            tags: Texts to find the task by.
            unique_key: At most one task of this name with this key is not final.
            unique_for: The key is taken for that long after it was scheduled, also by a task
                that is final sooner.
            on_conflict: When another task has the key, `return_existing` returns its id,
                `reject` raises AlreadyScheduled, and `replace` lets a pending one take this
                input and these settings, and returns its id.
            concurrency_key: Of the tasks with this key, of any name, one runs at a time.
            task_id: An id of the caller's making; scheduling it again makes no second row.
            session: An `AsyncSession` or `AsyncConnection` on the same database: the row is
                written in its transaction, and the task runs once that is committed.
            after: The ids of tasks that must have completed before it runs.
            if_failed: When one of them failed, was cancelled or was deleted: `cancel` this one
                too, or `run` it all the same once all of them have ended.

        Raises:
            NotRunning: `start()` was not called, or `stop()` was.
            UnknownTask, InvalidInput: The task or its input is not right.
            AlreadyScheduled: Another task has the key, and `on_conflict` is `reject`, or it is
                `replace` and that task is not pending any more.
            TaskNotFound: An id of `after` has no row; nothing was written.
            QueueFull: As many tasks wait as `max_pending` allows; nothing was written.
            ConfigurationError: A setting cannot work, or `session` is on another database.
            StoreUnavailable: The database did not take the row in `store_timeout`.
            ScheduleUnknown: The database went away during the commit; the id can be looked up.
        """
        node = self._require_node("schedule()")
        registered = self._registry.find(task)
        row = new_task(
            registered,
            registered.encode_input(input),
            delay=delay,
            run_at=run_at,
            priority=priority,
            timeout=timeout,
            tags=tags,
            unique_key=unique_key,
            unique_for=unique_for,
            concurrency_key=concurrency_key,
            task_id=task_id,
        )
        ids = checked_waiting(after, if_failed)
        if ids:
            await node.insert_waiting([waiting(row, ids, if_failed)], session)
            return row.id
        if unique_key is not None or on_conflict != "return_existing":
            on_conflict = checked_conflict(on_conflict, unique_key)
            return await node.insert_unique(row, on_conflict, session)
        if session is not None:
            await node.insert_with(session, [row])
        elif task_id is None:
            await node.insert_one(row)
        else:  # it may have a row already, which must not be taken for running
            await node.insert([row])
        return row.id

    async def schedule_many(
        self,
        task: str | TaskFunction,
        inputs: Iterable[Any] | AsyncIterable[Any],
        *,
        delay: Duration | None = None,
        run_at: datetime | None = None,
        priority: int | None = None,
        timeout: Duration | None = None,
        tags: Iterable[str] = (),
        concurrency_key: str | None = None,
        session: CallersSession | None = None,
        after: Iterable[UUID] = (),
        if_failed: IfFailed = "cancel",
    ) -> list[TaskId[Any]]:
        """Commit one task for each input, a thousand to a transaction; returns their ids.

        A list or other collection is checked as a whole before its first row is written. Of an
        iterator or asynchronous iterator two thousand inputs are held in memory at a time: when
        it fails, or one of its inputs does, earlier ones are committed, and PartlyScheduled
        tells which. With `session`, all rows are written in its transaction.

        Raises:
            PartlyScheduled: Anything went wrong after the first rows were committed.

        Otherwise what `schedule()` raises, and nothing was written.

        Example:
            >>> ids = await lilota.schedule_many("import", (line for line in open("lines.txt")))
        """
        node = self._require_node("schedule_many()")
        ids = checked_waiting(after, if_failed)

        async def insert(rows: list[NewTask], more: int) -> None:
            if ids:
                await node.insert_waiting([waiting(row, ids, if_failed) for row in rows], session)
            elif session is not None:
                await node.insert_with(session, rows)
            else:
                await node.insert(rows, more)

        return await insert_all(
            insert,
            self._registry.find(task),
            inputs,
            commits=session is None,
            delay=delay,
            run_at=run_at,
            priority=priority,
            timeout=timeout,
            tags=checked_tags(tags),
            concurrency_key=concurrency_key,
        )
