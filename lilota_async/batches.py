"""Many inputs at once: encoded while the database writes what came before, chunk by chunk."""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
)
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
from typing_extensions import Unpack

from lilota_async.errors import ConfigurationError, InvalidInput, PartlyScheduled
from lilota_async.models.values import TaskId
from lilota_async.options import RowOptions
from lilota_async.registry import RegisteredTask
from lilota_async.scheduling import new_task

if TYPE_CHECKING:
    from lilota_async.storage.transitions import NewTask

ROWS_PER_CHUNK = 1000
CHARACTERS_PER_CHUNK = 4_000_000
AT_ONCE = 100  # so that others on the loop wait for a millisecond or so

Inputs: TypeAlias = Iterable[Any] | AsyncIterable[Any]
Insert: TypeAlias = Callable[["list[NewTask]", int], Coroutine[Any, Any, None]]
"""Writes rows; so many are to follow, as far as is known."""
_Chunk: TypeAlias = list[str | None]


async def insert_all(
    insert: Insert,
    registered: RegisteredTask,
    inputs: Inputs,
    *,
    commits: bool,
    **options: Unpack[RowOptions],
) -> list[TaskId[Any]]:
    """Insert one task for each input; their ids, in this order.

    The options are checked first, then a collection as a whole. Of an iterator, two chunks are
    held at a time. When `insert` is not what `commits`, it is awaited before the next input is
    looked at, since it may use the same connection; and then there is no PartlyScheduled.
    """
    _check_inputs(inputs)
    prototype = new_task(registered, None, **options)
    chunks = _encoded(registered, inputs)
    if not isinstance(inputs, Collection):
        return await _Batch(insert, commits).write(prototype, chunks)
    checked = [chunk async for chunk in chunks]
    rows = sum(len(chunk) for chunk in checked)
    return await _Batch(insert, commits, rows).write(prototype, _each(checked))


def _check_inputs(inputs: Inputs) -> None:
    """Raise ConfigurationError unless these are several inputs."""
    if isinstance(inputs, str | bytes | bytearray | memoryview | Mapping) or not isinstance(
        inputs, Iterable | AsyncIterable
    ):
        raise ConfigurationError(
            "inputs takes several inputs, such as a list of them, not "
            f"{inputs!r:.250}; give a single one to schedule(), or put it into a list"
        )


class _Batch:
    """The chunks of one call: one is written while the next is encoded."""

    def __init__(self, insert: Insert, commits: bool, rows: int = 0) -> None:
        self._insert = insert
        self._commits = commits
        self._left = rows
        self._written: list[TaskId[Any]] = []
        self._writing: asyncio.Task[None] | None = None
        self._ids: list[TaskId[Any]] = []  # of what is being written

    async def write(self, prototype: NewTask, chunks: AsyncIterator[_Chunk]) -> list[TaskId[Any]]:
        try:
            async for chunk in chunks:
                rows = await _rows(prototype, chunk)
                await self._finish()
                self._begin(rows)
                if not self._commits:
                    await self._finish()
            await self._finish()
        except Exception as error:
            raise await self._told(error) from error
        finally:
            if self._writing is not None:
                self._writing.cancel()
        return self._written

    def _begin(self, rows: list[NewTask]) -> None:
        self._left -= len(rows)
        self._ids = [row.id for row in rows]
        self._writing = asyncio.create_task(self._insert(rows, max(0, self._left)))

    async def _finish(self) -> None:
        if self._writing is not None:
            await self._writing
            self._writing = None
            self._written += self._ids

    async def _told(self, error: Exception) -> Exception:
        """What the caller is told: of an error in the chunk before, rather than of a later one."""
        try:
            await self._finish()
        except Exception as earlier:
            error, self._writing = earlier, None
        if self._commits and self._written:
            return PartlyScheduled(self._written, error)
        return error


async def _rows(prototype: NewTask, chunk: _Chunk) -> list[NewTask]:
    replace = msgspec.structs.replace
    rows: list[NewTask] = []
    for some in _pieces(chunk):
        rows += [replace(prototype, id=TaskId(), input=each) for each in some]
        await asyncio.sleep(0)  # the chunk before is on its way meanwhile
    return rows


async def _encoded(registered: RegisteredTask, inputs: Inputs) -> AsyncIterator[_Chunk]:
    """The inputs as JSON, in chunks."""
    chunk: _Chunk = []
    characters = number = 0
    async for some in _slices(inputs):
        for each in some:
            try:
                encoded = registered.encode_input(each)
            except InvalidInput as error:
                raise InvalidInput(error.task, error.field, error.reason, index=number) from None
            number += 1
            chunk.append(encoded)
            characters += len(encoded or "")
            if len(chunk) == ROWS_PER_CHUNK or characters >= CHARACTERS_PER_CHUNK:
                yield chunk
                chunk, characters = [], 0
    if chunk:
        yield chunk


async def _slices(inputs: Inputs) -> AsyncIterator[list[Any]]:
    if isinstance(inputs, AsyncIterable):
        some: list[Any] = []
        async for each in inputs:
            some.append(each)
            if len(some) == AT_ONCE:
                yield some
                some = []
        yield some
        return
    for some in _pieces(inputs):
        yield some
        await asyncio.sleep(0)  # the loop has others to serve


def _pieces(inputs: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(inputs)
    while some := list(islice(iterator, AT_ONCE)):
        yield some


async def _each(chunks: list[_Chunk]) -> AsyncIterator[_Chunk]:
    """The chunks, let go of one by one."""
    chunks.reverse()
    while chunks:
        yield chunks.pop()
