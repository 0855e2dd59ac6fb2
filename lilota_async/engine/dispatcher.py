"""Claims what is due for the slots that are free."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from lilota_async.engine.alarm import Alarm
from lilota_async.engine.attempt import Slot
from lilota_async.engine.bursts import LARGEST_BURST, Bursts
from lilota_async.engine.children import ChildTasks
from lilota_async.engine.events import Events
from lilota_async.engine.lifecycle import Intent
from lilota_async.engine.limits import LimitsInUse
from lilota_async.engine.places import Place, Places, Pool
from lilota_async.engine.running import LOOK_SECONDS, RunningAttempts
from lilota_async.errors import NotRunning, StoreError, StoreUnavailable
from lilota_async.registry import Registry
from lilota_async.storage.lookahead import LOOK_BACK_SECONDS
from lilota_async.storage.store import Store
from lilota_async.storage.transitions import Claim, Claimed, ClaimedTask, LimitedClaim, NewTask
from lilota_async.storage.writer import Writer

POLL_SECONDS = 1.0  # for other nodes' tasks, and those that become due
NOTIFIED_POLL_SECONDS = 60.0  # the safety net, while the database tells
CLOCK_GRAIN_SECONDS = 0.002
CONTENDED_SECONDS = 0.05  # after a claim of rows that somebody else held
SLOW_CLAIM_SECONDS = 0.02  # it may have passed over much that others run
RETRY_SECONDS = 0.5  # after a claim that failed
# A server may go on with a statement for as long as a lock keeps it, after the connection of
# whoever sent it was lost: what it writes then, nobody hears. So it is looked for now and then.
DOUBT_SECONDS = 120.0
logger = logging.getLogger("lilota_async")


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatcherSettings:
    node_id: UUID
    progress_is_manual: bool
    grace_seconds: float
    is_notified: Callable[[], bool] = lambda: False
    may_claim: Callable[[], bool] = lambda: True


class Dispatcher:
    """Runs due tasks of registered names while there are slots for them."""

    def __init__(
        self,
        settings: DispatcherSettings,
        registry: Registry,
        writer: Writer,
        store: Store,
        events: Events,
        pools: Mapping[str, Pool],
        children: ChildTasks,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._writer = writer
        self._store = store
        self._pools = pools
        self._wake = asyncio.Event()
        self._unclaimed: set[str] = set()
        """The kinds of which rows may wait that no claim has been sent for."""
        self._looks_ahead = True
        self._looked_at = float("-inf")
        self._alarm = Alarm(self.look)
        self._claim_in_doubt = self._has_complained = False
        self._certain_at = float("-inf")
        self._bursts = Bursts()
        self.limits = LimitsInUse(registry)
        self._places = Places(LARGEST_BURST)
        self._all_begun = asyncio.Event()
        self._loop_task: asyncio.Task[None] | None = None
        self._halting = False
        self._claim_before: datetime | None = None
        self._drained: asyncio.Future[None] | None = None
        self.running = RunningAttempts(
            registry,
            writer,
            events,
            children,
            progress_is_manual=settings.progress_is_manual,
            grace_seconds=settings.grace_seconds,
            bursts=self._bursts,
            on_end=self.on_slot_free,
            on_over=self._on_over,
            on_place_free=self._on_place_free,
            expect=self._expect,
        )

    def start(self) -> None:
        self._certain_at = asyncio.get_running_loop().time()
        self._loop_task = asyncio.create_task(self._dispatch(), name="lilota dispatcher")
        self.wake()  # there may be work from before

    def wake(self) -> None:
        """There may be something to claim."""
        self._unclaimed.update(self._pools)
        self._wake.set()

    def look(self) -> None:
        """There may be something to claim, now or soon."""
        self._looks_ahead = True
        self.wake()

    def on_inserted(self, tasks: Sequence[NewTask]) -> None:
        """New rows are there, as far as is known."""
        if not self._pools:
            return
        self.limits.note_inserted(tasks)
        if any(task.run_at is not None for task in tasks):
            self.look()  # only the database knows how long that is
        else:
            kinds = {self._kind_of(task.name) for task in tasks if task.is_due}
            if kinds:  # the others have nothing new to claim
                self._unclaimed |= kinds
                self._wake.set()
        delays = [task.delay_seconds for task in tasks if task.delay_seconds]
        if delays:
            self._expect(min(delays))

    def on_slot_free(self) -> None:
        """There is a slot to claim for, which matters if something was left unclaimed."""
        if self._unclaimed:
            self._wake.set()

    def _on_over(self) -> None:
        if self._drained is not None:
            self.wake()

    async def _on_place_free(self) -> None:
        self.wake()
        if self._store.has_listeners:
            with contextlib.suppress(StoreError, NotRunning):
                await self._writer.execute(self._store.announce, in_transaction=False)

    def reserve(self, name: str) -> Place | None:
        """A place for a task that is about to be inserted, if nothing waits before it."""
        kind = self._kind_of(name)
        if kind in self._unclaimed or self._halting or self._drained is not None:
            return None
        if self._claim_in_doubt or not self._settings.may_claim():
            return None
        if not self.limits.may_insert_running(name):
            return None
        slots = self._pools[kind].slots() if self._pools else ()
        room = self._bursts.room(name) if kind == "process" else 1
        return self._places.take(slots, room, self.running.slow_slots)

    def begin(self, claimed: ClaimedTask, place: Place) -> None:
        """The task was inserted as running in its place."""
        # In this order: what releases unknown rows may look from another thread, between the two.
        self.running.begin(claimed, place.slot)
        self._give_back(place)
        if self._claim_in_doubt:
            self.wake()

    def leave(self, place: Place) -> None:
        """The task was not inserted, since there is a pause."""
        self._give_back(place)
        self.look()

    def give_up(self, place: Place) -> None:
        """The task was not inserted, as far as is known."""
        self._give_back(place)
        self.doubt()

    def doubt(self) -> None:
        """Rows may say that they run here of which nothing is known here."""
        self._claim_in_doubt = True
        self.wake()

    def _give_back(self, place: Place) -> None:
        self._places.give_back(place)
        if not self._places:
            self._all_begun.set()

    async def drain(self, timeout: float | None) -> None:
        """Go on until nothing is due that was there when this began, and nothing runs.

        Without that limit a node that others schedule for would never come to an end. What a
        database that stays away keeps from being done is left to other nodes.
        """
        with contextlib.suppress(TimeoutError, StoreError):
            async with asyncio.timeout(timeout):
                self._claim_before = await self._writer.execute(self._store.clock)
                self._drained = asyncio.get_running_loop().create_future()
                self.wake()
                while not self._drained.done() and not self._writer.has_given_up:
                    await asyncio.wait([self._drained], timeout=LOOK_SECONDS)

    async def halt(self) -> None:
        """Claim nothing more, and see what is inserted as running begin."""
        while self._places:
            self._all_begun.clear()
            await self._all_begun.wait()
        if self._loop_task is not None:
            self._halting = True  # never cancelled: a claim under way would be forgotten
            self.wake()
            while not self._loop_task.done() and not self._writer.has_given_up:
                await asyncio.wait([self._loop_task], timeout=LOOK_SECONDS)
            self._loop_task = None
        self._alarm.clear()

    async def finish_running(self, timeout: float | None) -> None:
        """Wait for what runs; after `timeout` seconds stop it and put it back.

        What a database that stays away keeps from being written is given up; then other nodes
        take it over.
        """
        await self.running.wait(timeout)
        self.running.stop(Intent.STOP)
        await self.running.wait(None)

    def abandon(self) -> None:
        """Others own what runs here: end it and write nothing."""
        self.running.stop(Intent.LEASE_LOST)

    async def _dispatch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._alarm.set(NOTIFIED_POLL_SECONDS if self._settings.is_notified() else POLL_SECONDS)
            await self._wake.wait()
            self._wake.clear()
            if self._halting:
                return
            if not self._settings.may_claim():
                continue
            try:
                # Set first: while it is, nothing new is inserted as running.
                self._claim_in_doubt |= loop.time() - self._certain_at > DOUBT_SECONDS
                if self._claim_in_doubt and self._pools:
                    await self._release_unknown()
                before = loop.time()
                emptied = [await self._claim_for(kind) for kind in self._pools]
                if (self._looks_ahead or self._may_see_a_crowd(before)) and self._pools:
                    await self._look_ahead()
                    if loop.time() - before > LOOK_BACK_SECONDS / 2:
                        self.wake()  # what became due in between, neither of them has seen
            except Exception as error:
                self._complain(error)
                # A claim may have been committed although its answer never came.
                self._claim_in_doubt = True
                loop.call_later(RETRY_SECONDS, self.wake)
                continue
            self._has_complained = False
            nothing_left = all(emptied) and not self.running and not self._wake.is_set()
            if nothing_left and self._drained is not None and not self._drained.done():
                self._drained.set_result(None)

    def _may_see_a_crowd(self, before: float) -> bool:
        """Whether a look, of which there is one a second at most, may find one, or one gone."""
        now = asyncio.get_running_loop().time()
        is_slow = now - before > SLOW_CLAIM_SECONDS
        return now - self._looked_at > POLL_SECONDS and (is_slow or bool(self.limits.crowded))

    def _complain(self, error: Exception) -> None:
        # Of these the writer says so, once, or is not there any more.
        if not isinstance(error, StoreUnavailable | NotRunning) and not self._has_complained:
            self._has_complained = True
            logger.exception("Claiming tasks failed in an unforeseen way; trying on")

    async def _look_ahead(self) -> None:
        """Set the alarm for what is due next, and find out what claims have to heed.

        At the start, at each poll, when told to, and after a claim that took long.
        """
        self._looks_ahead = False
        self._looked_at = asyncio.get_running_loop().time()
        self.limits.begin_look()
        try:
            (seconds, has_just_become_due), in_use = await self._writer.execute(
                self._look, in_transaction=False
            )
        except StoreError:
            self._looks_ahead = True
            raise
        if seconds is not None:
            self._expect(seconds)
        may_start_more = self.limits.note(in_use)
        if may_start_more or has_just_become_due:
            self.wake()  # the claim that came before the look has not seen it

    async def _look(self, c: Any) -> Any:
        names = [name for name in tuple(self._registry) if not self.limits.is_paused(name)]
        return await self._store.seconds_to_next(c, names), await self._store.limits.in_use(c)

    def _expect(self, seconds: float) -> None:
        """Something becomes due in so many seconds."""
        # The database's clock began to count before this one does; it may count coarsely.
        pause = seconds + CLOCK_GRAIN_SECONDS
        if seconds > 0:
            self._alarm.set(pause)
        else:
            asyncio.get_running_loop().call_later(pause, self.wake)

    async def _release_unknown(self) -> None:
        """Put back what a claim or an insert has made running without telling: nobody runs it."""

        async def release(c: Any) -> bool:
            # Read at the time of the write: what runs by then is known.
            if self._places:
                return False  # what is being inserted as running is not known yet
            await self._store.release_unknown(c, self._settings.node_id, self.running.ids())
            return True

        self._claim_in_doubt = not await self._writer.execute(release)
        self._certain_at = asyncio.get_running_loop().time()

    async def _claim_for(self, kind: str) -> bool:
        """Claim for the free slots of this kind; True when there was nothing to claim."""
        if kind not in self._unclaimed:
            return True
        is_left = self._drained is not None and self._pools[kind].is_stuck  # for other nodes
        if is_left or not any(self._names_of(kind)):  # as of threads, in most applications
            self._unclaimed.discard(kind)
            return True
        if self._pools[kind].size and not self._free_places(kind):
            return False  # until a slot is free
        places: list[Slot] = []

        def choose() -> Claim | LimitedClaim | None:
            """At the last moment: until then, new rows may come, and some of them find places."""
            self._unclaimed.discard(kind)
            names = tuple(self._names_of(kind))
            if not names or not self._pools[kind].size:
                return None
            places.extend(self._free_places(kind))
            if not places:
                self._unclaimed.add(kind)  # to be seen when a slot is free
                return None
            self._places.offer(places, self._depth_of(kind))
            claim = Claim(
                node_id=self._settings.node_id,
                names=names,
                pids=tuple(slot.pid for slot in places),
                created_before=self._claim_before,
            )
            return self.limits.within(claim)

        try:
            claimed = await self._writer.claim(choose)
            self._heed(claimed)
            self._begin_all(places, claimed.tasks)
        finally:
            self._places.withdraw()
        if places and len(claimed.tasks) == len(places):
            self._unclaimed.add(kind)  # there may be more
            if self._free_places(kind):
                self._wake.set()
        return not claimed.tasks and not claimed.waits and kind not in self._unclaimed

    def _kind_of(self, name: str) -> str:
        return self._registry[name].settings.executor

    def _names_of(self, kind: str) -> Iterator[str]:
        return (
            name
            for name, task in self._registry.items()
            if task.settings.executor == kind and not self.limits.is_paused(name)
        )

    def _free_places(self, kind: str) -> list[Slot]:
        return self._places.free(
            self._pools[kind].slots(), self._depth_of(kind), self.running.slow_slots
        )

    def _depth_of(self, kind: str) -> int:
        return self._bursts.depth if kind == "process" else 1

    def _heed(self, claimed: Claimed) -> None:
        """When to try again, where limits have kept something back."""
        if claimed.seconds_to_room is not None:
            self._expect(claimed.seconds_to_room)
        if claimed.is_contended:
            self._alarm.set(CONTENDED_SECONDS)
        if claimed.waits:
            self._alarm.set(POLL_SECONDS)

    def _begin_all(self, places: Sequence[Slot], claimed: Sequence[ClaimedTask]) -> None:
        self._bursts.learn([task.name for task in claimed])
        # The n-th task was given the n-th place.
        run, back = self._bursts.arrange(
            [(slot, task.name, task) for slot, task in zip(places, claimed, strict=False)]
        )
        for slot, task in run:
            self.running.begin(task, slot)
        for task in back:
            self.running.put_back(task)
