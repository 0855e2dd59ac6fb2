"""A started Lilota: its parts, wired together, and the order in which they start and stop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING
from uuid import UUID

from lilota_async.engine.backlog import Backlog
from lilota_async.engine.cancellation import CancelRequests
from lilota_async.engine.children import ChildTasks, NewRow
from lilota_async.engine.dependencies import Dependencies
from lilota_async.engine.dispatcher import Dispatcher, DispatcherSettings
from lilota_async.engine.events import Events
from lilota_async.engine.housekeeping import Housekeeping
from lilota_async.engine.insertion import Insertion
from lilota_async.engine.periodic import PeriodicTasks
from lilota_async.engine.recovery import Recovery
from lilota_async.engine.running import RunningAttempts
from lilota_async.engine.uniqueness import UniqueInserts
from lilota_async.errors import ConfigurationError, NotRunning, StoreError
from lilota_async.execution.identity import own_identity
from lilota_async.execution.node_pools import create_pools
from lilota_async.models.values import Health, TaskId
from lilota_async.options import NodeOptions, OnConflict
from lilota_async.registry import Registry
from lilota_async.storage import queries
from lilota_async.storage.database import Database
from lilota_async.storage.enlistment import CallersSession, Enlistment
from lilota_async.storage.migrate import check, migrate
from lilota_async.storage.notifications import Notifications
from lilota_async.storage.pruning import delete_some
from lilota_async.storage.reader import TaskReader
from lilota_async.storage.stats import read_throughput
from lilota_async.storage.store import is_plain
from lilota_async.storage.stores import create_store
from lilota_async.storage.transitions import (
    BoundedInsert,
    Dependent,
    InUse,
    News,
    NewTask,
    NodeRecord,
)
from lilota_async.storage.writer import Writer

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection


class Node:
    """The parts of a started Lilota, which belong to the event loop that it was started in."""

    def __init__(
        self, options: NodeOptions, registry: Registry, database: Database, new_row: NewRow
    ) -> None:
        self.id: UUID = TaskId()
        self._loop = asyncio.get_running_loop()
        self.store = create_store(database)
        create_writer = partial(Writer, database, self.store, store_timeout=options.store_timeout)
        self.writer = create_writer()
        # So that schedule() does not wait for the ends of others; not over a pool that is not ours.
        is_apart = self.store.writes_side_by_side and database.makes_connections
        self._inserter = create_writer(is_quiet=True) if is_apart else self.writer
        self.rows = TaskReader(database)
        self.events = Events(lambda ids: queries.get_states(database, list(ids)), self._is_alone)
        self._options = options
        self._database = database
        self._pools = create_pools(options, lambda: self.dispatcher.on_slot_free())
        self.dependencies = Dependencies(
            self.writer,
            self.store,
            on_due=lambda: self.dispatcher.look(),
            on_cancelled=lambda *end: self.dispatcher.running.tell(*end),
            is_notified=self._is_notified,
        )
        self.dispatcher = Dispatcher(
            DispatcherSettings(
                node_id=self.id,
                progress_is_manual=options.progress_is_manual,
                grace_seconds=options.grace_seconds,
                is_notified=self._is_notified,
                may_claim=lambda: self._recovery.holds_lease,
            ),
            registry,
            self.writer,
            self.store,
            self.events,
            self._pools,
            ChildTasks(registry, self.dependencies, new_row),
        )
        self._recovery = Recovery(
            self._record(),
            registry,
            self.writer,
            self.store,
            names=lambda: self._runnable(registry),
            on_work=self.dispatcher.wake,
            on_lease_lost=self.dispatcher.abandon,
        )
        self._cancel_requests = CancelRequests(
            self.id, self.dispatcher, self.writer, self.store, self._is_notified
        )
        self._periodic = PeriodicTasks(registry, self.writer, self.store, self.dispatcher.wake)
        self._backlog = Backlog(
            options.max_pending, registry, self._inserter, partial(read_throughput, database)
        )
        self._unique = UniqueInserts(
            partial(create_writer, is_quiet=True), self._backlog, self.store.unique_keys
        )
        self._enlistment = Enlistment(database, self.store, self.id, self._on_commit)
        self._housekeeping = Housekeeping(
            options.retention, registry, partial(delete_some, database)
        )
        self._notifications: Notifications | None = None
        if options.notify and database.dialect == "postgresql":
            self.store.origin = self.id.hex
            self._notifications = Notifications(
                database,
                self.id.hex,
                self._on_notify,
                on_up=self._on_listening,
                on_down=self.dispatcher.look,
            )
        self._parts = AsyncExitStack()
        self._accepting = False
        self._looks_on_commit = False
        self._inserting = 0
        self._inserted = asyncio.Event()

    async def start(self) -> None:
        """Bring every part up, in this order; on failure, down again."""
        async with AsyncExitStack() as parts:
            await self._database.open()
            parts.push_async_callback(self._database.close)
            await (migrate if self._options.migrate else check)(self._database)
            for writer in dict.fromkeys((self.writer, self._inserter)):
                await writer.start()
                parts.push_async_callback(writer.close)
            parts.push_async_callback(self.rows.close)
            parts.push_async_callback(self._unique.close)
            parts.push_async_callback(self.events.close)
            for pool in self._pools.values():
                parts.push_async_callback(pool.close)
                await pool.start()
            await self._recovery.start()
            parts.push_async_callback(self._recovery.close)
            self._cancel_requests.start()
            parts.push_async_callback(self._cancel_requests.close)
            if self._notifications is not None:
                self._notifications.start()
                parts.push_async_callback(self._notifications.close)
            parts.callback(self._enlistment.close)
            self.dependencies.start()
            parts.push_async_callback(self.dependencies.close)
            self._housekeeping.start()
            parts.push_async_callback(self._housekeeping.close)
            await self._periodic.start()
            parts.push_async_callback(self._periodic.close)
            self.dispatcher.start()
            self._accepting = True
            self._parts = parts.pop_all()

    async def stop(self, *, drain: bool, timeout: float | None) -> None:
        """Take nothing more, end what runs, bring every part down."""
        self._accepting = False
        async with self._parts:
            await self._periodic.close()
            while self._inserting:
                self._inserted.clear()
                await self._inserted.wait()
            loop = asyncio.get_running_loop()
            deadline = None if timeout is None else loop.time() + timeout
            if drain and self._pools:
                await self.dispatcher.drain(timeout)
            await self.dispatcher.halt()
            left = None if deadline is None else max(0.0, deadline - loop.time())
            await self.dispatcher.finish_running(left)

    @property
    def running(self) -> RunningAttempts:
        """The attempts that run here."""
        return self.dispatcher.running

    @property
    def is_accepting(self) -> bool:
        """Whether new tasks are taken."""
        return self._accepting

    @property
    def is_of_this_loop(self) -> bool:
        """Whether it was started in the event loop that runs now."""
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:  # what asyncio says in a fork
            return False

    def check_loop(self) -> None:
        """Raise ConfigurationError elsewhere than in the event loop of `start()`.

        A process that was forked from it runs another one.
        """
        if not self.is_of_this_loop:
            raise ConfigurationError(
                "lilota was started in another event loop, or before this process was forked, and "
                "cannot be shared with it; start it in each worker process and each loop, as in "
                "the lifespan of the application"
            )

    async def health(self, timeout: float) -> Health:
        """What can be known of this node within `timeout` seconds."""
        answered = False
        with contextlib.suppress(StoreError, TimeoutError):
            async with asyncio.timeout(timeout):
                await queries.get_states(self._database, [self.id])
                answered = True
        processes = self._pools.get("process")
        return Health(
            running=self._accepting,
            database=answered,
            cells=processes is None or processes.is_healthy,
            lease=self._recovery.holds_lease,
        )

    async def insert(self, tasks: list[NewTask], more: int = 0) -> None:
        """Commit new rows of one name, and have them run; QueueFull when there is no room.

        `more` rows are to follow, for which there must be room as well.
        """
        with self._insertion():
            await self._backlog.insert(tasks, lambda: self.dispatcher.on_inserted(tasks), more=more)

    async def insert_one(self, task: NewTask) -> None:
        """Commit a new row: as running, when a slot is free for it and nothing else waits."""
        insertion = Insertion(task, self.id, self.dispatcher)
        may_run = is_plain(task)
        if may_run and self._accepting and self._backlog.bounds_of(task.name):
            insertion.choose()  # what does not run at once has to fit into the backlog
            may_run = insertion.has_place
        if not may_run:
            return await self.insert([task])
        if not self._accepting:
            raise NotRunning("schedule()")
        self._inserting += 1
        try:
            refused = await self._inserter.insert_late(insertion)
        finally:
            self._inserting -= 1
            self._inserted.set()
        if refused:  # paused, of which this node has not heard yet
            await self.insert([task])

    async def insert_with(self, session: CallersSession, tasks: list[NewTask]) -> None:
        """Write new rows in a transaction of the application's; they run once it commits."""
        with self._insertion():
            await self._check_room(tasks)
            await self._enlistment.insert(session, tasks)

    async def insert_unique(
        self, task: NewTask, on_conflict: OnConflict, session: CallersSession | None
    ) -> TaskId:
        """Commit a new row, unless another has its key; returns the id that has it then."""
        with self._insertion():
            if session is not None:
                await self._check_room([task])
                return await self._enlistment.insert_unique(session, task, on_conflict)
            return await self._unique.insert(
                task, on_conflict, lambda: self.dispatcher.on_inserted([task])
            )

    async def _check_room(self, tasks: list[NewTask]) -> None:
        """Raise QueueFull, as far as can be told without the lock of the backlog."""
        bounds = self._backlog.bounds_of(tasks[0].name)
        if bounds:
            # The lock would last as long as the application's transaction.
            wanted = BoundedInsert(tasks=tasks, bounds=bounds)
            full = await queries.find_full_bound(self._database, wanted)
            if full is not None:
                raise await self._backlog.error(full)

    async def change_limits(self, change: Callable[[AsyncConnection], Awaitable[None]]) -> None:
        """Write a pause or its end, which holds on this node from then on."""

        async def changed(c: AsyncConnection) -> InUse:
            await change(c)
            return await self.store.limits.in_use(c)

        look = self.dispatcher.look  # though the caller may be gone by then
        if self.dispatcher.limits.note(await self.writer.execute(changed, on_written=look)):
            self.dispatcher.wake()  # the look may come too late to see what was changed
        # What was sent before that and says that it runs has begun when this returns.
        await self._inserter.execute(self.store.clock, in_transaction=False)

    async def insert_waiting(
        self, rows: list[Dependent], session: CallersSession | None = None
    ) -> None:
        """Commit new rows that wait for others, or write them for a session to commit."""
        with self._insertion():
            await self._check_room([row.task for row in rows])
            if session is not None:
                self._looks_on_commit = True
                await self._enlistment.insert_waiting(session, rows)
                return
            await self._database.undisturbed(self.dependencies.insert(rows))

    def _on_commit(self) -> None:
        self.dispatcher.look()
        if self._looks_on_commit:
            self.dependencies.look()

    @contextmanager
    def _insertion(self) -> Iterator[None]:
        if not self._accepting:
            raise NotRunning("schedule()")
        self._inserting += 1
        try:
            yield
        finally:
            self._inserting -= 1
            self._inserted.set()

    def _is_alone(self) -> bool:
        """Whether this one runs tasks, and knows of no other node."""
        return bool(self._pools) and not self.store.has_listeners

    def _is_notified(self) -> bool:
        return self._notifications is not None and self._notifications.is_up

    def _on_listening(self) -> None:
        self._on_notify(News.LOOK)
        self._cancel_requests.wake()
        self._recovery.beat_soon()  # which tells whether there is anybody at all

    def _on_notify(self, news: News) -> None:
        if not self.store.has_listeners:
            self._recovery.beat_soon()  # which tells who that is, and of what lease
        self.store.has_listeners = True  # somebody spoke, who will want to hear as well
        if news is News.CANCEL:
            self._cancel_requests.wake()
        elif news is News.ROWS:
            self.dispatcher.wake()
        else:
            self.dispatcher.look()
            if not self.dependencies.in_use:
                self.dependencies.look()

    def _runnable(self, registry: Registry) -> tuple[str, ...]:
        """The tasks that this node has slots for."""
        kinds = {kind for kind, pool in self._pools.items() if pool.size}
        return tuple(name for name, task in registry.items() if task.settings.executor in kinds)

    def _record(self) -> NodeRecord:
        own = own_identity()
        return NodeRecord(
            id=self.id,
            machine=own.machine,
            host=own.host,
            pid=own.pid,
            pid_started=own.started,
            lease_seconds=self._options.lease_seconds,
            slots=self._options.processes,
            version=metadata.version("lilota-async"),
        )
