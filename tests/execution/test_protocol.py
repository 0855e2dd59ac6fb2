"""The two streams of a task process, cut wherever a pipe may cut them."""

from __future__ import annotations

import os
import random
import threading
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lilota_async.execution import protocol
from lilota_async.execution.protocol import (
    Begin,
    Call,
    Checkpoint,
    Frames,
    LineReader,
    LogRecord,
    Message,
    Outcome,
    OutputReader,
    Progress,
    ProtocolError,
    Started,
    end_of_output,
    frame,
    line,
)

TOKEN = b"0123456789abcdef"
MESSAGES: list[Message] = [
    Begin(7, 1.5),
    Started(7),
    Progress(7, 50),
    Checkpoint(7, msgspec.Raw(b'{"step":[1,2]}')),
    LogRecord(7, "a.b", 30, "héllo \\x00", 1.25, "/a/b.py", 12, "Traceback"),
    Outcome(7, output=msgspec.Raw(b'{"sum":3}'), progress=100, seconds=0.5, cpu_seconds=0.25),
    Outcome(8, failure={"kind": "error", "type": "E"}, lineage=("a.E",), interrupted=True),
    Outcome(9, unstarted=True),
]


def _plain(message: Message) -> bytes:
    return msgspec.json.encode(message)


def test_lines_cut_at_every_offset_are_whole_messages() -> None:
    """However the bytes come, the messages are those that were sent."""
    stream = b"".join(map(line, MESSAGES))
    for cut in range(len(stream) + 1):
        reader = LineReader()
        got = [*reader.feed(stream[:cut]), *reader.feed(stream[cut:])]
        assert list(map(_plain, got)) == list(map(_plain, MESSAGES))


def test_lines_byte_by_byte() -> None:
    """The smallest pieces, too."""
    reader = LineReader()
    got = [
        message for byte in b"".join(map(line, MESSAGES)) for message in reader.feed(bytes([byte]))
    ]
    assert list(map(_plain, got)) == list(map(_plain, MESSAGES))


def test_a_message_does_not_change_with_what_follows() -> None:
    """Raw fields must not look into a buffer that is used again."""
    reader = LineReader()
    [first] = reader.feed(line(Outcome(1, output=msgspec.Raw(b'"first"'))))
    reader.feed(line(Outcome(2, output=msgspec.Raw(b'"other"'))))
    assert isinstance(first, Outcome)
    assert bytes(first.output) == b'"first"'


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\n",
        b"\n\nnonsense\n",
        b'{"type":"Unknown"}\n',
        b'{"type":"Begin"}\n',
        b'{"type":"Begin","serial":"seven"}\n',
        b'{"type":"Progress","serial":1,"percentage":1e400}\n',
        b'{"type":"Outcome","serial":1,"failure":3}\n',
        b'{"type":"Started","serial":1}\xff\n',
    ],
)
def test_nonsense_is_refused(data: bytes) -> None:
    """A task process that writes something else is at once known to."""
    reader = LineReader().feed(line(Started(7)) + data)
    got: list[Message] = []
    with pytest.raises(ProtocolError):
        got.extend(reader)
    assert got[:1] == [Started(7)]  # what came before it counts


def test_a_line_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process writes does not fill the memory of the application."""
    monkeypatch.setattr(protocol, "LINE_LIMIT", 100)
    reader = LineReader()
    assert reader.feed(b"1" * 60) == []
    with pytest.raises(ProtocolError):
        reader.feed(b"1" * 60)


@pytest.mark.parametrize("piece", [1, 7, 100_000])
def test_calls_arrive_as_they_were_sent(piece: int) -> None:
    """In frames of any size, of which each has the round of its tickets."""
    calls = [
        Call(
            serial=n,
            task_id=UUID(int=n),
            name="n",
            attempt=1,
            definition=b"\x80",
            input=b"1" * size,
        )
        for n, size in enumerate((0, 1, 70_000))
    ]
    reader, writer = os.pipe()
    sent = frame(calls, 3) + frame(calls[:1], 255) + frame([], 0)

    def write() -> None:
        for start in range(0, len(sent), piece):
            os.write(writer, sent[start : start + piece])

    thread = threading.Thread(target=write)
    try:
        thread.start()
        frames = Frames(reader)
        assert [frames.next() for _ in range(3)] == [(3, calls), (255, calls[:1]), (0, [])]
        thread.join()
        os.close(writer)
        assert frames.next() == (0, [])
    finally:
        os.close(reader)


def test_it_is_known_whether_calls_have_arrived() -> None:
    """All of a frame, that is: nobody waits for the rest of one, nor for a pipe that is closed."""
    reader, writer = os.pipe()
    sent = frame([], 7)
    frames = Frames(reader)
    assert not frames.is_next_here()
    os.write(writer, sent[:3])
    assert not frames.is_next_here()
    os.write(writer, sent[3:-1])
    assert not frames.is_next_here()
    os.write(writer, sent[-1:] + sent)
    assert frames.is_next_here()
    assert frames.next() == (7, [])
    assert frames.is_next_here()
    assert frames.next() == (7, [])
    os.close(writer)
    assert not frames.is_next_here()
    os.close(reader)
    assert not frames.is_next_here()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=6))
def test_arbitrary_bytes_are_messages_or_refused(pieces: list[bytes]) -> None:
    """Nothing else than a ProtocolError comes of what a process may write."""
    reader = LineReader()
    try:
        for piece in pieces:
            for message in reader.feed(piece):
                assert isinstance(message, Message)
    except ProtocolError:
        pass


def _texts(reader: OutputReader, *pieces: bytes) -> dict[int, bytes]:
    texts: dict[int, bytes] = {}
    for piece in pieces:
        for serial, text in reader.feed(piece):
            texts[serial] = texts.get(serial, b"") + text
    return texts


def _reader(*serials: int) -> OutputReader:
    reader = OutputReader(TOKEN)
    reader.expect(serials)
    return reader


def test_marks_cut_at_every_offset_tell_the_tasks_apart() -> None:
    """Also with two cuts, and with text of more than one byte to a character."""
    stream = (
        "fïrst €\n".encode() + end_of_output(TOKEN, 1)
        + end_of_output(TOKEN, 2)
        + b"\0third\0" + end_of_output(TOKEN, 3)
    )  # fmt: skip
    expected = {1: "fïrst €\n".encode(), 3: b"\0third\0"}
    for first in range(len(stream) + 1):
        assert _texts(_reader(1, 2, 3), stream[:first], stream[first:]) == expected
        second = random.randint(first, len(stream))
        pieces = (stream[:first], stream[first:second], stream[second:])
        assert _texts(_reader(1, 2, 3), *pieces) == expected
    assert _texts(_reader(1, 2, 3), *(bytes([byte]) for byte in stream)) == expected


def test_a_text_ends_with_a_whole_character() -> None:
    """Each piece can be read by itself; bytes that are no text pass as they are."""
    reader = _reader(1)
    stream = "añ€😀b".encode()
    got = [text for byte in stream for _, text in reader.feed(bytes([byte]))]
    assert b"".join(got) == stream
    assert "".join(text.decode() for text in got) == "añ€😀b"
    assert _texts(_reader(1), b"\xff\xfe", b"\x80\x80\x80\x80\x80") == {
        1: b"\xff\xfe\x80\x80\x80\x80\x80"
    }


def test_a_mark_may_come_after_the_end_that_it_marks() -> None:
    """What is read from then on is the next task's."""
    reader = _reader(1, 2)
    assert _texts(reader, b"one") == {1: b"one"}
    assert list(reader.end(1)) == []
    assert _texts(reader, end_of_output(TOKEN, 1) + b"two") == {2: b"two"}


def test_a_task_that_closed_its_output_takes_none_of_the_next() -> None:
    """Its end comes by the other stream, without a mark in this one."""
    reader = _reader(1, 2)
    texts = list(reader.feed(b"one\0cut"))
    texts += list(reader.end(1))
    texts += list(reader.feed(b"two" + end_of_output(TOKEN, 2)))
    assert b"".join(text for serial, text in texts if serial == 1) == b"one\0cut"
    assert [text for serial, text in texts if serial == 2] == [b"two"]
    assert list(reader.end(2)) == []


def test_a_foreign_mark_is_text() -> None:
    """Only who has the token can end a task's output."""
    forged = end_of_output(b"f" * 16, 1)
    assert _texts(_reader(1), b"a" + forged, b"b" * 100) == {1: b"a" + forged + b"b" * 100}


def test_what_is_written_between_tasks_is_nobodys() -> None:
    """As by a thread that a task has left, while nothing runs."""
    reader = _reader(1)
    assert _texts(reader, end_of_output(TOKEN, 1) + b"late") == {}
    reader.expect([2])
    assert _texts(reader, b"own" + end_of_output(TOKEN, 2)) == {2: b"own"}


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=80), min_size=1, max_size=5), st.integers(1, 30))
def test_any_output_comes_back_in_any_pieces(texts: list[bytes], size: int) -> None:
    """Bytes of all kinds, in pieces of all sizes."""
    serials = range(1, len(texts) + 1)
    stream = b"".join(
        text + end_of_output(TOKEN, serial) for serial, text in zip(serials, texts, strict=True)
    )
    pieces = [stream[start : start + size] for start in range(0, len(stream), size)]
    got = _texts(_reader(*serials), *pieces)
    assert [got.get(serial, b"") for serial in serials] == texts
