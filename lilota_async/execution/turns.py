"""How long calls wait for their turn in a process. Pure policy."""

from __future__ import annotations

from collections import deque
from collections.abc import Container

HELD_UP_SECONDS = 0.25  # that a call may take before those behind it are taken back
LONGEST_WAIT_SECONDS = 1.0  # for calls that were all thought to be over in a fraction of that


class SentCalls:
    """When calls were sent that have not begun, as far as the last one of each frame tells."""

    __slots__ = ("_frames",)

    def __init__(self) -> None:
        self._frames: deque[tuple[int, float]] = deque()

    def add(self, last: int, now: float) -> None:
        """A frame was sent, of which this call is the last."""
        self._frames.append((last, now))

    def wait_too_long(self, left: Container[int], begun: int | None, now: float) -> bool:
        """Whether one still waits that was sent long ago.

        Those that have not ended are `left`, and one of them may have `begun`.
        """
        while self._frames and (self._frames[0][0] == begun or self._frames[0][0] not in left):
            self._frames.popleft()
        return bool(self._frames) and now - self._frames[0][1] > LONGEST_WAIT_SECONDS
