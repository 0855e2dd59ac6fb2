"""What a running attempt tells of itself: progress and checkpoints for its row, and its log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from lilota_async.codec import escape_text
from lilota_async.storage.transitions import Attempt, Report

LOG_LIMIT = 64 * 1024
REPORT_SECONDS = 0.3  # between two writes of one task's progress


class Reports:
    """Progress and checkpoints of one attempt: the latest, a few times a second at most.

    One at a time: while the database is away, they do not pile up.
    """

    def __init__(self, attempt: Attempt, write: Callable[[Report], asyncio.Future[bool]]) -> None:
        self.percentage = 0
        self._attempt = attempt
        self._write = write
        self._loop = asyncio.get_running_loop()
        self._progress: int | None = None
        self._checkpoint: str | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._last_sent = float("-inf")
        self._is_sending = self._closed = False

    def progress(self, percentage: int) -> None:
        self.percentage = self._progress = max(0, min(percentage, 100))
        self._schedule()

    def checkpoint(self, state: str) -> None:
        self._checkpoint = state
        self._schedule()

    def close(self) -> None:
        """No more timers; a checkpoint that waits is written all the same."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._checkpoint is not None:
            self._send()

    def _schedule(self) -> None:
        if self._timer is None and not self._is_sending and not self._closed:
            pause = max(0.0, self._last_sent + REPORT_SECONDS - self._loop.time())
            self._timer = self._loop.call_later(pause, self._send)

    def _send(self) -> None:
        self._timer = None
        self._is_sending = True
        self._last_sent = self._loop.time()
        report = Report(attempt=self._attempt, progress=self._progress, checkpoint=self._checkpoint)
        self._progress = self._checkpoint = None
        self._write(report).add_done_callback(self._on_sent)

    def _on_sent(self, sent: asyncio.Future[bool]) -> None:
        if not sent.cancelled():
            sent.exception()  # the writer says when the database is away, once
        self._is_sending = False
        if self._progress is not None or self._checkpoint is not None:
            self._schedule()


class LogTail:
    """The last 64 KiB of what a task wrote."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._size = 0
        self.end = 0  # of everything that was written, kept or not

    def add(self, text: str) -> None:
        self._pieces.append(text)
        self._size += len(text)
        self.end += len(text)
        if self._size > 4 * LOG_LIMIT:
            self._compact()

    def text(self) -> str | None:
        """The tail as any database takes it; None when nothing was written."""
        self._compact()
        return escape_text("".join(self._pieces), LOG_LIMIT) if self._size else None

    def since(self, start: int) -> str:
        """What follows the first `start` characters, as far as it is kept."""
        self._compact()
        return self._pieces[0][max(0, start - (self.end - self._size)) :]

    def _compact(self) -> None:
        kept = "".join(self._pieces)[-LOG_LIMIT:]
        self._pieces = [kept]
        self._size = len(kept)
