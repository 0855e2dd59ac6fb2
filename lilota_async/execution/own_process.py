"""What a task process does to itself, and what it knows of itself."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import fcntl
import functools
import logging
import multiprocessing
import os
import resource
import select
import signal
import sys
import threading
from multiprocessing.connection import Connection
from typing import TextIO

F_SETSIG = getattr(fcntl, "F_SETSIG", 10)  # the constant has a name from Python 3.13 on
INACCURACY = 1.1  # of the kernel's two ways of counting
STDOUT = 1
STDERR = 2


def detach() -> None:
    """Have a group of its own, which ends when the application ends."""
    os.setsid()  # a kill of the group reaches what the tasks have started
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the application to handle
    _die_with_parent()
    _prefer_for_out_of_memory()


class Streams:
    """Standard output and error, into the cell's pipe."""

    def __init__(self, output: Connection) -> None:
        self._output = output
        self._direct()
        # New objects for the same descriptors: the old ones may believe they write to a file.
        self._stdout = _text_stream(STDOUT)
        self._stderr = _text_stream(STDERR)
        library = ctypes.CDLL(None)
        name = "__stdoutp" if sys.platform == "darwin" else "stdout"
        # Of the others, one may be locked by a thread that waits for something to read.
        self._c_stdout = ctypes.c_void_p.in_dll(library, name)
        self._flush_c = library.fflush
        faulthandler.enable(STDERR)
        self._restore()

    def separate(self, mark: bytes) -> None:
        """Write `mark` after what a task has written, and put back what it has set or closed."""
        os.write(self._output.fileno(), mark)
        self._direct()
        self._restore()

    def _direct(self) -> None:
        os.dup2(self._output.fileno(), STDOUT)
        os.dup2(self._output.fileno(), STDERR)

    def _restore(self) -> None:
        sys.stdout = self._stdout
        sys.stderr = self._stderr

    def flush(self) -> None:
        """Bring out what waits in buffers, those of C too."""
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # closed, or something of the task's own
                stream.flush()
        self._flush_c(self._c_stdout)


class Surroundings:
    """What a task may leave behind that would meet the next one of its process."""

    def __init__(self) -> None:
        self._directory = os.getcwd()

    def restore(self) -> None:
        """Put back the working directory and logging, and stop an alarm."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        if logging.root.manager.disable:  # else what every logger knows would be forgotten
            logging.disable(logging.NOTSET)
        with contextlib.suppress(OSError):  # it was removed
            os.chdir(self._directory)


def cpu_and_peak() -> tuple[float, int]:
    """The processor time of this process, and of its children that were waited for; its peak."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
    return seconds, own.ru_maxrss if sys.platform == "darwin" else own.ru_maxrss * 1024


class PeakMemory:
    """The largest resident size of a task, where the kernel lets it be counted anew."""

    def __init__(self) -> None:
        try:
            self._reset: int | None = os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
        except OSError:
            self._reset = None
        self.reset()
        # The quick answer begins with the size of the process that this one was started from.
        own = _peak_of_status()
        self._is_inherited = own is not None and cpu_and_peak()[1] > INACCURACY * own

    def reset(self) -> None:
        """Count from the present size on."""
        if self._reset is not None:
            try:
                os.pwrite(self._reset, b"5", 0)
            except OSError:  # a task has closed it
                self._reset = None

    def read(self, peak: int) -> int:
        """The largest size since the last reset, in bytes, which `peak` is unless inherited."""
        return (self._is_inherited and _peak_of_status()) or peak


def _peak_of_status() -> int | None:
    try:
        with open("/proc/self/status", "rb") as file:
            _, _, rest = file.read().partition(b"VmHWM:")
        return int(rest.split(None, 1)[0]) * 1024
    except (OSError, ValueError, IndexError):
        return None


def _text_stream(descriptor: int) -> TextIO:
    return open(
        descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False
    )


def _die_with_parent() -> None:
    """Have the kernel kill this group when the application is gone.

    PR_SET_PDEATHSIG would watch the fork server instead. The sentinel is a pipe whose other
    end the application holds: the kernel signals its owner, the whole group, when that closes,
    with the GIL held and for grandchildren too.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel
    if sys.platform == "linux":
        fcntl.fcntl(sentinel, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(sentinel, F_SETSIG, signal.SIGKILL)
        flags = fcntl.fcntl(sentinel, fcntl.F_GETFL)
        fcntl.fcntl(sentinel, fcntl.F_SETFL, flags | os.O_ASYNC)
        if select.select([sentinel], [], [], 0)[0]:  # it was gone before the kernel was asked
            os.killpg(0, signal.SIGKILL)
    else:
        watch = functools.partial(_kill_group_when_readable, sentinel)
        threading.Thread(target=watch, name="lilota-parent-watch", daemon=True).start()


def _kill_group_when_readable(sentinel: int) -> None:
    select.select([sentinel], [], [])
    os.killpg(0, signal.SIGKILL)


def _prefer_for_out_of_memory() -> None:
    """When memory runs out the kernel should end a task, and not the application."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("500")
    except OSError:
        pass
