"""stats(): how it stands with the tasks, from any node."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from lilota_async import Stats
from tests.api.support import DEADLINE, MakeLilota, marked
from tests.api.tasks import echo, fail, hold, nothing

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


async def test_what_runs_waits_and_has_ended(
    make_lilota: MakeLilota, fast_database_url: str, directory: Path
) -> None:
    """One that runs, two that wait for it, some that ended, and the node that runs them."""
    lilota = make_lilota(echo, fail, hold, db_url=fast_database_url)
    async with lilota:
        ended = [await lilota.schedule(echo, n) for n in range(5)]
        ended.append(await lilota.schedule(fail, "no"))
        for task_id in ended:
            await lilota.wait(task_id, DEADLINE)
        await lilota.schedule(hold, str(directory))
        await marked(directory)
        waiting = [await lilota.schedule(echo, n) for n in range(2)]
        stats = await lilota.stats()
        (directory / "release").touch()
        for task_id in waiting:
            await lilota.wait(task_id, DEADLINE)
    echoes = stats.names["echo"]
    assert (echoes.pending, echoes.due, echoes.running, echoes.finished) == (2, 2, 0, 5)
    assert echoes.throughput > 0
    assert echoes.wait_seconds is not None
    assert echoes.wait_seconds > 0
    assert echoes.oldest_pending_seconds is not None
    assert (stats.names["fail"].failed, stats.names["fail"].finished) == (1, 1)
    assert stats.names["hold"].running == 1
    (node,) = stats.nodes
    assert (node.pid, node.host, node.slots) == (os.getpid(), socket.gethostname(), 1)
    assert set(node.names) == {"echo", "fail", "hold"}
    assert node.is_live
    assert stats.unclaimable == ()
    after = await lilota.stats()  # works after stop() as well
    assert (after.pending, after.running, after.nodes) == (0, 0, ())


async def test_names_that_nobody_runs(make_lilota: MakeLilota, fast_database_url: str) -> None:
    """A node without slots runs nothing; once a node with the name is there, it is claimable."""
    scheduling = make_lilota(nothing, echo, db_url=fast_database_url, number_of_processes=0)
    async with scheduling:
        task_id = await scheduling.schedule(nothing)
        await scheduling.schedule(echo, 1)
        stats = await scheduling.stats()
        assert stats.unclaimable == ("echo", "nothing")
        assert stats.nodes[0].names == ()
        running = make_lilota(nothing, db_url=fast_database_url)
        async with running:
            await running.wait(task_id, DEADLINE)
            later = await scheduling.stats()
        assert later.unclaimable == ("echo",)
        assert len(later.nodes) == 2


async def test_a_name_registered_while_running(make_lilota: MakeLilota) -> None:
    """The next heartbeat tells the other nodes."""
    lilota = make_lilota(nothing, lease=1.0)
    async with lilota:
        lilota.register(echo)
        stats: Stats = await lilota.stats()
        while "echo" not in stats.nodes[0].names:
            stats = await lilota.stats()
        assert set(stats.nodes[0].names) == {"nothing", "echo"}


async def test_what_is_paused(make_lilota: MakeLilota) -> None:
    """A paused name says so, all of them do while everything is, and nobody knows for how long."""
    lilota = make_lilota(nothing, echo)
    async with lilota:
        await lilota.pause(nothing)
        await lilota.schedule(nothing)
        names = (await lilota.stats()).names
        assert (names["nothing"].paused, names["echo"].paused) == (True, False)
        assert (names["nothing"].wait_seconds, names["echo"].wait_seconds) == (None, 0.0)
        await lilota.resume(nothing)
        await lilota.pause()
        assert all(each.paused for each in (await lilota.stats()).names.values())
        await lilota.resume()
        assert not any(each.paused for each in (await lilota.stats()).names.values())
