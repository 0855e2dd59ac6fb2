"""Applications that end without a word, and main scripts that task processes cannot import."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.execution.support import is_alive

ROOT = Path(__file__).parents[2]
PATIENCE = 20.0

APPLICATION = """
import asyncio, os, signal, sys
from pathlib import Path
from lilota_async.execution.processes import ProcessPool
from tests.execution import tasks
from tests.execution.support import call_of, Heard, run, until

async def main(method, directory, kinds):
    pools = []
    for kind in kinds:
        pool = ProcessPool(1, lambda: None, start_method=method)
        await pool.start()
        pools.append(pool)
        path = f"{directory}/{kind}"
        run(pool.slots()[0], call_of(getattr(tasks, kind), path), Heard())
        await until(Path(path).exists)
        Path(f"{path}.process").write_text(str(pool.slots()[0].pid))
    Path(f"{directory}/all").touch()
    if wait:
        await asyncio.sleep(600)
    return pools if keep else None

if __name__ == "__main__":
    # A shell has what it runs in the background ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    wait, keep = "wait" in sys.argv, "keep" in sys.argv
    kept = asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3].split(",")))
    print("main has returned")
"""

KINDS = "sleep_with_child,hold_gil,loop_for_ever,swallow"


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "application.py"
    path.write_text(APPLICATION)
    return path


def start(script: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(script), *arguments],
        cwd=script.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def application(script: Path, method: str) -> Iterator[subprocess.Popen[str]]:
    """An application whose tasks run, do not react, and have children."""
    process = start(script, method, str(script.parent), KINDS, "wait")
    try:
        _wait(lambda: (script.parent / "all").exists() or process.poll() is not None)
        assert process.poll() is None, process.communicate()
        yield process
    finally:
        process.kill()
        process.communicate()


def _wait(condition: object, seconds: float = PATIENCE) -> None:
    ends = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < ends, f"not within {seconds} s"
        time.sleep(0.005)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGABRT])
def test_nothing_outlives_an_application(
    application: subprocess.Popen[str], tmp_path: Path, how: signal.Signals
) -> None:
    """However it ends, its task processes end at once, with all they have started."""
    pids = [int(path.read_text()) for path in tmp_path.glob("*.process")]
    pids.append(int((tmp_path / "sleep_with_child").read_text()))
    assert len(pids) == 5
    assert all(map(is_alive, pids))
    application.send_signal(how)
    application.wait()
    _wait(lambda: not any(map(is_alive, pids)), 10.0)


def test_ctrl_c_is_for_the_application_alone(
    application: subprocess.Popen[str], tmp_path: Path
) -> None:
    """The terminal sends it to all of its processes; tasks do not hear of it."""
    pids = [int(path.read_text()) for path in tmp_path.glob("*.process")]
    for process in psutil.Process(application.pid).children(recursive=True):
        process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert all(map(is_alive, pids))
    application.send_signal(signal.SIGINT)
    _, errors = application.communicate(timeout=PATIENCE)
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert errors.count("KeyboardInterrupt") <= 2
    assert not any(map(is_alive, pids))


@pytest.mark.parametrize("keep", ["keep", "forget"])
@pytest.mark.parametrize("kind", ["sleep_with_child", "hold_gil", "swallow"])
def test_an_exit_without_stop_waits_for_nothing(
    script: Path, method: str, kind: str, keep: str
) -> None:
    """A script that ends does not hang until its tasks end, and says nothing of it."""
    started = time.monotonic()
    process = start(script, method, str(script.parent), kind, keep)
    try:
        output, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert time.monotonic() - started < PATIENCE
    assert (process.returncode, output, errors) == (0, "main has returned\n", "")
    assert not is_alive(int((script.parent / f"{kind}.process").read_text()))


WITHOUT_GUARD = """
import asyncio
from lilota_async.execution.processes import ProcessPool

async def main():
    pool = ProcessPool(2, lambda: None, start_method={method!r})
    await pool.start()

asyncio.run(main())
"""

RAISES_AT_IMPORT = """
import asyncio
from lilota_async.execution.processes import ProcessPool

if __name__ != "__main__":
    raise RuntimeError("not in a task process")

async def main():
    pool = ProcessPool(2, lambda: None, start_method={method!r})
    await pool.start()

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("source", "said"),
    [(WITHOUT_GUARD, "bootstrapping phase"), (RAISES_AT_IMPORT, "not in a task process")],
)
def test_a_main_script_that_cannot_be_imported_is_explained(
    tmp_path: Path, method: str, source: str, said: str
) -> None:
    """The error has the remedy, and what the script said in a task process."""
    script = tmp_path / "main.py"
    script.write_text(source.format(method=method))
    process = start(script)
    _, errors = process.communicate(timeout=60)
    last = errors[errors.rindex("WorkerStartFailed: A task process ended") :]
    assert "belongs under 'if __name__ == \"__main__\":'" in last
    assert said in last
    assert process.returncode == 1
