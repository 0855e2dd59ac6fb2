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
)
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
from typing_extensions import Unpack

from lilota_async.errors import InvalidInput, PartlyScheduled
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

    A collection is checked as a whole first. Of an iterator, two chunks are held at a time. When
    `insert` is not what `commits`, it is awaited before the next input is looked at, since it may
    use the same connection; and then there is no PartlyScheduled.
    """
    chunks = _encoded(registered, inputs, options)
    if not isinstance(inputs, Collection):
        return await _Batch(insert, commits).write(chunks)
    checked = [chunk async for chunk in chunks]
    rows = sum(len(chunk) for _, chunk in checked)
    return await _Batch(insert, commits, rows).write(_each(checked))


class _Batch:
    """The chunks of one call: one is written while the next is encoded."""

    def __init__(self, insert: Insert, commits: bool, rows: int = 0) -> None:
        self._insert = insert
        self._commits = commits
        self._left = rows
        self._written: list[TaskId[Any]] = []
        self._writing: asyncio.Task[None] | None = None
        self._ids: list[TaskId[Any]] = []  # of what is being written

    async def write(self, chunks: AsyncIterator[tuple[NewTask, _Chunk]]) -> list[TaskId[Any]]:
        try:
            async for prototype, chunk in chunks:
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


async def _encoded(
    registered: RegisteredTask, inputs: Inputs, options: RowOptions
) -> AsyncIterator[tuple[NewTask, _Chunk]]:
    """The inputs as JSON, in chunks, each with a row to make the others of."""
    prototype: NewTask | None = None
    chunk: _Chunk = []
    characters = number = 0
    async for some in _slices(inputs):
        for each in some:
            try:
                encoded = registered.encode_input(each)
            except InvalidInput as error:
                raise InvalidInput(error.task, error.field, error.reason, index=number) from None
            if prototype is None:
                prototype = new_task(registered, each, **options)
            number += 1
            chunk.append(encoded)
            characters += len(encoded or "")
            if len(chunk) == ROWS_PER_CHUNK or characters >= CHARACTERS_PER_CHUNK:
                yield prototype, chunk
                chunk, characters = [], 0
    if prototype is not None and chunk:
        yield prototype, chunk


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


async def _each(
    chunks: list[tuple[NewTask, _Chunk]],
) -> AsyncIterator[tuple[NewTask, _Chunk]]:
    """The chunks, let go of one by one."""
    chunks.reverse()
    while chunks:
        yield chunks.pop()
