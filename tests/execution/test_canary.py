"""The private things of the standard library that this package stands on.

A Python in which one of these fails needs a look at `worker_process`, `runtime` and
`own_process`; nothing else uses any.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import concurrent.futures
import concurrent.futures.process
import inspect
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.process
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import _ExecutorManagerThread
from typing import Any

import pytest

from tests.execution import tasks


@pytest.fixture
def executor(method: str) -> Any:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as made:
        yield made


def test_the_process_and_its_manager_are_there_after_a_submit(executor: Any) -> None:
    """`submit()` starts the one process at once, and the thread that looks after it."""
    future = executor.submit(tasks.pid)
    [process] = executor._processes.values()
    assert process.pid == future.result()
    assert isinstance(process.sentinel, int)
    assert isinstance(executor._executor_manager_thread, _ExecutorManagerThread)
    assert isinstance(executor._executor_manager_thread, threading.Thread)


def test_a_process_is_on_a_list_that_it_can_be_taken_from(executor: Any) -> None:
    """Starting a process asks all of the list for their exit codes."""
    executor.submit(tasks.ok)
    [process] = executor._processes.values()
    children: Any = multiprocessing.process._children  # type: ignore[attr-defined]
    assert process in children
    children.discard(process)
    executor.shutdown()
    assert process.exitcode == 0


def test_what_is_no_result_breaks_an_executor(executor: Any) -> None:
    """The manager gives up as it does when the process dies, and ends the process."""
    results = executor._result_queue
    executor.submit(tasks.ok).result()
    future = executor.submit(tasks.sleep, 60)
    manager = executor._executor_manager_thread
    results._writer.send_bytes(b"")
    with pytest.raises(concurrent.futures.BrokenExecutor):
        future.result(timeout=10)
    manager.join(10)
    assert not manager.is_alive()


def test_exceptions_are_wrapped_by_a_name_that_can_be_replaced() -> None:
    """The task process ends instead of pickling what was raised outside of a task."""
    source = inspect.getsource(concurrent.futures.process._process_worker)
    assert "_ExceptionWithTraceback(e, e.__traceback__)" in source


def test_exit_hooks_run_in_reverse_order() -> None:
    """Ours is registered after that of the executors, and so runs before it."""
    hooks: list[Any] = threading._threading_atexits  # type: ignore[attr-defined]
    before = len(hooks)
    threading._register_atexit(int)  # type: ignore[attr-defined]
    assert len(hooks) == before + 1
    hooks.pop()
    source = inspect.getsource(threading._shutdown)  # type: ignore[attr-defined]
    assert "reversed(_threading_atexits)" in source
    executors = inspect.getsource(concurrent.futures.process)
    assert "threading._register_atexit(_python_exit)" in executors


def test_a_process_that_imports_the_main_script_knows_it() -> None:
    """`start()` refuses to run there."""
    assert "current_process()._inheriting = True" in inspect.getsource(multiprocessing.spawn._main)


def test_the_parent_of_a_process_has_a_sentinel(method: str) -> None:
    """By which a task process learns that the application is gone."""
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        assert executor.submit(_sentinel_of_parent).result() > 2


def test_the_fork_server_can_be_made_to_start_again() -> None:
    """Its process and the pipe that keeps it alive have these names."""
    multiprocessing.forkserver.ensure_running()
    server: Any = multiprocessing.forkserver._forkserver
    assert isinstance(server._forkserver_pid, int)
    assert isinstance(server._forkserver_alive_fd, int)


def test_what_is_told_to_a_new_process_can_be_told_again() -> None:
    """By which the failure of a main script is looked into."""
    data = multiprocessing.spawn.get_preparation_data("name")
    assert {"sys_path", "sys_argv", "dir"} <= data.keys()
    assert callable(multiprocessing.spawn.prepare)


def test_a_handler_can_be_set_without_an_enum() -> None:
    """By the function of the same name that `signal` adds one to."""
    assert "_signal.signal(" in inspect.getsource(signal.signal)

    def handle(*_: object) -> None:
        """Nothing comes."""

    before = _signal.signal(signal.SIGUSR1, handle)
    try:
        assert signal.getsignal(signal.SIGUSR1) is handle
    finally:
        _signal.signal(signal.SIGUSR1, before)


def _sentinel_of_parent() -> int:
    parent = multiprocessing.parent_process()
    assert parent is not None
    return int(parent.sentinel)
