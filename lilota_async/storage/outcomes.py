"""What came of a flush, told a few at a time: those who hear of it have work to do."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from lilota_async.storage.operation import Kind, Operation
from lilota_async.storage.transitions import ClaimedTask

_logger = logging.getLogger("lilota_async")

_MOST_TOLD = 128  # in two milliseconds; fewer make the next flushes smaller, and so slower


class Outcomes:
    """Outcomes of operations that are to be told.

    `put_back` gets tasks that were claimed for somebody who has gone away.
    """

    def __init__(self, put_back: Callable[[ClaimedTask], None]) -> None:
        self._left: deque[tuple[Operation, Any]] = deque()
        self._put_back = put_back

    def add(self, batch: Iterable[Operation], outcomes: Iterable[Any]) -> None:
        """These are committed."""
        self._left.extend(zip(batch, outcomes, strict=True))

    async def tell(self) -> None:
        """Tell all, and let others run in between."""
        while self._left:
            self._tell(_MOST_TOLD)
            if self._left:
                await asyncio.sleep(0)

    def tell_at_once(self) -> None:
        """Tell all, since there is nobody to go on with it later."""
        self._tell(len(self._left))

    def _tell(self, count: int) -> None:
        for _ in range(min(count, len(self._left))):
            operation, outcome = self._left.popleft()
            try:
                self._tell_one(operation, outcome)
            except Exception as error:
                # A mistake of who hears it must not keep others from hearing theirs.
                _logger.exception("The outcome of a write was not heard")
                operation.fail(error)

    def _tell_one(self, operation: Operation, outcome: Any) -> None:
        if operation.kind is Kind.CLAIM and operation.future.done():
            for task in outcome.tasks:
                self._put_back(task)
        elif isinstance(outcome, Exception):
            operation.fail(outcome)
        else:
            operation.succeed(outcome)
