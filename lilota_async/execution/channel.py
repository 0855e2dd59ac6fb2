"""What leaves a task process: frames of messages, and the records of its `logging`."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import select
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection

from lilota_async.codec import escape_text
from lilota_async.execution.protocol import LogRecord, Message

LOG_MESSAGE_LIMIT = 16 * 1024


class Channel:
    """The write end of the cell's pipe: whole frames only, from any thread.

    A process that the task has forked writes nothing: it would cut the frames of this one.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection  # keeps the descriptor open
        self._descriptor = connection.fileno()
        self._owner = os.getpid()
        self._identity = os.fstat(self._descriptor).st_ino
        self._lock = threading.Lock()
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLOUT)

    @property
    def is_ours(self) -> bool:
        """Whether this is the process that the channel was made for."""
        return os.getpid() == self._owner

    def check(self) -> None:
        """Raise OSError when a task has closed it, or put something else in its place."""
        if os.fstat(self._descriptor).st_ino != self._identity:
            raise OSError("The pipe to the application was replaced")

    def send(self, data: bytes) -> None:
        """Write everything, waiting while the parent does not read."""
        if self.is_ours:
            self.write(data)

    def write(self, data: bytes) -> None:
        """The same, where this is known to be no fork."""
        with self._lock:
            view = memoryview(data)
            while view:
                view = view[os.write(self._descriptor, view) :]

    def try_send(self, data: bytes) -> None:
        """Write a small frame, or drop it when the parent does not keep up or is gone."""
        if not self.is_ours:
            return
        with self._lock, contextlib.suppress(OSError):
            # A pipe that polls as writable has room for PIPE_BUF bytes at least.
            if len(data) <= select.PIPE_BUF and self._poll.poll(0):
                os.write(self._descriptor, data)


class ChannelHandler(logging.Handler):
    """Sends the records of this process to the application, under the task they belong to."""

    def __init__(
        self,
        channel: Channel,
        current: Callable[[], int | None],
        publish: Callable[[Message], None],
    ) -> None:
        super().__init__()
        self._channel = channel
        self._current = current
        self._publish = publish
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        serial = self._current()
        try:
            if serial is None or not self._channel.is_ours:
                # What a fork says reaches the task's log as output does.
                print(self.format(record), file=sys.stderr)
            else:
                self._publish(_message(serial, record))
        except Exception:
            self.handleError(record)


def log_levels() -> dict[str, int]:
    """The levels that loggers of this process were given; that of the root is under ""."""
    root = logging.getLogger()
    loggers = list(root.manager.loggerDict.items())
    given = {name: each.level for name, each in loggers if isinstance(each, logging.Logger)}
    return {"": root.level, **{name: level for name, level in given.items() if level}}


def hand_over_records(handler: logging.Handler) -> None:
    """Have every logger of this process speak through `handler` alone.

    It takes the place of what imported modules have set up: the application has that too, and
    what it gets from here goes through it.
    """
    root = logging.getLogger()
    root.handlers[:] = [handler]
    for logger in list(root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            logger.handlers.clear()
            logger.propagate = True


def _message(serial: int, record: logging.LogRecord) -> LogRecord:
    exception = record.exc_text
    if record.exc_info and not exception:
        exception = logging.Formatter().formatException(record.exc_info)
    return LogRecord(
        serial=serial,
        logger=escape_text(record.name, LOG_MESSAGE_LIMIT),
        level=int(record.levelno),
        message=escape_text(record.getMessage(), LOG_MESSAGE_LIMIT),
        created=record.created if math.isfinite(record.created) else 0.0,
        path=escape_text(record.pathname, LOG_MESSAGE_LIMIT),
        line=int(record.lineno or 0),  # of a record that is made of a dict, it may be anything
        exception=None if exception is None else escape_text(exception, LOG_MESSAGE_LIMIT),
    )
