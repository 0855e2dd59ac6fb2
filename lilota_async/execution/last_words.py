"""What a task has written at last, for the case that it dies of it."""

from __future__ import annotations

from lilota_async.codec import escape_text

_KEPT_BYTES = 16 * 1024
_FATAL_ERROR = b"Fatal Python error: "  # what faulthandler begins with


class LastWords:
    """The end of what the calls of a process write, of one call at a time."""

    __slots__ = ("_said", "_serial")

    def __init__(self) -> None:
        self._serial = 0
        self._said = b""

    def add(self, serial: int, text: bytes) -> None:
        """The call has written this."""
        if serial != self._serial:
            self._serial, self._said = serial, b""
        self._said = (self._said + text)[-_KEPT_BYTES:]

    def fatal_error(self, serial: int) -> str:
        """What faulthandler has written of the death of this call's process, if it has."""
        _, found, text = self._said.rpartition(_FATAL_ERROR)
        if serial != self._serial or not found:
            return ""
        return escape_text((found + text).decode(errors="replace"), _KEPT_BYTES)
