"""What one flush of the writer consists of, and how it is applied to the store."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from lilota_async.errors import LilotaError
from lilota_async.storage.backlog import insert_bounded
from lilota_async.storage.operation import ALL_KINDS, Kind, Operation
from lilota_async.storage.store import Store
from lilota_async.storage.transitions import (
    Claim,
    Claimed,
    Finish,
    LimitedClaim,
    Written,
)

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

_MOST_NEW_ROWS = 250  # while they are written, the next ones are made and the last ones are told
_MOST_CALLS = 32  # of several statements each, for which all others wait
_MOST_CHARACTERS = 8_000_000


def take(queue: list[Operation], kinds: frozenset[Kind]) -> list[Operation]:
    """Take the next flush of these kinds from the front of the queue: what fits, sorted by kind.

    Of the ends of attempts all that wait, lest they fall behind the claims of new ones. Of other
    calls a few: what comes after those that are left does not wait for them.
    """
    rows = size = calls = 0
    call = Kind.EXECUTE
    taken: list[Operation] = []
    left: list[Operation] = []
    for number, operation in enumerate(queue):
        if operation.kind not in kinds:
            left.append(operation)
            continue
        if operation.kind is call:
            calls += 1
            if calls > _MOST_CALLS:
                left.append(operation)
                continue
        rows += operation.new_rows
        size += operation.size
        full = rows > _MOST_NEW_ROWS or size > _MOST_CHARACTERS or operation.is_suspicious
        if taken and full:
            left += queue[number:]
            break
        taken.append(operation)
        if operation.is_suspicious:
            left += queue[number + 1 :]
            break
    queue[:] = left
    return sorted(taken, key=lambda operation: operation.kind)


def prepared(batch: Sequence[Operation]) -> list[Operation]:
    """Those of the batch that have something to write; a claim for nothing is answered."""
    left = []
    for operation in batch:
        if operation.is_abandoned:
            continue
        if operation.prepare():
            left.append(operation)
        else:
            operation.succeed(Claimed(tasks=[]))
    return left


class Turns:
    """Whose turn it is, among sets of kinds that follow each other in the store's order.

    So none waits for more than one of each other.
    """

    def __init__(self, order: Sequence[frozenset[Kind]]) -> None:
        self._order = order
        self._last = 0

    def next(self, queue: Sequence[Operation]) -> frozenset[Kind]:
        """The kinds that are next, of those that wait."""
        waiting = {operation.kind for operation in queue}
        for step in range(1, len(self._order) + 1):
            turn = (self._last + step) % len(self._order)
            kinds = self._order[turn]
            if not kinds.isdisjoint(waiting):
                self._last = turn
                # A report must come before the end of its attempt, which would fence it off.
                may_pair = waiting >= _PAIR and (kinds | {Kind.REPORT}) & waiting < _PAIR
                return _PAIR if may_pair and _is_lone_end(queue) else kinds
        return ALL_KINDS


def _is_lone_end(queue: Sequence[Operation]) -> bool:
    return sum(operation.kind is Kind.FINISH for operation in queue) == 1


_PAIR = frozenset({Kind.FINISH, Kind.CLAIM})


def is_pair(batch: Sequence[Operation]) -> bool:
    """Whether one ends and the next begins, for which stores may have a statement."""
    if len(batch) != 2:
        return False
    first, second = (operation.value for operation in batch)
    return isinstance(first, Finish) and not first.children and isinstance(second, Claim)


def is_atomic(store: Store, batch: Sequence[Operation]) -> bool:
    """Whether the store needs no BEGIN and COMMIT for the batch, which is sorted."""
    first, last = batch[0].kind, batch[-1].kind
    if first is not last:
        return store.has_statement_for_pairs and is_pair(batch)
    return store.is_atomic(first, [operation.value for operation in batch])


async def apply(store: Store, c: AsyncConnection, batch: Sequence[Operation]) -> list[Any]:
    """Run a batch that is ordered by kind; one outcome for each operation."""
    if is_pair(batch):
        written, tasks = await store.finish_and_claim(c, *(each.value for each in batch))
        return [written, Claimed(tasks=tasks)]
    outcomes: list[Any] = []
    for kind, group in groupby(batch, key=lambda operation: operation.kind):
        values = [operation.value for operation in group]
        match kind:
            case Kind.ADMIT:
                outcomes += await insert_bounded(store, c, values)
            case Kind.INSERT:
                new = [task for tasks in values for task in tasks]
                refused = await store.insert(c, new) if new else set()
                outcomes += [refused and refused & {task.id for task in tasks} for tasks in values]
            case Kind.DEPENDENTS:
                outcomes += await store.dependencies.insert_each(c, values)
            case Kind.REPORT:
                outcomes += await store.report(c, values)
            case Kind.FINISH:
                applied = await store.finish(c, values)
                await _insert_children(store, c, values, applied)
                outcomes += applied
            case Kind.REQUEUE:
                outcomes += await store.requeue(c, values)
            case Kind.EXECUTE | Kind.LOOK:
                outcomes += [await _outcome(operation, c) for operation in values]
            case Kind.CLAIM:
                outcomes += [await _claim(store, c, claim) for claim in values]
    return outcomes


async def _insert_children(
    store: Store, c: AsyncConnection, finishes: Sequence[Any], applied: Sequence[Written]
) -> None:
    """What completed tasks have asked for; of those that are fenced off it is nobody's wish."""
    children = [
        child
        for finish, is_applied in zip(finishes, applied, strict=True)
        if finish.children and is_applied
        for child in finish.children
    ]
    if children:
        await store.dependencies.insert(c, children, check=False)


async def _claim(store: Store, c: AsyncConnection, claim: Claim | LimitedClaim) -> Claimed:
    if isinstance(claim, Claim):
        return Claimed(tasks=await store.claim(c, claim))
    return await store.limits.claim(c, claim)


async def _outcome(operation: Any, c: AsyncConnection) -> Any:
    """What the operation returns; an error of lilota is an answer and no reason to roll back."""
    try:
        return await operation(c)
    except LilotaError as error:
        return error
