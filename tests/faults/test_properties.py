"""Whatever is put into it, each database gives back the same, and does what the model does."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from lilota_async.codec import Codec, Misfit
from lilota_async.errors import ConfigurationError, TaskIsRunning
from lilota_async.models.values import TaskId, TaskStatus
from lilota_async.registry import check_name, encode_tags
from lilota_async.storage.database import Database, transaction
from lilota_async.storage.migrate import migrate
from lilota_async.storage.queries import get_task
from lilota_async.storage.store import Store
from lilota_async.storage.stores import create_store
from lilota_async.storage.transitions import (
    Attempt,
    Claim,
    Finish,
    NewTask,
    Report,
    Requeue,
)
from tests.storage.support import node_record

# The long run: LILOTA_TEST_TIMES=25 python -m pytest tests/faults/test_properties.py
TIMES = int(os.environ.get("LILOTA_TEST_TIMES", "1"))
pytestmark = pytest.mark.timeout(120 * TIMES)
FEW = settings(
    max_examples=50 * TIMES,
    deadline=None,
    derandomize=TIMES == 1,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
NODES = [TaskId[Any](f"01939e4a-0000-7000-8000-00000000000{digit}") for digit in "ab"]
MAX_ATTEMPTS = 3

texts = st.text(st.characters(), max_size=20) | st.sampled_from(
    ["\0", "\ud800", "\U0001f600", "'; DROP TABLE lilota_task; --", ":id", "%s", "\\", "a" * 9000]
)
payloads = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(min_value=-(2**65), max_value=2**65)
    | st.floats()
    | st.sampled_from([1.0, -0.0, 1e308, 2**53 + 1, 2**63])
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)


class Subject:
    """A migrated database, and a loop to use it from tests that are not asynchronous."""

    def __init__(self, url: str, runner: asyncio.Runner) -> None:
        self.database = Database(url)
        self.store: Store = create_store(self.database)
        self._runner = runner
        self.run(self._prepare())

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """The result of the coroutine."""
        return self._runner.run(coroutine)

    def write(self, operation: Callable[[AsyncConnection], Coroutine[Any, Any, Any]]) -> Any:
        """The result of one transaction."""

        async def transact() -> Any:
            async with self.transacting() as connection:
                return await operation(connection)

        return self.run(transact())

    def empty(self) -> None:
        """No task and no node is left."""
        for table in ("lilota_task", "lilota_node"):
            statement = text(f"DELETE FROM {table}")
            self.write(partial(AsyncConnection.execute, statement=statement))

    def close(self) -> None:
        """Close the pool."""
        self.run(self.database.close())

    @asynccontextmanager
    async def transacting(self) -> AsyncIterator[AsyncConnection]:
        """A connection in a transaction."""
        async with self.database.connect() as connection, transaction(connection):
            yield connection

    async def _prepare(self) -> None:
        await self.database.open()
        await migrate(self.database)


@pytest.fixture
def subject(database_url: str) -> Iterator[Subject]:
    """The store on an empty database of each kind."""
    with asyncio.Runner() as runner:
        subject = Subject(database_url, runner)
        yield subject
        subject.close()


def _encoded(value: Any) -> str | None:
    """As JSON; None when no database is given such a value."""
    try:
        return Codec().encode(value).decode()
    except Misfit:
        return None


def test_payloads_come_back(subject: Subject) -> None:
    """What the codec lets through is read back to the last character, in every column."""

    @FEW
    @given(st.lists(payloads, min_size=20, max_size=40))
    def check(values: list[Any]) -> None:
        jsons = [json for value in values if (json := _encoded(value)) is not None]
        subject.run(_round_trip(subject, jsons))

    check()
    subject.empty()


async def _round_trip(subject: Subject, jsons: list[str]) -> None:
    store = subject.store
    new = [NewTask(id=TaskId(), name="n", input=json) for json in jsons]
    wanted = {task.id: task.input for task in new}
    claim = Claim(node_id=NODES[0], names=("n",), pids=tuple(range(1, len(new) + 1)))
    async with subject.transacting() as c:
        if new:
            await store.insert(c, new)
        claimed = await store.claim(c, claim)
        assert {task.attempt.id: task.input for task in claimed} == wanted
        reports = [Report(attempt=task.attempt, checkpoint=task.input) for task in claimed]
        finishes = [
            Finish(
                attempt=task.attempt,
                status=TaskStatus.COMPLETED,
                output=task.input,
                exception=task.input,
            )
            for task in claimed
        ]
        if claimed:
            assert all(await store.report(c, reports))
            assert all(await store.finish(c, finishes))
        columns = "input, output, checkpoint, exception"
        for task_id in wanted:
            row = await c.execute(
                text(f"SELECT {columns} FROM lilota_task WHERE id = :id"),
                {"id": store.dialect.key(task_id)},
            )
            assert set(row.one()) == {wanted[task_id]}


def test_names_and_tags(subject: Subject) -> None:
    """A name or tag is refused before any database sees it, or is told from all others by all."""

    @settings(FEW, max_examples=30 * TIMES)
    @given(st.lists(texts, min_size=25, max_size=40, unique=True))
    def check(drawn: list[str]) -> None:
        subject.empty()
        subject.run(_claim_each(subject, [name for name in drawn if _is_good(name)]))

    check()


def _is_good(name: str) -> bool:
    try:
        check_name(name)
    except ConfigurationError:
        with pytest.raises(ConfigurationError):
            encode_tags([name])
        return False
    return True


async def _claim_each(subject: Subject, names: list[str]) -> None:
    store = subject.store
    new = [NewTask(id=TaskId(), name=name, tags=encode_tags([name])) for name in names]
    async with subject.transacting() as c:
        if new:
            await store.insert(c, new)
        for task in new:
            claim = Claim(node_id=NODES[0], names=(task.name,), pids=(1, 2))
            assert [each.attempt.id for each in await store.claim(c, claim)] == [task.id]
    for task in new:
        read = await get_task(subject.database, task.id)
        assert read is not None
        assert (read.name, read.tags) == (task.name, [task.name])


@dataclass(slots=True, kw_only=True)
class Modelled:
    """A row as the model has it."""

    priority: int
    status: str = "pending"
    attempts: int = 0
    interruptions: int = 0
    max_attempts: int = MAX_ATTEMPTS
    owner: TaskId[Any] | None = None
    cancelling: bool = False


class StoreMachine(RuleBasedStateMachine):
    """The transitions of a store, and what a dictionary makes of them."""

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self.subject = subject
        self.rows: dict[TaskId[Any], Modelled] = {}
        self.attempts: list[Attempt] = []  # every attempt there has been: most are fenced off
        subject.empty()
        for node in NODES:
            self._register(node)

    def _register(self, node: TaskId[Any]) -> None:
        record = node_record(node)
        self.subject.write(lambda c: self.subject.store.register_node(c, record))

    def _owned(self, attempt: Attempt) -> Modelled | None:
        row = self.rows.get(attempt.id)
        if row is None or row.status != "running":
            return None
        is_so = row.attempts == attempt.number and row.owner == attempt.node_id
        return row if is_so else None

    @rule(priorities=st.lists(st.integers(-5, 5), min_size=1, max_size=4))
    def insert(self, priorities: list[int]) -> None:
        tasks = [
            NewTask(id=TaskId(), name="n", priority=priority, max_attempts=MAX_ATTEMPTS)
            for priority in priorities
        ]
        self.subject.write(lambda c: self.subject.store.insert(c, tasks))
        self.rows |= {task.id: Modelled(priority=task.priority) for task in tasks}

    @rule(node=st.sampled_from(NODES))
    def insert_running(self, node: TaskId[Any]) -> None:
        task = NewTask(id=TaskId(), name="n", max_attempts=MAX_ATTEMPTS, node_id=node, pid=7)
        self.subject.write(lambda c: self.subject.store.insert(c, [task]))
        self.rows[task.id] = Modelled(priority=0, status="running", attempts=1, owner=node)
        self.attempts.append(Attempt(id=task.id, number=1, node_id=node))

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def insert_again(self, data: st.DataObject) -> None:
        task_id = data.draw(st.sampled_from(list(self.rows)))
        again = NewTask(id=task_id, name="n", priority=9, max_attempts=9)
        self.subject.write(lambda c: self.subject.store.insert(c, [again]))

    @rule(node=st.sampled_from(NODES), count=st.integers(1, 4))
    def claim(self, node: TaskId[Any], count: int) -> None:
        request = Claim(node_id=node, names=("n",), pids=tuple(range(1, count + 1)))
        claimed = self.subject.write(lambda c: self.subject.store.claim(c, request))
        due = sorted(row.priority for row in self.rows.values() if row.status == "pending")
        taken = [self.rows[task.attempt.id].priority for task in claimed]
        assert taken == due[::-1][:count]
        for task in claimed:
            row = self.rows[task.attempt.id]
            assert row.status == "pending"
            assert task.attempt.number == row.attempts + 1
            row.status, row.attempts, row.owner = "running", row.attempts + 1, node
            row.cancelling = False
            self.attempts.append(task.attempt)

    @precondition(lambda self: self.attempts)
    @rule(data=st.data(), status=st.sampled_from(["completed", "failed", "cancelled"]))
    def finish(self, data: st.DataObject, status: str) -> None:
        attempt = data.draw(st.sampled_from(self.attempts))
        finish = Finish(attempt=attempt, status=TaskStatus(status), output="1")
        (applied,) = self.subject.write(lambda c: self.subject.store.finish(c, [finish]))
        row, before = self._owned(attempt), self.rows.get(attempt.id)
        if row is not None:
            row.status = status
        else:  # the same end once more is no news
            once_more = before is not None and before.status == status
            assert not applied or once_more
        assert applied or row is None

    @precondition(lambda self: self.attempts)
    @rule(data=st.data(), counted=st.booleans(), extra=st.integers(0, 1))
    def requeue(self, data: st.DataObject, counted: bool, extra: int) -> None:
        attempt = data.draw(st.sampled_from(self.attempts))
        requeue = Requeue(attempt=attempt, counted=counted, extra_attempts=extra)
        (applied,) = self.subject.write(lambda c: self.subject.store.requeue(c, [requeue]))
        row = self._owned(attempt)
        assert applied == (row is not None)
        if row is not None:
            row.status = "cancelled" if row.cancelling else "pending"
            row.owner = None
            row.attempts -= not counted
            row.max_attempts += extra

    @precondition(lambda self: self.attempts)
    @rule(data=st.data(), progress=st.integers(0, 100))
    def report(self, data: st.DataObject, progress: int) -> None:
        attempt = data.draw(st.sampled_from(self.attempts))
        report = Report(attempt=attempt, progress=progress)
        (applied,) = self.subject.write(lambda c: self.subject.store.report(c, [report]))
        assert applied == (self._owned(attempt) is not None)

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        task_id = data.draw(st.sampled_from(list(self.rows)))
        before = self.subject.write(lambda c: self.subject.store.request_cancel(c, task_id))
        row = self.rows[task_id]
        assert before == row.status
        row.cancelling = row.cancelling or row.status in ("pending", "running")
        if row.status == "pending":
            row.status = "cancelled"

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        task_id = data.draw(st.sampled_from(list(self.rows)))
        done = self.subject.write(lambda c: self.subject.store.retry(c, task_id, 2))
        row = self.rows[task_id]
        assert done == (row.status not in ("pending", "running"))
        if done:
            row.status, row.owner, row.cancelling = "pending", None, False
            row.max_attempts = row.attempts + 2

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        task_id = data.draw(st.sampled_from(list(self.rows)))
        if self.rows[task_id].status == "running":
            with pytest.raises(TaskIsRunning):
                self.subject.write(lambda c: self.subject.store.delete(c, task_id))
        else:
            assert self.subject.write(lambda c: self.subject.store.delete(c, task_id))
            del self.rows[task_id]

    @rule(dead=st.sampled_from(NODES))
    def lose_a_node(self, dead: TaskId[Any]) -> None:
        heir = NODES[1 - NODES.index(dead)]
        store = self.subject.store
        self.subject.write(lambda c: store.remove_node(c, dead))
        assert self.subject.write(lambda c: store.heartbeat(c, dead)) is False
        lost = self.subject.write(lambda c: store.adopt(c, heir, ("n",), 100))
        wanted = {i for i, row in self.rows.items() if (row.status, row.owner) == ("running", dead)}
        assert {task.attempt.id for task in lost} == wanted
        for task in lost:
            row = self.rows[task.attempt.id]
            row.owner, row.interruptions = heir, row.interruptions + 1
            assert task.interruptions == row.interruptions
            assert task.is_cancel_requested == row.cancelling
            self.attempts.append(task.attempt)
        self._register(dead)

    @invariant()
    def rows_are_as_modelled(self) -> None:
        columns = "id, status, attempts, max_attempts, interruptions, locked_by, priority"

        async def read(c: AsyncConnection) -> Any:
            return (await c.execute(text(f"SELECT {columns} FROM lilota_task"))).all()

        found = {_hex(row.id): tuple(row)[1:] for row in self.subject.write(read)}
        assert {i: (*row[:4], row[5]) for i, row in found.items()} == {
            i.hex: (row.status, row.attempts, row.max_attempts, row.interruptions, row.priority)
            for i, row in self.rows.items()
        }
        running = {i: _hex(row[4]) for i, row in found.items() if row[0] == "running"}
        assert running == {
            i.hex: row.owner.hex
            for i, row in self.rows.items()
            if row.status == "running" and row.owner
        }


def _hex(key: Any) -> str:
    return str(key).replace("-", "")


def test_the_store_does_as_the_model(subject: Subject) -> None:
    """Any sequence of transitions, stale ones too, leaves every database as the model."""
    options = settings(FEW, max_examples=12 * TIMES, stateful_step_count=25)
    run_machine(partial(StoreMachine, subject), settings=options)  # type: ignore[arg-type]
