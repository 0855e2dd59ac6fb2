"""Group commit: callers queue what they want written, one task writes all that waits.

While one flush is under way the next one gathers, so that a lone caller waits for one
round trip and a hundred callers share one commit.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import anyio

from lilota_async.errors import NotRunning, StoreUnavailable
from lilota_async.models.values import TaskId
from lilota_async.storage.batch import Turns, apply, is_atomic, prepared, take
from lilota_async.storage.database import Database, begin, commit, rollback
from lilota_async.storage.failures import is_conflict, is_disconnect
from lilota_async.storage.link import Link
from lilota_async.storage.operation import Kind, LateRow, Operation, Tell, Told, measure
from lilota_async.storage.outcomes import Outcomes
from lilota_async.storage.store import Store
from lilota_async.storage.threaded import in_one_go
from lilota_async.storage.transitions import (
    Bound,
    BoundedInsert,
    Claim,
    Claimed,
    ClaimedTask,
    Dependent,
    Finish,
    LimitedClaim,
    NewTask,
    Report,
    Requeue,
)

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

T = TypeVar("T")
_logger = logging.getLogger("lilota_async")
_CONFLICT_TRIES = 5
_CONFLICT_PAUSE = 0.05
_EXPIRY_PERIOD = 0.25
_LAST_PATIENCE = 1.0


class Writer:
    """Writes what callers queue, over one connection of its own.

    Survives the loss of the database: it reconnects, and writes again what may be written
    twice. Claims fail at once then, inserts and other calls after `store_timeout` seconds;
    finish, requeue and report are held until `close()`. What it refuses is its caller's StoreError.
    """

    def __init__(
        self,
        database: Database,
        store: Store,
        *,
        store_timeout: float = 30.0,
        is_quiet: bool = False,
    ) -> None:
        self._database = database
        self._store = store
        self._store_timeout = store_timeout
        self._create_link = partial(Link, database, store, is_quiet=is_quiet)
        self._link = self._create_link()
        self._loop = asyncio.get_running_loop()
        self._queue: list[Operation] = []
        self._turns = Turns(store.turns)
        self._in_flight: list[Operation] = []
        self._outcomes = Outcomes(self._put_back)
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._closing = False
        self._flushing_since: float | None = None
        self.flushes = 0

    async def __aenter__(self) -> Writer:
        await self.start()
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.close()

    @property
    def is_connected(self) -> bool:
        """Whether the database answered the last time it was asked."""
        return self._link.is_up

    @property
    def back_at(self) -> float:
        """When the database's last outage ended, on the clock of the loop."""
        return self._link.back_at

    @property
    def has_given_up(self) -> bool:
        """Whether the database has not answered for longer than callers wait for it."""
        since = self._flushing_since
        hanging = 0.0 if since is None else self._loop.time() - since
        return max(hanging, self._link.lost_seconds) > self._store_timeout

    async def start(self) -> None:
        """Connect and begin to write; StoreUnavailable when the database cannot be reached."""
        self._link = self._create_link()
        await self._link.connect()
        self._wake = asyncio.Event()
        self._closing = False
        self._loop = asyncio.get_running_loop()
        self._expiry = None
        self._task = asyncio.create_task(self._run(), name="lilota-writer")
        self._task.add_done_callback(self._on_end)

    async def close(self, timeout: float = 10.0) -> None:
        """Write what is queued, for at most `timeout` seconds, and disconnect.

        A database that has stayed away for long is not waited for.
        """
        task, self._task = self._task, None
        if task is None:
            return
        self._closing = True
        self._wake.set()
        with anyio.CancelScope(shield=True):
            try:
                # Not wait_for(), which cancels the flush when the caller is cancelled.
                patience = min(timeout, _LAST_PATIENCE) if self.has_given_up else timeout
                await asyncio.wait([task], timeout=patience)
            finally:
                await self._end(task)

    def insert(
        self, tasks: Sequence[NewTask], on_written: Callable[[], None] | None = None
    ) -> asyncio.Future[set[TaskId]]:
        """Commit the rows, all or none, queued at once; but for those whose key is taken.

        These are returned. `on_written` is called then, though the caller may be gone. Raises
        StoreUnavailable when nothing was written, and ScheduleUnknown when the database went away
        during the commit and did not come back in time.
        """
        return self._submit(self._operation(Kind.INSERT, tasks, on_written, timed=True))

    def admit(
        self, insert: BoundedInsert, on_written: Callable[[], None] | None = None
    ) -> asyncio.Future[Bound | set[TaskId[Any]]]:
        """Commit the rows, all or none, or return the bound that leaves no room for them.

        Otherwise returns what the store returns for them. Raises what `insert()` does.
        """
        return self._submit(self._operation(Kind.ADMIT, insert, on_written, timed=True))

    async def insert_dependents(
        self, rows: Sequence[Dependent], on_written: Callable[[], None], *, is_held: bool = False
    ) -> None:
        """As `insert()`, for rows that wait for others; TaskNotFound when one of those has no row.

        `is_held` as long as the database is away, as the end of a task is.
        """
        await self._submit(self._operation(Kind.DEPENDENTS, rows, on_written, timed=not is_held))

    def insert_late(self, row: LateRow) -> asyncio.Future[set[TaskId[Any]]]:
        """As `insert()`, for a row that may be found to run at once when it is sent."""
        return self._submit(self._operation(Kind.INSERT, (row.task,), timed=True, late_row=row))

    async def claim(self, choose: Callable[[], Claim | LimitedClaim | None]) -> Claimed:
        """Make due tasks running; StoreUnavailable at once while the database is away.

        `choose` is called when the claim is sent; with None there is nothing to claim for.
        """
        if not self._link.is_up:
            raise StoreUnavailable("The database is away; claim again when it is back")
        return cast("Claimed", await self._submit(self._operation(Kind.CLAIM, choose)))

    def end(self, end: Finish | Requeue, tell: Tell, about: Any = None) -> None:
        """Write the end of an attempt; `tell` is called with `about` and what came of that.

        That is a Written, False when the attempt is fenced off, and an error or None:
        NotRunning or a StoreError.
        """
        kind = Kind.FINISH if isinstance(end, Finish) else Kind.REQUEUE
        self._submit(self._operation(kind, end, told=Told(tell, about)))

    def report(self, report: Report) -> asyncio.Future[bool]:
        """Write progress and checkpoint, queued at once; False when it is fenced off."""
        return self._submit(self._operation(Kind.REPORT, report))

    async def execute(
        self,
        operation: Callable[[AsyncConnection], Awaitable[T]],
        *,
        in_transaction: bool = True,
        is_held: bool = False,
        on_written: Callable[[], None] | None = None,
    ) -> T:
        """Run another call of the store in the next flush, in its transaction.

        Not `in_transaction`: it is one statement, or only reads. It awaits nothing but the
        connection, maybe in another thread, and may run twice when the database goes away in
        between. What it raises rolls the transaction back, but for errors of lilota: those must
        come before any write. `is_held` as long as the database is away, as the end of a task is.
        `on_written` is called then, whether or not the caller still waits.
        """
        kind = Kind.EXECUTE if in_transaction else Kind.LOOK
        call = self._operation(kind, operation, on_written, timed=not is_held)
        return cast("T", await self._submit(call))

    def _operation(
        self,
        kind: Kind,
        value: Any,
        on_written: Callable[[], None] | None = None,
        *,
        timed: bool = False,
        late_row: LateRow | None = None,
        told: Told | None = None,
    ) -> Operation:
        new_rows, size = measure(kind, value)
        return Operation(
            kind=kind,
            value=value,
            future=told or self._loop.create_future(),
            new_rows=new_rows,
            size=size,
            deadline=self._loop.time() + self._store_timeout if timed else None,
            on_written=on_written,
            late_row=late_row,
        )

    def _submit(self, operation: Operation) -> asyncio.Future[Any]:
        future = operation.future
        if self._task is None or self._closing:
            operation.fail(NotRunning("Writing to the database"))
        elif self._task.done():
            operation.fail(operation.unwritten(self._database.name))
        else:
            self._queue.append(operation)
            self._wake.set()
        return cast("asyncio.Future[Any]", future)

    async def _run(self) -> None:
        while not (self._closing and not self._queue):
            # Without work too, a lost connection is made again: claims wait for that.
            if not self._queue and self._link.is_up:
                await self._wake.wait()
            self._wake.clear()
            self._in_flight = take(self._queue, self._turns.next(self._queue))
            if self._expiry is None:
                self._expiry = self._loop.call_later(_EXPIRY_PERIOD, self._expire)
            self._flushing_since = self._loop.time()
            try:
                await self._flush(self._in_flight)
            except Exception as error:
                # A mistake in here must not leave callers waiting for ever.
                _logger.exception("A flush failed in an unforeseen way")
                self._outcomes.tell_at_once()
                for operation in self._in_flight:
                    operation.fail(error)
            finally:
                self._flushing_since = None
            is_claim = any(operation.kind is Kind.CLAIM for operation in self._in_flight)
            self._in_flight = []
            await self._outcomes.tell()
            if is_claim and self._queue:
                await asyncio.sleep(0)  # what it brought tells where the next rows find a place

    async def _flush(self, batch: list[Operation], tries: int = 1) -> None:
        """Commit the batch; of one that cannot be committed, find the part that is to blame."""
        try:
            connection = await self._link.connect()
        except Exception as error:
            await self._lost(batch, error)
            return
        batch = prepared(batch)
        try:
            if not batch:
                if not self._link.is_up:
                    await self._link.probe()
                return
            outcomes = await self._commit(connection, batch)
        except Exception as error:
            if is_disconnect(error) or not batch:
                await self._lost(batch, error)
                return
            self._link.confirm()
            if is_conflict(error) and tries < _CONFLICT_TRIES:
                await asyncio.sleep(random.uniform(0, _CONFLICT_PAUSE))
                await self._flush(batch, tries + 1)
            elif len(batch) == 1:
                batch[0].fail(self._database.translate(error))
            else:
                middle = len(batch) // 2
                await self._flush(batch[:middle])
                self._outcomes.tell_at_once()  # the other part may take long
                await self._flush(batch[middle:])
        else:
            self._link.confirm()
            self._outcomes.add(batch, outcomes)

    async def _commit(self, connection: AsyncConnection, batch: list[Operation]) -> list[Any]:
        """One transaction, or one statement that is a transaction by itself."""
        self.flushes += 1
        for operation in batch:
            operation.sent = True
        committing = is_single = is_atomic(self._store, batch)

        async def transact() -> list[Any]:
            nonlocal committing
            await begin(connection)
            outcomes = await apply(self._store, connection, batch)
            committing = True
            await commit(connection)
            return outcomes

        try:
            work = apply(self._store, connection, batch) if is_single else transact()
            return await in_one_go(connection, work)
        except asyncio.CancelledError:
            for operation in batch:
                operation.in_doubt = True  # a thread or a server may go on with it
            raise
        except Exception as error:
            if connection.invalidated:
                for operation in batch:
                    operation.losses += 1  # it was there, and may be what breaks it
            elif not is_single:
                await rollback(connection)
            for operation in batch:
                operation.in_doubt |= committing and is_disconnect(error)
            raise
        finally:
            for operation in batch:
                operation.sent = False

    def _put_back(self, task: ClaimedTask) -> None:
        """Nobody is there to run it any more, so it goes back uncounted."""
        requeue = Requeue(attempt=task.attempt, counted=False)
        self._queue.append(self._operation(Kind.REQUEUE, requeue))

    async def _lost(self, batch: Sequence[Operation], error: Exception) -> None:
        """Keep the batch for later, in front of what came after it; claims fail now."""
        await self._link.lose(error)
        kept = []
        for operation in batch:
            if operation.kind is Kind.CLAIM:
                operation.fail(self._database.unavailable(error))
            elif operation.is_poisonous:
                operation.fail(operation.poisonous(self._database.describe(error)))
            else:
                kept.append(operation)
        place = len(self._queue) if len(kept) == 1 and kept[0].is_suspicious else 0
        self._queue[place:place] = kept
        self._expire_due()

    def _expire(self) -> None:
        """Answer callers in time even while a call to the database hangs."""
        self._expire_due()
        self._expiry = None
        if self._flushing_since is not None:
            self._expiry = self._loop.call_later(_EXPIRY_PERIOD, self._expire)

    def _expire_due(self) -> None:
        now = self._loop.time()
        for operation in (*self._in_flight, *self._queue):
            if operation.deadline is not None and operation.deadline <= now:
                operation.deadline = None
                operation.fail(operation.unwritten(self._database.name))
        self._queue[:] = [operation for operation in self._queue if not operation.is_abandoned]

    def _on_end(self, _task: asyncio.Task[None]) -> None:
        self._outcomes.tell_at_once()
        if not self._closing:  # cancelled with all other tasks, as by the end of asyncio.run()
            for operation in (*self._in_flight, *self._queue):
                operation.fail(operation.unwritten(self._database.name))

    async def _end(self, task: asyncio.Task[None]) -> None:
        left = list(dict.fromkeys([*self._in_flight, *self._queue]))
        errors = [operation.unwritten(self._database.name) for operation in left]
        if not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=1.0)
        self._in_flight, self._queue = [], []
        if self._expiry is not None:
            self._expiry.cancel()
        if ends := sum(operation.ends_attempt for operation in left):
            _logger.warning(
                "Closed without the database: the ends of %d attempts are not written, "
                "so that their tasks will be taken over and may run again",
                ends,
            )
        for operation, error in zip(left, errors, strict=True):
            operation.fail(error)
        await self._link.close()
