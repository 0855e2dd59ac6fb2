"""The calls that go to a task process: written at once, or as its pipe has room."""

from __future__ import annotations

import asyncio
import os
from collections import deque


class Outbox:
    """The write end of a pipe that must not block the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, descriptor: int) -> None:
        self._loop = loop
        self._descriptor = descriptor
        self._left: deque[memoryview] = deque()
        self._closed = False

    def send(self, data: bytes) -> None:
        """Write all of it, sooner or later; nothing, when nobody reads any more."""
        if self._closed:
            return
        self._left.append(memoryview(data))
        if len(self._left) == 1:
            self._write()
            if self._left:
                self._loop.add_writer(self._descriptor, self._go_on)

    def close(self) -> None:
        """Forget what is not written."""
        if not self._closed:
            self._closed = True
            self._left.clear()
            self._loop.remove_writer(self._descriptor)

    def _write(self) -> None:
        try:
            while self._left:
                data = self._left[0]
                written = os.write(self._descriptor, data)
                if written < len(data):
                    self._left[0] = data[written:]
                else:
                    self._left.popleft()
        except BlockingIOError:
            pass
        except OSError:  # the process has ended, of which its death tells
            self._left.clear()

    def _go_on(self) -> None:
        self._write()
        if not self._left:
            self._loop.remove_writer(self._descriptor)
