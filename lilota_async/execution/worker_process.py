"""A task process from outside: started, interrupted, killed with all its group, buried.

All that is known of the inside of `ProcessPoolExecutor` and `multiprocessing`, of signals
and of process groups is here.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import multiprocessing.process
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import _ExecutorManagerThread
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from typing import Any

from lilota_async.execution import measures, runtime
from lilota_async.execution.channel import log_levels
from lilota_async.execution.protocol import READ_SIZE

END_TIMEOUT = 2.0  # for a process that was asked to end, and for one that was killed
MANAGER_TIMEOUT = 0.25
GROUP_CHECKS = 20
GROUP_CHECK_SECONDS = 0.005
READS = 16


class WorkerProcess:
    """One process in a `ProcessPoolExecutor` of its own, with five pipes.

    `spawn` and `join` block and belong in a thread; the rest is for the event loop. `deaths`
    are the descriptors that become readable when the process ends.
    """

    def __init__(self, context: BaseContext, token: bytes) -> None:
        self._context = context
        self._token = token
        self._opened = contextlib.ExitStack()
        self._pidfd: int | None = None
        self.deaths: tuple[int, ...] = ()
        self._asked_to_end = 0.0
        self.is_spawned = False
        self._is_closed = False
        self.pid = 0

    def spawn(self) -> Future[None]:
        """Start the process; the future ends when it is ready, or with what kept it from it."""
        with contextlib.ExitStack() as opened, contextlib.ExitStack() as theirs:
            self._channel, channel = self._pipe(opened, theirs)
            self._output, output = self._pipe(opened, theirs)
            control, self._control = self._pipe(theirs, opened)
            requests, self._requests = self._pipe(theirs, opened)
            self._tickets, self._new_tickets = self._pipe(opened, opened)
            executor = ProcessPoolExecutor(
                max_workers=1,
                mp_context=self._context,
                initializer=runtime.boot,
                initargs=(
                    channel,
                    control,
                    output,
                    requests,
                    self._tickets,
                    self._token,
                    log_levels(),
                ),
            )
            boot = self._submit(executor)
            self.executor = executor
            for connection in (
                self._channel,
                self._output,
                self._control,
                self._requests,
                self._tickets,
            ):
                os.set_blocking(connection.fileno(), False)
            self._opened = opened.pop_all()
        self.is_spawned = True
        return boot

    def _pipe(
        self, readers: contextlib.ExitStack, writers: contextlib.ExitStack
    ) -> tuple[Connection, Connection]:
        reader, writer = self._context.Pipe(duplex=False)
        return readers.enter_context(reader), writers.enter_context(writer)

    def _submit(self, executor: ProcessPoolExecutor) -> Future[None]:
        results = executor._result_queue
        if self._context.get_start_method() == "forkserver":
            _ensure_fork_server()
        boot = executor.submit(runtime.ready)
        # Private, and without another way: the exit code, the sentinel, a bounded join.
        self._process = next(iter(executor._processes.values()))
        manager = executor._executor_manager_thread
        assert isinstance(manager, _ExecutorManagerThread)
        self._manager = manager
        self._results = results
        assert self._process.pid is not None
        self.pid = self._process.pid
        # Whoever starts a process asks those on this list for their exit codes; two threads
        # that ask a fork server's process at once get a wrong one.
        multiprocessing.process._children.discard(self._process)  # type: ignore[attr-defined]
        self._pidfd = _open_pidfd(self.pid)
        # With `spawn` the sentinel stays silent while a fork of the process lives, the other
        # one with `forkserver` while the process lives on without the server.
        pidfds = () if self._pidfd is None else (self._pidfd,)
        self.deaths = (self._process.sentinel, *pidfds)
        self._last_resort = weakref.finalize(self, _let_go, os.getpid(), self.pid, self._pidfd)
        self._last_resort.atexit = False  # too late then; see run_before_executors_end()
        return boot

    def read_channel(self) -> Iterator[bytes]:
        """What is in the channel now."""
        return _read(self._channel)

    def read_output(self) -> Iterator[bytes]:
        """What is in the output now."""
        return _read(self._output)

    def channels(self) -> tuple[int, int]:
        """The descriptors that become readable when there is something to read."""
        return self._channel.fileno(), self._output.fileno()

    @property
    def requests(self) -> int:
        """The descriptor for the calls, which is not to block."""
        return self._requests.fileno()

    def interrupt(self, request: str, *, signals: bool) -> None:
        """Ask the process to raise in its task's code, at once if it `signals` that."""
        with contextlib.suppress(OSError):  # full or closed: the grace period ends all the same
            os.write(self._control.fileno(), f"{request}\n".encode())
            if signals:
                os.kill(self.pid, signal.SIGTERM)

    def give_tickets(self, count: int, round: int) -> None:
        """Let the process begin so many calls of those that are sent next.

        The round tells them from calls that were sent and taken back before.
        """
        os.write(self._new_tickets.fileno(), bytes([round]) * count)

    def take_tickets(self) -> int:
        """Take back those that are left: so many calls, the last ones, will not be begun."""
        return sum(map(len, _read(self._tickets)))

    def kill(self) -> None:
        """SIGKILL to the process and all of its group, whatever they do."""
        if not self.is_spawned or self._is_closed:  # the number may be another's already
            return
        if not _kill_group(self.pid) and self._pidfd is not None:
            # It has no group of its own yet: it is still importing the main script.
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def wait_for_executor(self) -> None:
        """Wait a moment for the executor to notice the end of its process."""
        if self.is_spawned and not self._is_closed:
            self._manager.join(MANAGER_TIMEOUT)

    def end_when_idle(self) -> None:
        """Ask the process to end once it has nothing to do; returns at once.

        Only once: from Python 3.12 on the executor is locked until the process has ended.
        """
        if not self._asked_to_end:
            self._asked_to_end = time.monotonic()
            self.executor.shutdown(wait=False)

    def join(self) -> int | None:
        """Wait for the end of the process and of its group, and enforce it; the exit code.

        None when that is unknown, as for a process that somebody else has waited for.
        """
        if not self.is_spawned:
            return None
        waited_for = time.monotonic() - self._asked_to_end if self._asked_to_end else 0.0
        if not self._wait_for_death(END_TIMEOUT - waited_for):
            self.kill()
            self._wait_for_death(END_TIMEOUT)
        self.kill()  # what its tasks have left
        self._end_manager()
        self._wait_for_group()
        return None if self._manager.is_alive() else self._process.exitcode

    def _wait_for_death(self, seconds: float) -> bool:
        surest = self.deaths[-1]
        return bool(multiprocessing.connection.wait([surest], max(0.0, seconds)))

    def _end_manager(self) -> None:
        self._manager.join(MANAGER_TIMEOUT)
        if self._manager.is_alive():
            # A fork of the process, gone to another session, keeps the sentinel silent. What
            # is no result makes the manager give up as a death does.
            with contextlib.suppress(OSError):
                self._results._writer.send_bytes(b"")  # type: ignore[attr-defined]
            self._manager.join(END_TIMEOUT)

    def _wait_for_group(self) -> None:
        # SIGKILL is sent, not yet done; a zombie that nobody reaps is as good as gone.
        for _ in range(GROUP_CHECKS):
            if not _kill_group(self.pid) or measures.is_group_gone(self.pid):
                return
            time.sleep(GROUP_CHECK_SECONDS)

    def close(self) -> None:
        """Give back what the system has lent; after `join`."""
        self._opened.close()
        if not self.is_spawned:
            return
        self._is_closed = True
        self._last_resort.detach()
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
        if self._manager.is_alive():
            # Whoever frees the executor waits for its lock.
            self._manager.executor = self.executor  # type: ignore[attr-defined]
        else:
            self._results.close()
            with contextlib.suppress(ValueError):  # nobody knows of its end
                self._process.close()
        # Their semaphores and the rest of their descriptors go with them.
        del self.executor, self._process, self._manager, self._results


def signal_name(exit_code: int | None) -> str | None:
    """The signal that ended a process with this code of `multiprocessing`'s; None without one."""
    if exit_code is None or exit_code >= 0:
        return None
    try:
        return signal.Signals(-exit_code).name
    except ValueError:  # a real-time signal
        return f"signal {-exit_code}"


def run_before_executors_end(action: Callable[[], None]) -> None:
    """Call `action` when the interpreter exits, before it waits for what runs in executors.

    They are waited for by a hook of this private kind, and hooks run in reverse order.
    """
    threading._register_atexit(action)  # type: ignore[attr-defined]


def _ensure_fork_server() -> None:
    """Have a fork server, even when somebody else has waited for the end of the last one."""
    server: Any = multiprocessing.forkserver._forkserver
    try:
        multiprocessing.forkserver.ensure_running()
    except ChildProcessError:
        os.close(server._forkserver_alive_fd)
        server._forkserver_alive_fd = server._forkserver_pid = None


def _open_pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):  # not Linux, an old kernel, or it has ended already
        return None


def _kill_group(group: int) -> bool:
    """False when there is no such group."""
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # on macOS the latter: only zombies are left
        return False
    return True


def _let_go(owner: int, group: int, pidfd: int | None) -> None:
    if os.getpid() == owner:  # and not a fork that forgets its copy
        _kill_group(group)
        if pidfd is not None:
            os.close(pidfd)


def _read(connection: Connection) -> Iterator[bytes]:
    """What is in the pipe; a last empty piece when nobody can write to it any more."""
    for _ in range(READS):
        try:
            data = os.read(connection.fileno(), READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        yield data
        if len(data) < READ_SIZE:
            return
