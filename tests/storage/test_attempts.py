"""running -> anything: fenced by id, attempt and owner."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from lilota_async.models import TaskStatus
from lilota_async.storage.database import Database
from lilota_async.storage.store import Store
from lilota_async.storage.transitions import Attempt, Cost, Finish, Report, Requeue, Written
from tests.storage.support import (
    OTHER_NODE,
    claim,
    claim_new,
    insert,
    new_task,
    raw,
    row_of,
    transacting,
)

pytestmark = pytest.mark.anyio


def fenced_off(attempt: Attempt) -> list[Attempt]:
    """The attempt as somebody else's."""
    return [replace(attempt, number=attempt.number + 1), replace(attempt, node_id=OTHER_NODE)]


async def finish(database: Database, store: Store, *finishes: Finish) -> list[Written]:
    """Finish in a transaction."""
    async with transacting(database) as connection:
        return list(await store.finish(connection, finishes))


async def requeue(database: Database, store: Store, *requeues: Requeue) -> list[bool]:
    """Requeue in a transaction."""
    async with transacting(database) as connection:
        return await store.requeue(connection, requeues)


async def report(database: Database, store: Store, *reports: Report) -> list[bool]:
    """Report in a transaction."""
    async with transacting(database) as connection:
        return await store.report(connection, reports)


async def test_finish_writes_the_outcome(database: Database, store: Store) -> None:
    """Output, progress and cost are on the row, and still whose attempt it was."""
    attempt = (await claim_new(database, store)).attempt
    cost = Cost(cpu_seconds=1.5, peak_memory_bytes=5_000_000_000, log="line\n")
    done = Finish(
        attempt=attempt, status=TaskStatus.COMPLETED, progress=100, output='{"sum":5}', cost=cost
    )

    assert await finish(database, store, done) == [True]

    row = await row_of(database, attempt.id)
    assert (row.status, row.progress_percentage, row.output) == ("completed", 100, {"sum": 5})
    assert (row.cpu_seconds, row.peak_memory_bytes, row.log) == (1.5, 5_000_000_000, "line\n")
    assert (row.locked_by, row.pid, row.exception) == (attempt.node_id, 1, None)
    assert row.start_date_time is not None
    assert row.end_date_time is not None
    assert row.end_date_time >= row.start_date_time


async def test_finish_keeps_the_progress_of_the_row(database: Database, store: Store) -> None:
    """Without a progress of its own, a failure leaves what was reported."""
    attempt = (await claim_new(database, store)).attempt
    await report(database, store, Report(attempt=attempt, progress=40))
    failed = Finish(attempt=attempt, status=TaskStatus.FAILED, exception='{"kind":"error"}')
    assert await finish(database, store, failed) == [True]
    row = await row_of(database, attempt.id)
    assert (row.progress_percentage, row.exception) == (40, {"kind": "error"})


async def test_finish_is_fenced(database: Database, store: Store) -> None:
    """Another attempt or another node touches nothing."""
    attempt = (await claim_new(database, store)).attempt
    others = [
        Finish(attempt=other, status=TaskStatus.COMPLETED, output="1")
        for other in fenced_off(attempt)
    ]
    assert await finish(database, store, *others) == [False, False]
    assert (await row_of(database, attempt.id)).status == TaskStatus.RUNNING


async def test_a_batch_tells_the_applied_from_the_fenced(database: Database, store: Store) -> None:
    """Each member of a batch has an answer of its own, in order."""
    await insert(database, store, [new_task() for _ in range(3)])
    first, second, third = (task.attempt for task in await claim(database, store))
    batch = [
        Finish(attempt=first, status=TaskStatus.COMPLETED, output="1"),
        Finish(attempt=replace(second, number=9), status=TaskStatus.COMPLETED),
        Finish(attempt=third, status=TaskStatus.CANCELLED),
    ]
    assert await finish(database, store, *batch) == [True, False, True]
    assert (await row_of(database, second.id)).status == TaskStatus.RUNNING


async def test_finish_again_is_no_failure(database: Database, store: Store) -> None:
    """After a lost answer the same finish is True again, and a different one False."""
    attempt = (await claim_new(database, store)).attempt
    done = Finish(attempt=attempt, status=TaskStatus.COMPLETED, output="1")
    assert await finish(database, store, done) == [True]
    ended = (await row_of(database, attempt.id)).end_date_time
    assert await finish(database, store, done, done) == [True, True]
    failed = replace(done, status=TaskStatus.FAILED)
    assert await finish(database, store, failed) == [False]
    row = await row_of(database, attempt.id)
    assert (row.status, row.end_date_time) == (TaskStatus.COMPLETED, ended)


async def test_requeue_puts_the_row_back(database: Database, store: Store) -> None:
    """It is pending without an owner, and keeps what the requeue does not bring."""
    attempt = (await claim_new(database, store)).attempt
    back = Requeue(attempt=attempt, exception='{"kind":"crash"}', cost=Cost(log="first"))
    assert await requeue(database, store, back) == [True]
    row = await row_of(database, attempt.id)
    assert (row.status, row.attempts, row.locked_by, row.pid) == ("pending", 1, None, None)
    assert (row.exception, row.log) == ({"kind": "crash"}, "first")

    (again,) = await claim(database, store)
    assert again.attempt.number == 2
    assert await requeue(database, store, Requeue(attempt=again.attempt)) == [True]
    row = await row_of(database, attempt.id)
    assert (row.exception, row.log) == ({"kind": "crash"}, "first")


async def test_requeue_can_take_the_attempt_back(database: Database, store: Store) -> None:
    """Uncounted, the attempt never was one, and the row has the place again that it had."""
    attempt = (await claim_new(database, store)).attempt
    due = (await row_of(database, attempt.id)).run_at
    assert await requeue(database, store, Requeue(attempt=attempt, counted=False)) == [True]
    row = await row_of(database, attempt.id)
    assert (row.attempts, row.run_at) == (0, due)


async def test_requeue_can_wait(database: Database, store: Store) -> None:
    """The delay counts from now by the clock of the database."""
    attempt = (await claim_new(database, store)).attempt
    assert await requeue(database, store, Requeue(attempt=attempt, delay_seconds=90.5)) == [True]
    assert await claim(database, store) == []
    row = await row_of(database, attempt.id)
    assert row.start_date_time is not None
    assert 90 < (row.run_at - row.start_date_time).total_seconds() < 110


async def test_requeue_is_fenced(database: Database, store: Store) -> None:
    """Others cannot put the row back, and nobody can twice."""
    attempt = (await claim_new(database, store)).attempt
    others = [Requeue(attempt=other) for other in fenced_off(attempt)]
    assert await requeue(database, store, *others) == [False, False]
    assert await requeue(database, store, Requeue(attempt=attempt)) == [True]
    assert await requeue(database, store, Requeue(attempt=attempt)) == [False]


async def test_report_keeps_what_it_does_not_bring(database: Database, store: Store) -> None:
    """Progress and checkpoint are written apart or together, in order."""
    attempt = (await claim_new(database, store)).attempt
    reports = [
        Report(attempt=attempt, progress=10),
        Report(attempt=attempt, checkpoint='{"page":3}'),
        Report(attempt=attempt, progress=20),
    ]
    assert await report(database, store, *reports) == [True, True, True]
    row = await row_of(database, attempt.id)
    assert (row.progress_percentage, row.checkpoint) == (20, {"page": 3})


async def test_report_is_fenced(database: Database, store: Store) -> None:
    """Others cannot report, nor can anybody after the end."""
    attempt = (await claim_new(database, store)).attempt
    reports = [Report(attempt=other, progress=1) for other in (attempt, *fenced_off(attempt))]
    assert await report(database, store, *reports) == [True, False, False]
    await finish(database, store, Finish(attempt=attempt, status=TaskStatus.FAILED))
    assert await report(database, store, reports[0]) == [False]


async def test_a_checkpoint_comes_with_the_next_claim(database: Database, store: Store) -> None:
    """The next attempt gets the checkpoint and the failures of the ones before."""
    attempt = (await claim_new(database, store)).attempt
    await report(database, store, Report(attempt=attempt, checkpoint="[1.0]"))
    await requeue(database, store, Requeue(attempt=attempt, failures='[{"kind":"error"}]'))
    (again,) = await claim(database, store)
    assert (again.checkpoint, again.failures) == ("[1.0]", '[{"kind":"error"}]')


async def test_texts_are_stored_byte_for_byte(database: Database, store: Store) -> None:
    """Nothing between the codec and the column touches the JSON."""
    texts = [
        "1.0",
        "12345678901234567890",
        '{"b": 1, "a":2,  "b":3}',
        '"😀 é 漢 \\u0001 \\\\ \' % %s :name ? $1"',
        '"' + "x" * 5_000_000 + '"',
        '"a\\nb"',
    ]
    for content in texts:
        claimed = await claim_new(database, store, input=content)
        assert claimed.input == content
        attempt = claimed.attempt
        done = Finish(attempt=attempt, status=TaskStatus.COMPLETED, output=content)
        assert await finish(database, store, done) == [True]
        ((stored_input, stored_output),) = await raw(
            database,
            "SELECT input, output FROM lilota_task WHERE id = :id",
            id=store.dialect.key(attempt.id),
        )
        assert stored_input == content
        assert stored_output == content


async def test_a_batch_of_ends_keeps_each_value(database: Database, store: Store) -> None:
    """Whatever the others have in that place: nothing, something shorter, or less exact."""
    await insert(database, store, [new_task() for _ in range(4)])
    attempts = [task.attempt for task in await claim(database, store)]
    costs = [
        Cost(),
        Cost(cpu_seconds=0.1234567890123456, peak_memory_bytes=1, log="é 😀 \\ ' % %s :a ? $1 "),
        Cost(cpu_seconds=98765.5, peak_memory_bytes=2**40, log='"' * 100_000),
        Cost(cpu_seconds=1e-9, log=""),
    ]
    finishes = [
        Finish(attempt=attempt, status=status, cost=cost, output=output, exception=exception)
        for attempt, status, cost, output, exception in zip(
            attempts,
            [TaskStatus.FAILED, *[TaskStatus.COMPLETED] * 3],
            costs,
            [None, "1.0", '"' + "x" * 3_000_000 + '"', '"\\u0001 "'],
            ['{"kind":"crash"}', None, None, None],
            strict=True,
        )
    ]
    assert await finish(database, store, *finishes) == [True] * 4
    for end in finishes:
        row = await row_of(database, end.attempt.id)
        cost = Cost(
            cpu_seconds=row.cpu_seconds, peak_memory_bytes=row.peak_memory_bytes, log=row.log
        )
        texts = await raw(
            database,
            "SELECT output, exception FROM lilota_task WHERE id = :id",
            id=store.dialect.key(end.attempt.id),
        )
        assert (row.status, cost, *texts) == (end.status, end.cost, (end.output, end.exception))


async def test_the_first_of_two_ends_counts(database: Database, store: Store) -> None:
    """Also when both come in one batch."""
    if database.dialect == "postgresql":
        pytest.skip("one statement writes one of them, and says so to both")
    attempt = (await claim_new(database, store)).attempt
    done = Finish(attempt=attempt, status=TaskStatus.COMPLETED, output="1")
    failed = Finish(attempt=attempt, status=TaskStatus.FAILED)
    assert await finish(database, store, done, failed) == [True, False]
    row = await row_of(database, attempt.id)
    assert (row.status, row.output) == (TaskStatus.COMPLETED, 1)
