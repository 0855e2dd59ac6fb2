"""The attempts that run on this node, from their claim to the row that says how they ended."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any

from lilota_async.engine.attempt import AttemptEnd, Hooks, RunningAttempt, Slot, Transition
from lilota_async.engine.bursts import Bursts
from lilota_async.engine.children import ChildTasks
from lilota_async.engine.events import Events, LocalEnd
from lilota_async.engine.lifecycle import Intent, unrunnable
from lilota_async.errors import NotRunning, StoreUnavailable
from lilota_async.execution.ends import Unstarted
from lilota_async.execution.memory_watch import MemoryWatch
from lilota_async.models.values import TaskEvent, TaskId, TaskStatus
from lilota_async.registry import Registry
from lilota_async.storage.transitions import ClaimedTask, Finish, Requeue, Written
from lilota_async.storage.writer import Writer

LOOK_SECONDS = 1.0  # while waiting for the end, whether the database is there
UNSTARTED_LIMIT = 3
logger = logging.getLogger("lilota_async")


class RunningAttempts:
    """Begins attempts, and writes what follows from their ends.

    `on_end` is called when one has ended, before that is written, `on_over` when it is, and
    `on_place_free` when that may let others start, here or elsewhere; `expect` with the seconds
    until a task that was put back is due.
    """

    def __init__(
        self,
        registry: Registry,
        writer: Writer,
        events: Events,
        children: ChildTasks,
        *,
        progress_is_manual: bool,
        grace_seconds: float,
        bursts: Bursts,
        on_end: Callable[[], None],
        on_over: Callable[[], None],
        on_place_free: Callable[[], Coroutine[Any, Any, None]],
        expect: Callable[[float], None],
    ) -> None:
        self._registry = registry
        self._writer = writer
        self._events = events
        self._dependencies = children.dependencies
        self._on_end = on_end
        self._on_over = on_over
        self._on_place_free = on_place_free
        self._expect = expect
        self._serials = itertools.count(1)
        self._attempts: dict[TaskId[Any], RunningAttempt] = {}
        self._unstarted: Counter[TaskId[Any]] = Counter()
        self._bursts = bursts
        self.slow_slots: Counter[Slot] = Counter()
        """Those that run something that nothing should wait behind."""
        self._hear = self._on_written  # one method for all, and not one for each
        self._tasks: set[asyncio.Task[Any]] = set()  # asyncio itself keeps none alive
        self._hooks = Hooks(
            is_watched=events.is_watched,
            needs_row=events.needs_row,
            publish=events.publish,
            report=writer.report,
            conclude=self._conclude,
            spawn=self._spawn,
            observe=bursts.observe,
            memory_watch=MemoryWatch(),
            children=children,
            progress_is_manual=progress_is_manual,
            grace_seconds=grace_seconds,
        )

    def __len__(self) -> int:
        return len(self._attempts)

    def __iter__(self) -> Iterator[RunningAttempt]:
        return iter(list(self._attempts.values()))

    def ids(self) -> list[TaskId[Any]]:
        return list(self._attempts)

    def find(self, task_id: TaskId[Any]) -> RunningAttempt | None:
        """The attempt of this task that runs here."""
        return self._attempts.get(task_id)

    def begin(self, claimed: ClaimedTask, slot: Slot) -> None:
        task = self._registry[claimed.name]
        attempt = RunningAttempt(claimed, task, slot, next(self._serials), self._hooks)
        self._attempts[claimed.attempt.id] = attempt
        if not self._bursts.is_short(claimed.name):
            attempt.is_slow = True
            self.slow_slots[slot] += 1
        attempt.publish("status")
        attempt.begin()

    def put_back(self, claimed: ClaimedTask) -> None:
        """Nothing runs it here after all; the attempt is not counted."""
        back = Requeue(attempt=claimed.attempt, counted=False)
        self._writer.end(back, lambda *_: self._expect(0))

    def stop(self, intent: Intent) -> None:
        """Interrupt all of them."""
        for attempt in self:
            attempt.stop(intent)

    async def wait(self, timeout: float | None) -> None:
        """Until they are over; not for writes that a database which stays away cannot take."""
        loop = asyncio.get_running_loop()
        end = float("inf") if timeout is None else loop.time() + timeout
        while not self._waits_in_vain() and loop.time() < end:
            pending = [*self._tasks, *(attempt.concluded for attempt in self)]
            if not pending:
                return
            await asyncio.wait(pending, timeout=min(LOOK_SECONDS, end - loop.time()))

    def _waits_in_vain(self) -> bool:
        return all(attempt.has_ended for attempt in self) and self._writer.has_given_up

    def _conclude(self, attempt: RunningAttempt, end: AttemptEnd) -> None:
        """The attempt has ended: write what follows. None: it is not ours to write."""
        if attempt.is_slow:
            self.slow_slots[attempt.slot] -= 1
            if not self.slow_slots[attempt.slot]:
                del self.slow_slots[attempt.slot]
        self._on_end()  # the next claim shares the flush of this transition
        if end is None:
            self._forget(attempt, None)
        elif isinstance(end, BaseException):
            self._give_up(attempt, end)
        else:
            transition = self._put_back(attempt.claimed, end) if isinstance(end, Unstarted) else end
            attempt.transition = transition
            self._writer.end(transition, self._hear, attempt)

    def _on_written(
        self,
        attempt: RunningAttempt,
        written: Written,
        error: Exception | None,
    ) -> None:
        transition = attempt.transition
        assert transition is not None
        if isinstance(transition, Requeue):
            self._expect(transition.delay_seconds)
        if error is not None and not isinstance(error, StoreUnavailable | NotRunning):
            self._give_up(attempt, error)  # a result that the database refuses
        elif not written:
            # Fenced off; or this node ended without the database, and says so.
            self._forget(attempt, None)
        else:
            status = _status_after(transition)
            task_id = attempt.claimed.attempt.id
            if self._events.is_watched(task_id):
                self.tell(task_id, status, _local_end(attempt.claimed.name, transition, written))
            if isinstance(transition, Finish) and (
                transition.children or self._dependencies.in_use
            ):
                self._release(attempt, transition)
            else:
                self._forget(attempt, status)

    def _release(self, attempt: RunningAttempt, finish: Finish) -> None:
        """Others may have waited for it: it is over when they are due."""
        if finish.children:
            self._dependencies.on_inserted(finish.children)
        over = partial(self._forget, attempt, finish.status)
        self._dependencies.on_end(finish.attempt.id, over)

    def _give_up(self, attempt: RunningAttempt, error: BaseException) -> None:
        """The row was edited by hand, or its end cannot be written: fail it, and say why."""
        task_id = attempt.claimed.attempt.id
        logger.error("Task %s could not be seen to its end", task_id, exc_info=error)

        def on_written(_about: None, written: Written, _error: Exception | None) -> None:
            if written:
                self.tell(task_id, TaskStatus.FAILED)
            self._forget(attempt, TaskStatus.FAILED if written else None)

        self._writer.end(unrunnable(attempt.claimed, error), on_written)

    def _forget(self, attempt: RunningAttempt, status: TaskStatus | None) -> None:
        task_id = attempt.claimed.attempt.id
        if self._unstarted and status is not None and status.is_final:
            self._unstarted.pop(task_id, None)
        if self._attempts.get(task_id) is attempt:  # it may have begun again here meanwhile
            del self._attempts[task_id]
        self._events.let_go(task_id)
        attempt.be_over()
        if attempt.claimed.is_limited:
            self._spawn(self._on_place_free())
        self._on_over()

    def _put_back(self, claimed: ClaimedTask, end: Unstarted) -> Requeue:
        """The process died before it came to the task, or is held up."""
        if end.returned:
            return Requeue(attempt=claimed.attempt, counted=False)
        task_id = claimed.attempt.id
        self._unstarted[task_id] += 1
        # A task that ends every process before it begins must not do so for ever.
        counted = self._unstarted[task_id] >= UNSTARTED_LIMIT
        if counted:
            del self._unstarted[task_id]
        return Requeue(attempt=claimed.attempt, counted=counted)

    def tell(self, task_id: TaskId[Any], status: TaskStatus, end: LocalEnd | None = None) -> None:
        """Tell those who wait for the task that it has this status now."""
        progress = 0 if end is None else end.finish.progress or 0
        event = TaskEvent(
            kind="status", task_id=task_id, status=status, progress_percentage=progress
        )
        self._events.publish(event, end)

    def _spawn(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _status_after(transition: Finish | Requeue) -> TaskStatus:
    return transition.status if isinstance(transition, Finish) else TaskStatus.PENDING


def _local_end(name: str, transition: Transition, written: Written) -> LocalEnd | None:
    if isinstance(transition, Requeue):
        return None
    return LocalEnd(name, transition, written if callable(written) else None)
