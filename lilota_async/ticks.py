"""The ticks of periodic tasks: which there are, and which of them are due. Pure: no clock, no I/O.

Every node computes the same ticks, and the same id for each, so that the database's primary key
decides who writes the row. All times are aware and UTC; only the fields of a cron expression are
read in its own timezone.

While a node runs, every tick counts, a few seconds late or not. Those that were missed, because no
node ran before this one or all stood still for longer, are passed over as the task wants it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from zoneinfo import ZoneInfo

from lilota_async.errors import ConfigurationError
from lilota_async.models.values import Duration, TaskId, checked_span

CatchUp = Literal["skip", "one", "all"]
LATE = timedelta(seconds=10)  # from then on a tick was missed
LONGEST_CHANGE = timedelta(hours=3)  # of a timezone's offset
SHORTEST_SECONDS = 0.1
LONGEST_EXPRESSION = 150
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cron:
    """Ticks by a cron expression. `str()` of it tells one from another."""

    expression: str
    timezone: str

    def __str__(self) -> str:
        return f"cron {self.expression} {self.timezone}"

    def after(self, time: datetime) -> Iterator[datetime]:
        """The ticks after `time`, in order."""
        for tick in self._ticks(time):
            # Fields that mean a time twice, as when the clock is put back, have come before.
            if tick > time:
                yield tick
                time = tick

    def latest(self, time: datetime) -> datetime | None:
        """The last tick that is not after `time`; None without one."""
        # Backwards out of an hour that comes twice, the library would leave out its first half.
        zone = ZoneInfo(self.timezone)
        was_put_back = _offset(time, zone) != _offset(time - LONGEST_CHANGE, zone)
        ahead = LONGEST_CHANGE if was_put_back else timedelta(seconds=1)
        ticks = self._ticks(time + ahead, reverse=True)
        return next((tick for tick in ticks if tick <= time), None)

    def _ticks(self, time: datetime, *, reverse: bool = False) -> Iterator[datetime]:
        simulation = _cronsim().CronSim
        local = time.astimezone(ZoneInfo(self.timezone))
        for tick in simulation(self.expression, local, reverse=reverse):
            yield tick.astimezone(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Every:
    """Ticks at the multiples of a period since 1970, the same on every node."""

    period: timedelta

    def __str__(self) -> str:
        return f"every {self.period / _MICROSECOND:.0f} us"

    def after(self, time: datetime) -> Iterator[datetime]:
        """The ticks after `time`, in order."""
        tick = self.latest(time)
        while True:
            tick += self.period
            yield tick

    def latest(self, time: datetime) -> datetime:
        """The last tick that is not after `time`."""
        return _EPOCH + (time - _EPOCH) // self.period * self.period


@dataclass(frozen=True, slots=True, kw_only=True)
class Periodic:
    """When a task is scheduled by itself."""

    rhythm: Cron | Every
    catch_up: CatchUp

    def due(self, after: datetime, now: datetime, limit: int) -> list[datetime]:
        """The ticks after `after` that are not after `now`: the first ones, at most `limit`."""
        ticks: list[datetime] = []
        for tick in self.rhythm.after(after):
            if tick > now or len(ticks) == limit:
                break
            ticks.append(tick)
        return ticks

    def pass_over(self, after: datetime, now: datetime) -> datetime:
        """From when on ticks count, when those between `after` and `now` were missed."""
        if self.catch_up == "all":
            return after
        if self.catch_up == "skip":
            return max(after, now)
        latest = self.rhythm.latest(now)
        return after if latest is None else max(after, latest - _MICROSECOND)

    def next(self, after: datetime) -> datetime | None:
        """The first tick after `after`; None when there is none for fifty years."""
        return next(self.rhythm.after(after), None)


def read_periodic(
    cron: str | None, timezone: str | None, every: Duration | None, catch_up: CatchUp
) -> Periodic | None:
    """What `register()` was given; ConfigurationError for what cannot be kept."""
    if timezone is not None and cron is None:
        raise ConfigurationError("timezone= is that of cron=; leave it out, or give cron= as well")
    if cron is not None and every is not None:
        raise ConfigurationError("A task has cron= or every=, not both; leave one out")
    if cron is not None:
        rhythm = _read_cron(cron, "UTC" if timezone is None else timezone)
        return Periodic(rhythm=rhythm, catch_up=catch_up)
    if every is not None:
        period = timedelta(seconds=checked_span("every", every, least=SHORTEST_SECONDS))
        return Periodic(rhythm=Every(period=period), catch_up=catch_up)
    return None


def tick_id(name: str, tick: datetime) -> TaskId[Any]:
    """The id of a tick's row: like a new one of that time, with a hash in place of chance."""
    digest = hashlib.sha256(f"{tick.isoformat()} {name}".encode()).digest()
    milliseconds = (tick - _EPOCH) // timedelta(milliseconds=1)
    number = (milliseconds & ((1 << 48) - 1)) << 80 | int.from_bytes(digest[:10])
    number = number & ~(0xF << 76) | 0x7 << 76
    number = number & ~(0b11 << 62) | 0b10 << 62
    return TaskId(f"{number:032x}")


def _offset(time: datetime, zone: ZoneInfo) -> timedelta | None:
    return time.astimezone(zone).utcoffset()


def _read_cron(expression: str, timezone: str) -> Cron:
    if not isinstance(expression, str) or len(expression) > LONGEST_EXPRESSION:
        raise ConfigurationError(
            f"cron= is a text such as '*/5 * * * *' of up to {LONGEST_EXPRESSION} characters"
        )
    try:
        ZoneInfo(timezone)
    except Exception:
        raise ConfigurationError(
            f"There is no timezone {timezone!r}; give a name such as 'Europe/Berlin', and install "
            "the package tzdata where the system has no timezones"
        ) from None
    library = _cronsim()
    try:
        library.CronSim(expression, _EPOCH)
    except library.CronSimError as error:
        raise ConfigurationError(
            f"The cron expression {expression!r} cannot be read ({error}); it has five fields: "
            "minute, hour, day of the month, month, day of the week (or six, with seconds first)"
        ) from None
    return Cron(expression=" ".join(expression.split()), timezone=timezone)


def _cronsim() -> Any:
    try:
        import cronsim
    except ImportError:
        raise ConfigurationError(
            "cron= needs the package cronsim; run: pip install 'lilota-async[cron]'"
        ) from None
    return cronsim
