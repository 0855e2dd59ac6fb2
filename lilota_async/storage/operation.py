"""One call of the writer, from its queue to its outcome."""

from __future__ import annotations

import enum
import logging
from asyncio import Future
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from lilota_async.errors import ScheduleUnknown, StoreError, StoreUnavailable
from lilota_async.models.values import TaskId
from lilota_async.storage.transitions import Bound, Finish, NewTask, Requeue

_SUSPICIOUS_LOSSES = 2
_POISONOUS_LOSSES = 6
_logger = logging.getLogger("lilota_async")


class Kind(enum.IntEnum):
    """The kinds of operations, in the order in which a flush applies them.

    What takes the lock of the backlog comes first, so that nothing is held while it waits. A
    report comes before the end of its attempt, which fences it off, and a claim after
    everything that may free a slot or bring a task.
    """

    ADMIT = 0
    INSERT = 1
    DEPENDENTS = 2
    REPORT = 3
    FINISH = 4
    REQUEUE = 5
    EXECUTE = 6
    LOOK = 7
    CLAIM = 8


ALL_KINDS = frozenset(Kind)


class LateRow(Protocol):
    """A row of which it is decided when it is sent whether it runs at once.

    `choose()` is called then, and once; `on_written()` when it is committed, with the tasks that
    were refused, and `on_given_up()` when that cannot be told, or will not be.
    """

    task: NewTask

    @property
    def has_place(self) -> bool: ...

    def choose(self) -> None: ...

    def on_written(self, refused: set[TaskId[Any]]) -> None: ...

    def on_given_up(self) -> None: ...


Tell = Callable[[Any, Any, Exception | None], None]
"""Called with what it is about, with what came of that, and with an error or None."""


class Told(msgspec.Struct, gc=False):
    """Stands where a future would, for somebody who is told at once and cannot go away.

    The garbage collector need not know of it, nor of a partial in its place: there is one for
    each attempt that ends, and full collections come the sooner the more there are.
    """

    tell: Tell
    about: Any = None
    is_done: bool = False

    def done(self) -> bool:
        return self.is_done

    def set_result(self, outcome: Any) -> None:
        self._set(outcome, None)

    def set_exception(self, error: Exception) -> None:
        self._set(None, error)

    def _set(self, outcome: Any, error: Exception | None) -> None:
        self.is_done = True
        try:
            self.tell(self.about, outcome, error)
        except Exception:  # the others of the flush have outcomes as well
            _logger.exception("The outcome of a write was not heard")


def _tell_nobody(_about: Any, _outcome: Any, _error: Exception | None) -> None:
    pass


_HEARD = Told(_tell_nobody, is_done=True)


class Operation(msgspec.Struct, kw_only=True, eq=False, gc=False):
    """One call that waits for its commit, or for its `deadline` on the clock of the loop.

    What it writes is its `value`, or is only known when it is sent for the first time: of a
    `late_row`, and of a claim, whose value is called then. It is `sent` while a flush with it is
    under way, and `in_doubt` after the answer of its commit was lost. `losses` counts the
    connections that broke on it.

    `on_written` is called when it is written, or when that cannot be told, whether anybody waits
    for it any more or not.

    The garbage collector does not know of it either. So it lets go of whom it has told: an error
    has a traceback, in whose frames there are operations.
    """

    kind: Kind
    value: Any
    future: Future[Any] | Told
    new_rows: int = 0
    size: int = 0
    deadline: float | None = None
    losses: int = 0
    late_row: LateRow | None = None
    on_written: Callable[[], None] | None = None
    is_prepared: bool = False
    sent: bool = False
    in_doubt: bool = False

    @property
    def new_tasks(self) -> Sequence[NewTask]:
        """The rows that it would add."""
        return _rows_of(self.kind, self.value)

    @property
    def ends_attempt(self) -> bool:
        """Whether its loss would leave a row running that nobody runs."""
        return self.kind in (Kind.FINISH, Kind.REQUEUE)

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody wants it any more; the end of an attempt is always wanted.

        So is a row that may say already that it runs.
        """
        if not self.future.done() or self.ends_attempt:
            return False
        return self.late_row is None or not self.late_row.has_place

    @property
    def is_suspicious(self) -> bool:
        """Whether it goes alone, lest it breaks the connection for others again."""
        return self.losses >= _SUSPICIOUS_LOSSES

    @property
    def is_poisonous(self) -> bool:
        """Whether it has broken so many connections by itself that it would break them all."""
        return self.losses >= _POISONOUS_LOSSES

    def prepare(self) -> bool:
        """Settle what is sent, at the last moment; False when it is nothing."""
        if not self.is_prepared:
            self.is_prepared = True
            if self.late_row is not None:
                self.late_row.choose()
                self.value = (self.late_row.task,)
            elif self.kind is Kind.CLAIM:
                self.value = self.value()
        return self.value is not None

    def succeed(self, outcome: Any) -> None:
        """Tell what came of it."""
        if self.late_row is not None:
            self.late_row.on_written(outcome)
        if self.on_written is not None and not isinstance(outcome, Bound):
            self.on_written()
        future, self.future = self.future, _HEARD
        if not future.done():
            future.set_result(outcome)

    def unwritten(self, database: str) -> StoreError:
        """What to tell the caller when the database of this name did not take it in time."""
        if self.new_tasks and (self.sent or self.in_doubt):
            return ScheduleUnknown(tuple(task.id for task in self.new_tasks))
        return StoreUnavailable(
            f"The database {database} did not take the write in time; "
            "check that it is up and that its URL is right"
        )

    def poisonous(self, last_error: str) -> StoreError:
        """What to tell the caller when it has broken too many connections."""
        return StoreError(
            "The connection to the database breaks on each try of this write; it may "
            f"be larger than the server accepts ({last_error})"
        )

    def fail(self, error: Exception) -> None:
        """Give the caller the error, if it still waits."""
        if self.late_row is not None:
            self.late_row.on_given_up()
        if self.on_written is not None:
            self.on_written()
        future, self.future = self.future, _HEARD
        if not future.done():
            future.set_exception(error)


def _rows_of(kind: Kind, value: Any) -> Sequence[NewTask]:
    """The rows that an operation would add."""
    if kind is Kind.ADMIT:
        tasks: Sequence[NewTask] = value.tasks
        return tasks
    if kind is Kind.DEPENDENTS:
        return [row.task for row in value]
    return value if kind is Kind.INSERT else ()


def measure(kind: Kind, value: Any) -> tuple[int, int]:
    """How many new rows the operation sends, and about how many characters."""
    measured = _MEASURES.get(kind)
    return (0, 0) if measured is None else measured(value)


def _tasks(tasks: Sequence[NewTask]) -> tuple[int, int]:
    size = 0
    for task in tasks:  # mostly one
        size += len(task.input or "") + len(task.tags or "")
    return len(tasks), size


def _finish(finish: Finish) -> tuple[int, int]:
    size = len(finish.output or "") + len(finish.exception or "") + len(finish.cost.log or "")
    if finish.children:
        size += _tasks([child.task for child in finish.children])[1]
    return 0, size


def _requeue(end: Requeue) -> tuple[int, int]:
    return 0, len(end.exception or "") + len(end.failures or "") + len(end.cost.log or "")


_MEASURES: dict[Kind, Callable[[Any], tuple[int, int]]] = {
    Kind.ADMIT: lambda insert: _tasks(insert.tasks),
    Kind.INSERT: _tasks,
    Kind.DEPENDENTS: lambda rows: _tasks([row.task for row in rows]),
    Kind.REPORT: lambda report: (0, len(report.checkpoint or "")),
    Kind.FINISH: _finish,
    Kind.REQUEUE: _requeue,
}
