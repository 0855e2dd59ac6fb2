"""What parent and task process say to each other: MessagePack and JSON, never pickled user data.

To the process go frames: four bytes of length, then a list of calls. From it come lines, each a
message in JSON. The parent decodes them with their types checked, so that a task process can at
worst be found to talk nonsense.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from lilota_async.codec import Misfit

FRAME_HEADER = 4
READ_SIZE = 64 * 1024  # what a pipe holds, on most systems
MARK_LENGTH = 64  # no mark is longer
# An outcome holds a payload (limited by the codec), a log tail and a failure's text.
LINE_LIMIT = 256 * 1024 * 1024


class ProtocolError(Exception):
    """The task process wrote something else than lines of messages."""


class Call(msgspec.Struct, frozen=True, kw_only=True, gc=False, array_like=True):
    """One attempt to run.

    `definition` is the pickled `registry.Definition`: made from the registration in this
    process, never from the database.
    """

    serial: int
    task_id: UUID
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


def frame(calls: Sequence[Call], round: int) -> bytes:
    """What is sent to a task process; no calls ask it to end."""
    body = msgspec.msgpack.encode((round, calls))
    return len(body).to_bytes(FRAME_HEADER, "little") + body


class Frames:
    """Reads what a task process is to do from the descriptor that is its end of the pipe."""

    __slots__ = ("_buffer", "_decoder", "_descriptor", "_poll")

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)
        self._buffer = bytearray()
        self._decoder = msgspec.msgpack.Decoder(tuple[int, list[Call]])

    def is_next_here(self) -> bool:
        """Whether `next` would not wait."""
        if self._poll.poll(0):
            with contextlib.suppress(OSError):  # closed by a task
                self._buffer += os.read(self._descriptor, READ_SIZE)
        header = self._buffer[:FRAME_HEADER]
        size = FRAME_HEADER + int.from_bytes(header, "little")
        return len(header) == FRAME_HEADER and len(self._buffer) >= size

    def next(self) -> tuple[int, list[Call]]:
        """Wait for the next calls, and the round of their tickets; no calls at the end."""
        size = int.from_bytes(self._take(FRAME_HEADER) or bytes(FRAME_HEADER), "little")
        body = self._take(size)
        return self._decoder.decode(body) if body else (0, [])

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            data = os.read(self._descriptor, max(READ_SIZE, size - len(self._buffer)))
            if not data:
                return b""
            self._buffer += data
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken


def raw(json: bytes) -> msgspec.Raw:
    """JSON as a part of a message, in one line; raises Misfit for what is no JSON.

    The encoder passes a `msgspec.Raw` of the task's own on as it is.
    """
    try:
        if b"\n" in json:
            return msgspec.Raw(msgspec.json.format(json, indent=-1))
        return msgspec.json.decode(json, type=msgspec.Raw)
    except msgspec.MsgspecError as error:
        raise Misfit("$", str(error)) from error


def line(message: Message) -> bytes:
    """The bytes of one message, in which the encoder leaves no other end of a line."""
    return msgspec.json.encode(message) + b"\n"


def line_of(outcome: Outcome) -> bytes:
    """The bytes of an outcome, whatever its failure is called."""
    try:
        return line(outcome)
    except Exception as error:  # a class may be called what no JSON can say
        message = f"the outcome could not be described: {type(error).__name__}"
        failure = {"kind": "error", "type": "Exception", "message": message, "traceback": ""}
        return line(Outcome(outcome.serial, failure=failure, interrupted=outcome.interrupted))


class LineReader:
    """Cuts what was read from a channel into messages; what is cut short stays behind."""

    __slots__ = ("_decoder", "_left", "_size")

    def __init__(self) -> None:
        self._left: list[bytes] = []
        self._size = 0
        self._decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)

    def feed(self, data: bytes) -> Iterable[Message]:
        """The messages that are complete now; raises ProtocolError where there is anything else."""
        whole, end, left = data.rpartition(b"\n")
        if end:
            # Raw fields keep a view of what they were decoded from, which nobody changes.
            lines = b"".join((*self._left, whole)) if self._left else whole
            self._left, self._size = [], 0
        if left:
            self._left.append(left)
            self._size += len(left)
            if self._size > LINE_LIMIT:
                raise ProtocolError(f"a message has more than {LINE_LIMIT} bytes")
        if not end:
            return []
        try:
            return self._decoder.decode_lines(lines)
        except msgspec.MsgspecError:
            return self._until_nonsense(lines)

    def _until_nonsense(self, lines: bytes) -> Iterator[Message]:
        for line in lines.split(b"\n"):
            try:
                yield self._decoder.decode(line)
            except msgspec.MsgspecError as error:
                raise ProtocolError(str(error)) from error


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
        """The task has ended, and what it wrote was read, if not yet the mark after that."""
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
