"""What a running task asks to have scheduled: kept until it completes, or written at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from lilota_async.codec import describe
from lilota_async.engine.dependencies import Dependencies
from lilota_async.errors import InvalidInput, LilotaError, TaskNotFound, UnknownTask
from lilota_async.execution.ends import Ended
from lilota_async.execution.invocation import qualified_name
from lilota_async.execution.protocol import ChildTask, Outcome
from lilota_async.registry import RegisteredTask, Registry
from lilota_async.storage.dependencies import ROWS_AT_ONCE
from lilota_async.storage.transitions import Dependent, NewTask

NewRow = Callable[..., NewTask]


class ChildTasks:
    """Makes rows of what tasks ask for, by the rules of `schedule()`."""

    def __init__(self, registry: Registry, dependencies: Dependencies, new_row: NewRow) -> None:
        self._registry = registry
        self._new_row = new_row
        self.dependencies = dependencies

    def read(self, message: ChildTask) -> Dependent:
        """The row; raises what `schedule()` would."""
        task = self._find(message)
        options: dict[str, Any] = {**message.options, "task_id": UUID(message.task_id)}
        if "run_at" in options:
            options["run_at"] = datetime.fromisoformat(options["run_at"])
        return Dependent(
            task=self._new_row(task, task.encode_input(self._input_of(message)), **options),
            after=tuple(UUID(each) for each in message.after),
            runs_if_failed=message.runs_if_failed,
        )

    def _find(self, message: ChildTask) -> RegisteredTask:
        if not message.is_reference:
            return self._registry.find(message.task)
        for task in self._registry.values():
            if task.resolve().definition.function == message.task:
                return task
        raise UnknownTask(message.task, list(self._registry))

    def _input_of(self, message: ChildTask) -> Any:
        try:
            return msgspec.json.decode(message.input)
        except msgspec.DecodeError as error:
            raise InvalidInput(message.task, "$", str(error)) from error


class Children:
    """The requests of one attempt."""

    def __init__(self, tasks: ChildTasks) -> None:
        self._tasks = tasks
        self._rows: list[Dependent] = []
        self._known: set[UUID] = set()
        self._queue: list[Dependent] = []
        self._writing: asyncio.Task[None] | None = None
        self._error: Exception | None = None

    def add(self, message: ChildTask) -> None:
        """The task asks; what cannot be done fails it in the end."""
        try:
            row = self._tasks.read(message)
        except (LilotaError, ValueError) as error:
            self._note(error)
            return
        self._known.add(row.task.id)
        if not message.at_once:
            self._rows.append(row)
            return
        self._queue.append(row)
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write())

    async def settle(self, ended: Ended) -> tuple[Ended, tuple[Dependent, ...]]:
        """How the attempt has ended, all things considered, and the rows to write with its end."""
        if self._writing is not None:
            await self._writing
        if not isinstance(ended, Outcome) or ended.failure is not None:
            return ended, ()
        strangers = {each for row in self._rows for each in row.after} - self._known
        try:
            if strangers and (missing := await self._tasks.dependencies.missing(strangers)):
                raise TaskNotFound(min(missing))
        except LilotaError as error:
            self._note(error)
        if self._error is None:
            return ended, tuple(self._rows)
        failure = describe(self._error, kind="error")
        lineage = tuple(map(qualified_name, type(self._error).__mro__))
        failed = msgspec.structs.replace(
            ended, failure=failure, lineage=lineage, output=msgspec.Raw()
        )
        return failed, ()

    async def _write(self) -> None:
        """What waits, in one transaction; what comes meanwhile is in the next."""
        while self._queue:
            rows, self._queue = self._queue[:ROWS_AT_ONCE], self._queue[ROWS_AT_ONCE:]
            try:
                await self._tasks.dependencies.insert(rows, is_held=True)
            except Exception as error:
                self._note(error)
        self._writing = None

    def _note(self, error: Exception) -> None:
        self._error = self._error or error
