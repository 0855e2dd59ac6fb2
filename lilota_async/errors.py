"""Every exception of lilota-async: each message names the cause and the remedy.

The tree::

    LilotaError
    ├── ConfigurationError      a setting, a registration or a database URL that cannot work
    ├── AlreadyRegistered       register() of a name that is taken
    ├── AlreadyRunning          start() of what is running
    ├── NotRunning              schedule() or stop() of what is not running
    ├── UnknownTask             schedule() of a name that nobody registered
    ├── InvalidInput            schedule() with a value that does not fit
    ├── AlreadyScheduled        schedule() with a unique key that another task has
    ├── UniqueKeyTaken          retry() of a task whose unique key another task has
    ├── PartlyScheduled         schedule_many() that ended after some of its rows
    ├── QueueFull               schedule() while as many wait as max_pending allows
    ├── TaskNotFound            no row has this id
    ├── TaskIsRunning           delete_task_by_id() of a running task
    ├── TaskFailed              result() of a task that failed
    ├── TaskCancelled           result() of a task that was cancelled
    ├── RetryLater, Abort       raised by a task's own code: again later, never again
    ├── WorkerStartFailed       start() when a task process cannot come up
    └── StoreError              the database
        ├── StoreUnavailable    it cannot be reached
        ├── ScheduleUnknown     it went away in the middle of the commit
        ├── SchemaMissing       it has no tables of lilota, or older ones
        └── SchemaTooNew        it was migrated by a newer lilota-async

    Interruption                raised inside a task's code; no Exception, so that
    ├── TaskTimeout             `except Exception` does not swallow it
    └── TaskStopped             cancel() or stop()
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from lilota_async.models import Task
    from lilota_async.models.values import TaskId

LONGEST_SECONDS = 100 * 365 * 86_400.0  # what every database can add to a time


class LilotaError(Exception):
    """The base of every error that lilota-async raises."""


class ConfigurationError(LilotaError, ValueError):
    """A setting, a registration or a database URL cannot work; raised before anything is done."""


class AlreadyRegistered(LilotaError, RuntimeError):
    """The task name is taken."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"Task {name!r} is already registered; give the second function a name of its own"
        )


class AlreadyRunning(LilotaError, RuntimeError):
    """start() was called on a Lilota that is running."""

    def __init__(self) -> None:
        super().__init__("lilota is already started; call stop() before starting it again")


class NotRunning(LilotaError, RuntimeError):
    """The call needs a started Lilota; nothing was written."""

    def __init__(self, action: str) -> None:
        super().__init__(
            f"{action} needs a running lilota; call 'await lilota.start()' first, "
            "or use 'async with lilota:'"
        )


class UnknownTask(LilotaError, LookupError):
    """No task of this name or function is registered; nothing was written."""

    def __init__(self, task: str, registered: list[str]) -> None:
        known = ", ".join(sorted(registered)) or "none"
        super().__init__(
            f"No task {task!r} is registered (registered: {known}); "
            "register the function in a module that this process imports"
        )


class InvalidInput(LilotaError, ValueError):
    """The input does not fit the task; nothing was written.

    `task` is the task's name, `field` the place in the input (`$.a[0]`, or `$` for the
    whole), `reason` what is wrong with it, `index` which of the inputs of schedule_many() it is.
    `reasons` has all places with their reasons, of which a pydantic model tells at once.
    """

    def __init__(
        self,
        task: str,
        field: str,
        reason: str,
        *,
        others: tuple[tuple[str, str], ...] = (),
        index: int | None = None,
    ) -> None:
        self.task = task
        self.field = field
        self.reason = reason
        self.reasons = ((field, reason), *others)
        self.index = index
        which = "input" if index is None else f"input [{index}]"
        super().__init__(f"The {which} of task {task!r} does not fit at {field}: {reason}")


class InvalidOutput(LilotaError, ValueError):
    """The output of a task that has completed does not fit the output model of this application.

    As after a change of the model. `task` is the task's name, `field` the place in the output
    (`$.a[0]`, or `$` for the whole), `reason` what is wrong with it.
    """

    def __init__(self, task: str, field: str, reason: str) -> None:
        self.task = task
        self.field = field
        self.reason = reason
        super().__init__(
            f"The output of task {task!r} does not fit its output model at {field}: {reason}; "
            "get_task_by_id() has it as it is"
        )


class PartlyScheduled(LilotaError):
    """schedule_many() came to an end in the middle: the first rows are committed.

    `task_ids` are theirs, in the order of the inputs; what follows them was not written.
    `reason` is the error that ended it; a ScheduleUnknown has the ids of which it is not known.
    """

    def __init__(self, task_ids: list[TaskId[Any]], reason: Exception) -> None:
        self.task_ids = task_ids
        self.reason = reason
        super().__init__(
            f"The first {len(task_ids)} tasks are committed, and those that follow are not "
            f"({type(reason).__name__}: {reason}); schedule the rest of the inputs, or take back "
            "those of task_ids"
        )


class QueueFull(LilotaError, RuntimeError):
    """As many tasks wait as `max_pending` allows; nothing was written.

    `name` is the task whose bound it is, or None for the bound of all tasks; `max_pending` the
    bound; `retry_after` an estimate, in seconds, of when there is room: until a tenth of what
    waits has been worked off, by the throughput of the last minutes.
    """

    def __init__(self, name: str | None, max_pending: int, retry_after: float) -> None:
        self.name = name
        self.max_pending = max_pending
        self.retry_after = retry_after
        tasks = "tasks" if name is None else f"tasks of {name!r}"
        super().__init__(
            f"There is no room among the {max_pending} {tasks} that may wait; schedule again in "
            f"about {retry_after:.0f} s, run more nodes, or raise max_pending"
        )


class AlreadyScheduled(LilotaError, RuntimeError):
    """Another task of this name has the unique key; nothing was written.

    `task_id` is that task's id, `unique_key` the key.
    """

    def __init__(self, name: str, unique_key: str, task_id: UUID, status: str) -> None:
        self.unique_key = unique_key
        self.task_id = task_id
        super().__init__(
            f"Task {name!r} is scheduled with the unique key {unique_key!r} already, and "
            f"{status}: {task_id}; wait for that one, or use another key"
        )


class UniqueKeyTaken(LilotaError, RuntimeError):
    """The unique key of the task that was to run again is another task's; nothing was written.

    `task_id` is that task's id, `unique_key` the key.
    """

    def __init__(self, retried: UUID, unique_key: str, task_id: UUID) -> None:
        self.unique_key = unique_key
        self.task_id = task_id
        super().__init__(
            f"Task {retried} cannot be run again, since its unique key {unique_key!r} is that "
            f"of task {task_id} now; retry it when that one is final"
        )


class TaskNotFound(LilotaError, LookupError):
    """No row has this id: it was never scheduled on this database, or it was deleted."""

    def __init__(self, task_id: UUID) -> None:
        self.task_id = task_id
        super().__init__(
            f"No task has the id {task_id}; it was never scheduled on this database or was deleted"
        )


class TaskIsRunning(LilotaError, RuntimeError):
    """A running task cannot be deleted."""

    def __init__(self, task_id: UUID) -> None:
        self.task_id = task_id
        super().__init__(
            f"Task {task_id} is running and cannot be deleted; cancel it or wait for it first"
        )


class TaskFailed(LilotaError):
    """The task whose result was asked for failed; `task` is its row."""

    def __init__(self, task: Task) -> None:
        self.task = task
        failure = task.exception or {}
        super().__init__(
            f"Task {task.name!r} ({task.id}) failed with {failure.get('kind', 'error')}: "
            f"{failure.get('type', '')}: {failure.get('message', '')}; see task.exception"
        )


class TaskCancelled(LilotaError):
    """The task whose result was asked for was cancelled; `task` is its row."""

    def __init__(self, task: Task) -> None:
        self.task = task
        super().__init__(f"Task {task.name!r} ({task.id}) was cancelled and has no result")


class RetryLater(LilotaError):
    """Raised by a task to be run again after `delay` seconds; costs it no attempt.

    Example:
        >>> def fetch(url: str) -> str:
        ...     if not is_ready(url):
        ...         raise RetryLater(delay=30.0)
    """

    def __init__(self, delay: float | timedelta = 0.0) -> None:
        try:
            self.delay = delay.total_seconds() if isinstance(delay, timedelta) else float(delay)
        except (TypeError, ValueError, OverflowError):
            self.delay = float("nan")
        if not abs(self.delay) <= LONGEST_SECONDS:
            raise ConfigurationError(
                "RetryLater(delay=...) takes seconds or a timedelta, 100 years at most, "
                f"not {delay!r:.250}"
            )
        super().__init__(f"the task asked to be run again in {self.delay:g} s")


class Abort(LilotaError):
    """Raised by a task to fail for good, whatever its retry policy says."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)


class TaskCrashed(LilotaError):
    """Stands for a process that died, in `Retry(on=(TaskCrashed,))`; it is never raised."""


class WorkerStartFailed(LilotaError, RuntimeError):
    """A task process ended before it was ready."""


class StoreError(LilotaError):
    """The database refused or could not be used."""


class StoreUnavailable(StoreError):
    """The database cannot be reached; nothing was written."""


class ScheduleUnknown(StoreError):
    """The database went away during the commit: the row may exist or not.

    `task_ids` are the ids in question. Look them up with get_task_by_id() when the
    database is back, or schedule again with the same id, which cannot make a second row.
    """

    def __init__(self, task_ids: tuple[UUID, ...]) -> None:
        self.task_ids = task_ids
        first = task_ids[0]
        more = f" and {len(task_ids) - 1} more" if len(task_ids) > 1 else ""
        super().__init__(
            f"The database went away while task {first}{more} was being committed, so that its "
            "row may exist or not; look the id up with get_task_by_id() once it is back"
        )

    @property
    def task_id(self) -> UUID:
        """The first of `task_ids`, and the only one after schedule()."""
        return self.task_ids[0]


class SchemaMissing(StoreError):
    """The database has no tables of lilota-async, or those of an older version."""


class SchemaTooNew(StoreError):
    """The tables were migrated by a newer lilota-async than this one."""


class Interruption(BaseException):
    """Raised inside a task's code to stop it; `finally` blocks have the grace period."""


class TaskTimeout(Interruption):
    """The task's timeout has passed: clean up, the process is killed after the grace period."""


class TaskStopped(Interruption):
    """The task was cancelled or the application is stopping: clean up, the kill follows."""
