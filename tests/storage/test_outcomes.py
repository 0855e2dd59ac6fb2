"""What a flush has written is told to all, whatever happens, and does not hold up the loop."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import pytest

from lilota_async.models import TaskId
from lilota_async.storage.database import Database
from lilota_async.storage.operation import Kind, Operation, Told
from lilota_async.storage.outcomes import Outcomes
from lilota_async.storage.store import Store
from lilota_async.storage.transitions import Claimed, ClaimedTask, as_claimed
from lilota_async.storage.writer import Writer
from tests.storage.support import new_task

pytestmark = pytest.mark.anyio

MANY = 600


def refuse(_task: ClaimedTask) -> None:
    """Nothing is to be put back."""
    raise AssertionError


def many(heard: list[Any]) -> list[Operation]:
    """Operations whose outcomes are noted there."""

    def tell(about: int, outcome: Any, _error: Exception | None) -> None:
        heard.append((about, outcome))

    return [
        Operation(kind=Kind.FINISH, value=None, future=Told(tell, number)) for number in range(MANY)
    ]


async def test_others_run_in_between() -> None:
    """A large flush is told in parts."""
    heard: list[Any] = []
    seen: list[int] = []

    async def look() -> None:
        while len(heard) < MANY:
            seen.append(len(heard))
            await asyncio.sleep(0)

    outcomes = Outcomes(refuse)
    outcomes.add(many(heard), range(MANY))
    looking = asyncio.create_task(look())
    await outcomes.tell()
    await looking
    assert heard == [(number, number) for number in range(MANY)]
    assert len(set(seen)) >= 3


async def test_all_are_told_after_a_cancellation() -> None:
    """They are committed, and nobody would go on."""
    heard: list[Any] = []
    outcomes = Outcomes(refuse)
    outcomes.add(many(heard), range(MANY))
    telling = asyncio.create_task(outcomes.tell())
    await asyncio.sleep(0)
    telling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await telling
    assert 0 < len(heard) < MANY
    outcomes.tell_at_once()
    assert len(heard) == MANY


async def test_one_that_cannot_be_told(caplog: pytest.LogCaptureFixture) -> None:
    """A mistake of who hears it is logged, its caller has the error, and the others theirs."""

    class Row:
        task, has_place = new_task(), False

        def choose(self) -> None: ...

        def on_written(self, _refused: set[TaskId[Any]]) -> None:
            raise RuntimeError("a mistake")

        def on_given_up(self) -> None: ...

    loop = asyncio.get_running_loop()
    wrong = Operation(kind=Kind.INSERT, value=None, future=loop.create_future(), late_row=Row())
    right = Operation(kind=Kind.INSERT, value=None, future=loop.create_future())
    futures: list[Any] = [wrong.future, right.future]
    outcomes = Outcomes(refuse)
    outcomes.add([wrong, right], [set(), set()])
    await outcomes.tell()
    with pytest.raises(RuntimeError, match="a mistake"):
        await futures[0]
    assert await futures[1] == set()
    assert "was not heard" in caplog.text


async def test_what_nobody_waits_for_any_more_is_put_back() -> None:
    """A claim whose caller has gone away brought tasks that somebody has to run."""
    back: list[ClaimedTask] = []
    claim = Operation(kind=Kind.CLAIM, value=None, future=Told(lambda *_: None, is_done=True))
    task = as_claimed(new_task(node_id=TaskId(), pid=1))
    outcomes = Outcomes(back.append)
    outcomes.add([claim], [Claimed(tasks=[task])])
    await outcomes.tell()
    assert back == [task]


async def test_the_written_part_does_not_wait_for_the_other(
    database: Database, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a flush is parted because of an error, and the second part hangs."""
    commit, go_on = Writer._commit, asyncio.Event()
    good, bad = new_task(), new_task()

    async def parted(self: Writer, connection: Any, batch: list[Operation]) -> list[Any]:
        if len(batch) > 1:
            raise ValueError("refused")
        if batch[0].new_tasks == [bad]:
            await go_on.wait()
        return await commit(self, connection, batch)

    monkeypatch.setattr(Writer, "_commit", parted)
    async with asyncio.timeout(30), Writer(database, store) as writer:
        first, second = writer.insert([good]), writer.insert([bad])
        assert await first == set()
        assert not second.done()
        go_on.set()
        assert await second == set()


async def test_failed_operations_are_not_kept(
    database: Database, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the collector knows nothing of them, and their errors have tracebacks."""

    async def refused(*_arguments: Any) -> list[Any]:
        raise ValueError("refused")

    monkeypatch.setattr(Writer, "_commit", refused)
    values: list[weakref.ref[Value]] = []
    async with Writer(database, store) as writer:
        for _ in range(10):
            value = Value()
            values.append(weakref.ref(value))
            with pytest.raises(ValueError, match="refused"):
                await writer.execute(value)
        del value
    gc.collect()
    assert not [each for each in values if each() is not None]


class Value:
    """A call of the store that can be looked for."""

    async def __call__(self, _connection: Any) -> None:
        raise AssertionError
