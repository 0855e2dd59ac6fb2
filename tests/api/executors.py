"""Executors that are not those of the standard library."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from typing import Any


class Cluster(Executor):
    """As a Dask client's: its futures do not say what runs, and it ends nothing."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(1)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def tell(done: Future[Any]) -> None:
            with suppress(InvalidStateError):  # it was cancelled
                future.set_result(done.result())

        self._threads.submit(fn, *args, **kwargs).add_done_callback(tell)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._threads.shutdown(wait, cancel_futures=cancel_futures)


class Counting(ThreadPoolExecutor):
    """Knows how many calls it had at most."""

    def __init__(self) -> None:
        super().__init__(4)
        self.most = 0
        self._now: set[Future[Any]] = set()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = super().submit(fn, *args, **kwargs)
        self._now = {each for each in self._now if not each.done()} | {future}
        self.most = max(self.most, len(self._now))
        return future


class Refusing(Executor):
    """Takes nothing for a while."""

    def __init__(self) -> None:
        self.refuses = True
        self.asked = 0
        self._threads = ThreadPoolExecutor(4)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.asked += 1
        if self.refuses:
            raise ConnectionError("the cluster is away")
        return self._threads.submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._threads.shutdown(wait, cancel_futures=cancel_futures)


class Inline(Executor):
    """Runs what it is given before it answers."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future
