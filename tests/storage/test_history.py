"""What has ended, counted in steps of time, on every database."""

from __future__ import annotations

import pytest

from lilota_async.models import TaskStatus
from lilota_async.storage.browsing import SCANNED_ROWS, Filters, browse
from lilota_async.storage.database import Database
from lilota_async.storage.history import read_history
from lilota_async.storage.store import Store
from tests.storage.support import claim, insert, new_task, raw

pytestmark = pytest.mark.anyio


async def test_what_has_ended_is_in_its_step(database: Database, store: Store) -> None:
    """By status and time; names that were not asked for and what is older are left out."""
    await insert(database, store, [new_task(name) for name in ("add", "add", "add", "other")])
    await claim(database, store, 10, names=("add", "other"))
    now = store.dialect.now
    await raw(database, f"UPDATE lilota_task SET status = 'completed', end_date_time = {now}")
    empty = await read_history(database, ["none"], seconds=600, steps=10)
    assert (sum(empty.completed), sum(empty.failed)) == (0, 0)
    history = await read_history(database, ["add"], seconds=600, steps=10)
    assert (history.completed[-1], sum(history.completed), sum(history.failed)) == (3, 3, 0)
    await raw(database, "UPDATE lilota_task SET status = 'failed' WHERE name = 'other'")
    history = await read_history(database, ["add", "other"], seconds=600, steps=10)
    assert (sum(history.completed), history.failed[-1]) == (3, 1)
    await raw(database, "UPDATE lilota_task SET end_date_time = '2001-01-01 00:00:00'")
    history = await read_history(database, ["add", "other"], seconds=600, steps=10)
    assert (sum(history.completed), sum(history.failed)) == (0, 0)


async def test_browsing_goes_from_new_to_old(database: Database, store: Store) -> None:
    """In pages by key, whatever is filtered; a tag matches as a whole, an error by a part."""
    tasks = [new_task("other" if number % 2 else "add") for number in range(60)]
    await insert(database, store, tasks)
    await raw(database, """UPDATE lilota_task SET tags = '["vip","a_b"]' WHERE name = 'other'""")
    await raw(
        database,
        """UPDATE lilota_task SET status = 'failed', exception = '{"message":"100% "}'
        WHERE name = 'other'""",
    )
    newest = [task.id for task in reversed(tasks)]
    others = newest[::2]

    async def ids(filters: Filters, limit: int = 100) -> list[object]:
        found: list[object] = []
        before = None
        while True:
            page = await browse(database, filters, before=before, limit=limit)
            found += [task.id for task in page.tasks]
            if page.next is None:
                return found
            before = page.next

    assert await ids(Filters(), 7) == newest
    assert await ids(Filters(name="other"), 7) == others
    assert await ids(Filters(status=TaskStatus.FAILED), 7) == others
    assert await ids(Filters(status=TaskStatus.PENDING), 60) == newest[1::2]
    assert await ids(Filters(tag="vip"), 7) == others
    assert await ids(Filters(tag="a_b", name="other"), 7) == others
    for tag in ("vi", "a%b", "axb"):
        assert await ids(Filters(tag=tag)) == []
    assert await ids(Filters(error="100%"), 7) == others
    assert await ids(Filters(error="MESSAGE")) == others
    assert await ids(Filters(error="100_")) == []


async def test_a_search_goes_on_where_a_page_ends(database: Database, store: Store) -> None:
    """A page looks through so many rows only, and says where the next one begins."""
    rare = new_task("rare")
    await insert(database, store, [rare, *(new_task() for _ in range(SCANNED_ROWS + 10))])
    await raw(database, """UPDATE lilota_task SET tags = '["x"]' WHERE name = 'rare'""")
    first = await browse(database, Filters(tag="x"), limit=50)
    assert first.tasks == []
    assert first.next is not None
    second = await browse(database, Filters(tag="x"), before=first.next, limit=50)
    assert [task.id for task in second.tasks] == [rare.id]
    assert second.next is None
