"""What goes to a task process, when it does not fit into its pipe."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lilota_async.execution.outbox import Outbox
from tests.execution import tasks
from tests.execution.support import Bench, Heard, call_of, run, until, value_of

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    """The reader and the writer of a pipe; the writer does not block."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        yield reader, writer
    finally:
        os.close(reader)
        os.close(writer)


async def test_everything_arrives_in_its_order() -> None:
    """However slowly it is read, and without holding up the loop."""
    pieces = [bytes([number]) * size for number, size in enumerate((1, 300_000, 2, 100_000))]
    loop = asyncio.get_running_loop()
    with pipe() as (reader, writer):
        outbox = Outbox(loop, writer)
        for piece in pieces:
            outbox.send(piece)
        got = b""
        while len(got) < sum(map(len, pieces)):
            got += await loop.run_in_executor(None, os.read, reader, 50_000)
        assert got == b"".join(pieces)
        assert not loop.remove_writer(writer)  # it does not wait for what it does not need
        outbox.send(b"last")
        assert os.read(reader, 10) == b"last"
        outbox.close()


async def test_nothing_is_written_after_the_close() -> None:
    """The descriptor may be another's by then."""
    loop = asyncio.get_running_loop()
    with pipe() as (reader, writer):
        outbox = Outbox(loop, writer)
        outbox.send(b"1" * 200_000)
        outbox.close()
        outbox.send(b"2")
        assert not loop.remove_writer(writer)
        os.set_blocking(reader, False)
        got = b""
        while piece := _read(reader):
            got += piece
        assert set(got) == set(b"1")
        assert len(got) < 200_000


async def test_a_reader_that_is_gone_is_no_error() -> None:
    """The death of the process tells of it; what was on its way is forgotten."""
    loop = asyncio.get_running_loop()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    outbox = Outbox(loop, writer)
    outbox.send(b"1" * 200_000)
    os.close(reader)
    await until(lambda: not outbox._left)
    outbox.send(b"2")
    assert not outbox._left
    outbox.close()
    os.close(writer)


@pytest.mark.usefixtures("whole_bursts")
async def test_calls_that_do_not_fit_into_the_pipe(cells: Bench) -> None:
    """They are run all the same, each with its own input."""
    cell = await cells.cell()
    texts = [str(number) * 50_000 for number in range(10, 40)]
    running = [run(cell, call_of(tasks.echo, text), Heard()) for text in texts]
    assert [value_of(await each) for each in running] == texts


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 100_000)
    except BlockingIOError:
        return b""
