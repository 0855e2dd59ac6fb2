"""What is read of processes from outside, and the watch over their memory."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from lilota_async.execution import measures
from lilota_async.execution.memory_watch import MemoryWatch
from tests.execution import tasks
from tests.execution.support import Bench, Heard, call_of, crash_of, number_in, run, until, value_of

pytestmark = pytest.mark.anyio

MEGABYTE = 1024 * 1024


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def test_sizes_and_times_are_those_of_the_system() -> None:
    """Compared with what psutil finds."""
    own = psutil.Process()
    resident = measures.resident_bytes(os.getpid())
    assert resident is not None
    assert abs(resident - own.memory_info().rss) < 10 * MEGABYTE
    usage = measures.usage_of(os.getpid())
    times = own.cpu_times()
    assert usage.cpu_seconds is not None
    total = times.user + times.system + times.children_user + times.children_system
    assert abs(usage.cpu_seconds - total) < 0.2
    assert usage.peak_memory_bytes is not None
    assert usage.peak_memory_bytes >= resident


def test_of_a_process_that_is_gone_nothing_is_known(sleeper: subprocess.Popen[bytes]) -> None:
    """None, and no error; a zombie has no memory left."""
    assert not measures.is_group_gone(sleeper.pid)
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert measures.usage_of(sleeper.pid).peak_memory_bytes is None
    assert measures.is_group_gone(sleeper.pid)
    sleeper.wait()
    assert measures.resident_bytes(sleeper.pid) is None
    assert measures.usage_of(sleeper.pid) == measures.Usage()


def test_a_group_is_the_sum_of_its_processes() -> None:
    """Children count, wherever they are below."""
    code = "import subprocess, sys; subprocess.run(['sleep', '600'])"
    process = subprocess.Popen([sys.executable, "-S", "-c", code], start_new_session=True)
    try:
        family = psutil.Process(process.pid)
        while not [child for child in family.children() if child.name() == "sleep"]:
            time.sleep(0.01)  # it is a copy of its parent before
        members = [family, *family.children()]
        size = measures.resident_bytes_by_group()[process.pid]
        assert abs(size - sum(member.memory_info().rss for member in members)) < 2 * MEGABYTE
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_command_may_be_called_anything(tmp_path: Path) -> None:
    """The name of a program is in the middle of the line, unquoted."""
    script = tmp_path / "a) S (b 1 2"
    script.symlink_to("/bin/sleep")
    process = subprocess.Popen([str(script), "600"], start_new_session=True)
    try:
        # Its size is counted in batches, and may be none yet.
        assert process.pid in measures.resident_bytes_by_group()
        assert not measures.is_group_gone(process.pid)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("low 0\nhigh 0\nmax 3\noom 2\noom_kill 5\noom_group_kill 1\n", 5),
        ("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n", 7),
        ("oom_kill none\n", None),
        ("", None),
    ],
)
def test_the_kernels_count_of_kills_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, count: int | None
) -> None:
    """In the files of both kinds of cgroups, past those that are not there."""
    file = tmp_path / "events"
    file.write_text(text)
    monkeypatch.setattr(measures, "_oom_files", lambda: iter([tmp_path / "none", file]))
    assert measures.oom_kills() == count


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is known")
def test_this_system_has_a_count_of_kills() -> None:
    """Its own cgroup's, or the whole system's."""
    kills = measures.oom_kills()
    assert kills is not None
    assert kills >= 0


@pytest.mark.parametrize(
    ("function", "grows", "expected"),
    [
        (tasks.kill_itself, True, True),
        (tasks.kill_itself, False, False),
        (tasks.segfault, True, False),
    ],
)
async def test_a_sigkill_while_memory_runs_out_is_told_apart(
    cells: Bench,
    monkeypatch: pytest.MonkeyPatch,
    function: Callable[..., Any],
    grows: bool,
    expected: bool,
) -> None:
    """It needs a SIGKILL of others, and a kill of the kernel's meanwhile."""
    counts = iter([3, 4 if grows else 3, 9])
    monkeypatch.setattr(measures, "oom_kills", lambda: next(counts))
    crash = crash_of(await cells.run(await cells.cell(), function))
    assert crash.out_of_memory is expected


async def test_our_own_kill_is_no_lack_of_memory(
    cells: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the kernel killed something meanwhile."""
    counts = iter(range(100))
    monkeypatch.setattr(measures, "oom_kills", lambda: next(counts))
    cell = await cells.cell()
    path = tmp_path / "begun"
    call = call_of(tasks.sleep_for_ever, str(path))
    running = asyncio.ensure_future(run(cell, call, Heard()))
    await until(path.exists)
    cell.kill(call.serial)
    assert not crash_of(await running).out_of_memory


async def test_a_group_over_its_limit_is_told_once(cells: Bench, tmp_path: Path) -> None:
    """With its peak; what a child of the task uses counts, and others are not concerned."""
    cell, other = await asyncio.gather(cells.cell(), cells.cell())
    watch = MemoryWatch()
    told: list[int] = []
    others: list[int] = []
    watch.add(cell.pid, 120 * MEGABYTE, told.append)
    guard = watch.add(other.pid, 120 * MEGABYTE, others.append)
    path = tmp_path / "pid"
    call = call_of(tasks.use_memory_in_child, str(path))
    running = asyncio.ensure_future(run(cell, call, Heard()))
    await number_in(path)
    await until(lambda: told)
    assert told[0] > 120 * MEGABYTE
    await until(lambda: guard.peak_bytes)
    assert others == []
    watch.remove(guard)
    watch.remove(guard)  # more often than needed
    assert watch._timer is None
    cell.kill(call.serial)
    crash_of(await running)
    assert len(told) == 1


async def test_a_group_within_its_limit_is_left_alone(cells: Bench) -> None:
    """The largest size that was seen is kept."""
    cell = await cells.cell()
    watch = MemoryWatch()
    told: list[int] = []
    guard = watch.add(cell.pid, 500 * MEGABYTE, told.append)
    assert value_of(await run(cell, call_of(tasks.grow, 50), Heard())) == 50 * MEGABYTE
    await until(lambda: guard.peak_bytes > 50 * MEGABYTE)
    assert told == []
    watch.close()
    assert watch._timer is None


async def test_collections_leave_alone_what_is_shared(cells: Bench) -> None:
    """What a task process begins with is never visited by its garbage collector."""
    cell = await cells.cell()
    frozen = await cells.value(cell, gc.get_freeze_count)
    assert frozen > 10_000
