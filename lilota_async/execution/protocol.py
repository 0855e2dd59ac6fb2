"""What parent and task process say to each other: frames of JSON, never pickled user data.

A frame is four bytes of length, then one of the messages. The parent decodes them with
their types checked, so that a task process can at worst be found to talk nonsense.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

import msgspec

FRAME_HEADER = 4
MARK_LENGTH = 64  # no mark is longer
# An outcome holds a payload (limited by the codec), a log tail and a failure's text.
FRAME_LIMIT = 256 * 1024 * 1024


class ProtocolError(Exception):
    """The task process wrote something else than frames of messages."""


class Call(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One attempt to run; crosses to the task process inside the executor's own queue.

    `definition` is the pickled `registry.Definition`: made from the registration in this
    process, never from the database.
    """

    serial: int
    task_id: str
    name: str
    attempt: int
    definition: bytes
    input: bytes | None
    tags: tuple[str, ...] = ()
    checkpoint: bytes | None = None
    nominal_time: datetime | None = None
    reports_start: bool = False


class Begin(msgspec.Struct, tag=True, frozen=True, gc=False):
    """The attempt is the one to blame from now on.

    `cpu_seconds` is what the process has used before it.
    """

    serial: int
    cpu_seconds: float = 0.0


class Started(msgspec.Struct, tag=True, frozen=True, gc=False):
    """The task's own code starts: its timeout counts from here."""

    serial: int


class Progress(msgspec.Struct, tag=True, frozen=True, gc=False):
    serial: int
    percentage: int


class Checkpoint(msgspec.Struct, tag=True, frozen=True, gc=False):
    serial: int
    state: msgspec.Raw


class ChildTask(msgspec.Struct, tag=True, frozen=True, omit_defaults=True):
    """The task asks for another one: by its name, or by `module:qualname` of its function."""

    serial: int
    task_id: str
    task: str
    input: msgspec.Raw
    is_reference: bool = False
    after: tuple[str, ...] = ()
    runs_if_failed: bool = False
    at_once: bool = False
    options: dict[str, Any] = {}


class LogRecord(msgspec.Struct, tag=True, frozen=True, gc=False):
    """One record of the task process's `logging`, formatted as far as it needs objects."""

    serial: int
    logger: str
    level: int
    message: str
    created: float
    path: str
    line: int
    exception: str | None = None


class Outcome(msgspec.Struct, tag=True, frozen=True, omit_defaults=True, gc=False):
    """What came of an attempt that ended by itself.

    `failure` is None for success; else a dict of `kind`, `type`, `message`, `traceback`.
    `interrupted` says that a soft interruption reached the task's code, `unstarted` that a
    request to stop was there before it. `lineage` has the qualified names of the exception's
    classes, for the retry policy.
    """

    serial: int
    output: msgspec.Raw = msgspec.Raw()
    failure: dict[str, Any] | None = None
    lineage: tuple[str, ...] = ()
    interrupted: bool = False
    unstarted: bool = False
    progress: int | None = None
    retry_delay: float | None = None
    seconds: float | None = None
    cpu_seconds: float | None = None
    peak_memory_bytes: int | None = None


Message = Begin | Started | Progress | Checkpoint | ChildTask | LogRecord | Outcome


def frame(message: Message) -> bytes:
    """The bytes of one message."""
    body = msgspec.json.encode(message)
    return len(body).to_bytes(FRAME_HEADER, "little") + body


class FrameReader:
    """Cuts what was read from a channel into messages; what is cut short stays behind."""

    __slots__ = ("_buffer", "_decoder")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are complete now; raises ProtocolError for anything else."""
        self._buffer += data
        messages: list[Message] = []
        start = 0
        while len(self._buffer) - start >= FRAME_HEADER:
            body = start + FRAME_HEADER
            size = int.from_bytes(self._buffer[start:body], "little")
            if size > FRAME_LIMIT:
                raise ProtocolError(f"a frame of {size} bytes was announced")
            if len(self._buffer) < body + size:
                break
            # Raw fields keep a view of what they were decoded from: it must not be the buffer.
            content = bytes(self._buffer[body : body + size])
            try:
                messages.append(self._decoder.decode(content))
            except msgspec.MsgspecError as error:
                raise ProtocolError(str(error)) from error
            start = body + size
        del self._buffer[:start]
        return messages


def end_of_output(token: bytes, serial: int) -> bytes:
    """The mark between what one task wrote to its output and what the next one writes."""
    return b"\0" + token + b":%d\0" % serial


class OutputReader:
    """Cuts what was read from the output of a task process into texts and their tasks."""

    __slots__ = ("_buffer", "_mark", "_serials")

    def __init__(self, token: bytes) -> None:
        self._mark = re.compile(b"\0" + token + rb":(\d+)\0")
        self._buffer = b""
        self._serials: deque[int] = deque()

    def expect(self, serials: Iterable[int]) -> None:
        """These tasks come next, in this order."""
        self._serials.extend(serials)

    def withdraw(self, serial: int) -> None:
        """This task and those after it do not come."""
        while self._serials and self._serials[-1] >= serial:
            self._serials.pop()

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """The texts of `data`; what is cut in two, a mark or a character, waits for its rest."""
        data = self._buffer + data
        start = 0
        for mark in self._mark.finditer(data):
            serial = int(mark[1])
            if mark.start() > start:
                yield serial, data[start : mark.start()]
            self._forget(serial)
            start = mark.end()
        cut = data.find(b"\0", max(start, len(data) - MARK_LENGTH))
        end = _whole_characters(data, start, len(data) if cut < 0 else cut)
        self._buffer = data[end:]
        if end > start and self._serials:
            yield self._serials[0], data[start:end]

    def end(self, serial: int) -> Iterator[tuple[int, bytes]]:
        """The task has ended, whether its mark came or not, as after it closed its output."""
        if serial in self._serials:
            if self._buffer:
                yield serial, self._buffer
                self._buffer = b""
            self._forget(serial)

    def _forget(self, serial: int) -> None:
        while self._serials and self._serials[0] <= serial:
            self._serials.popleft()


def _whole_characters(data: bytes, start: int, end: int) -> int:
    """The end of the last character of UTF-8 that is complete."""
    for length in range(1, min(4, end - start) + 1):
        byte = data[end - length]
        if byte & 0xC0 == 0x80:  # not the first byte of a character
            continue
        needed = 1 + (byte >= 0xC0) + (byte >= 0xE0) + (byte >= 0xF0)
        return end - length if needed > length else end
    return end
