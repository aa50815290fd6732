"""What a saboteur is made of: the memory store, and the places where it breaks."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

from anyio.lowlevel import checkpoint
from msgspec.structs import replace

from sayiir_persist import MemoryStore
from sayiir_persist.adapters.memory import MemoryDriver
from sayiir_persist.backend import StandardBackend
from sayiir_persist.conformance import ManualClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import timedelta

    from sayiir_persist import PersistentBackend
    from sayiir_persist.aggregate import Aggregate
    from sayiir_persist.driver import (
        Answer,
        Extend,
        Extended,
        Page,
        Poll,
        Polled,
        Read,
        Row,
        Take,
        Taken,
        Unit,
        View,
    )

T = TypeVar("T", bound=type)


class SabotagedDriver(MemoryDriver):
    """The memory driver, with handles for those who break it.

    Lets others run before each of its steps, as every driver with a wire does; the steps
    themselves (`write`, `grant`, ...) never suspend.
    """

    async def read(self, reads: Sequence[Read]) -> Sequence[View | None]:
        await checkpoint()
        return await super().read(reads)

    async def apply(self, units: Sequence[Unit]) -> Sequence[Answer]:
        await checkpoint()
        return [self.write(unit) for unit in units]

    async def claim(self, take: Take) -> Taken:
        await checkpoint()
        return await self.grant(take)

    async def extend(self, extend: Extend) -> Extended:
        await checkpoint()
        return await self.prolong(extend)

    async def poll(self, query: Poll) -> Polled:
        await checkpoint()
        return await self.offer(query)

    async def page(self, query: Page) -> Sequence[Row]:
        await checkpoint()
        return await super().page(query)

    def _view(self, read: Read, now: int) -> View | None:
        return self.show(read, now)

    def show(self, read: Read, now: int) -> View | None:
        """Read one instance."""
        return super()._view(read, now)

    def write(self, unit: Unit) -> Answer:
        """Carry out one write: what most saboteurs break."""
        return self._apply(unit)

    async def grant(self, take: Take) -> Taken:
        """Claim one task."""
        return await super().claim(take)

    async def prolong(self, extend: Extend) -> Extended:
        """Move the end of a claim."""
        return await super().extend(extend)

    async def offer(self, query: Poll) -> Polled:
        """Find due work, and claim it if that is asked for."""
        return await super().poll(query)

    def row(self, instance_id: str) -> Aggregate | None:
        """The stored row itself."""
        return self._space.aggregates.get(instance_id)

    def rows(self) -> dict[str, Aggregate]:
        """All rows of the namespace."""
        return self._space.aggregates

    def reindex(self, instance_id: str) -> None:
        """Let dispatch see what was done to a row behind its back."""
        self._space.store(instance_id, self.row(instance_id), self._space.shelf(instance_id))

    @property
    def notes(self) -> dict[Any, Any]:
        """What the saboteurs on one namespace keep between calls, all of them together."""
        return _notes.setdefault(self._space, {})

    @contextmanager
    def clock_ahead(self, micros: int) -> Iterator[None]:
        """Go by a clock that shows another time; nothing may await meanwhile."""
        true, self._store = self._store, _OffClock(self._store, micros)

        try:
            yield
        finally:
            self._store = true


class SabotagedBackend(StandardBackend[SabotagedDriver]):
    """The memory backend, open to those who break what is above the driver."""

    def __init__(self, store: MemoryStore, **options: Any) -> None:
        super().__init__(lambda chosen: SabotagedDriver(store, chosen.namespace), **options)


class _OffClock(MemoryStore):
    def __init__(self, true: MemoryStore, ahead: int) -> None:
        super().__init__()
        self._true, self._ahead = true, ahead

    def now(self) -> int:
        return self._true.now() + self._ahead


_notes: WeakKeyDictionary[Any, dict[Any, Any]] = WeakKeyDictionary()


def unguarded(unit: Unit, *predicates: str) -> Unit:
    """The write, with some predicates of its guard left out."""
    return replace(unit, guard=replace(unit.guard, **dict.fromkeys(predicates)))


# --- The list -----------------------------------------------------------------------------------


class Saboteur(NamedTuple):
    """A broken store, and the checks that must find out."""

    name: str
    sentence: str
    caught_by: tuple[str, ...]
    make: Callable[..., PersistentBackend]

    def subject(self) -> SabotagedSubject:
        return SabotagedSubject(self.make)


class SabotagedSubject:
    """Broken backends on one memory store, whose clock the test moves."""

    manual_clock = True

    def __init__(self, make: Callable[..., PersistentBackend]) -> None:
        self._make = make
        self._clock = ManualClock()
        self._store = MemoryStore(clock=self._clock)

    def backend(self, *, namespace: str, **options: Any) -> PersistentBackend:
        return self._make(self._store, namespace=namespace, **options)

    async def elapse(self, duration: timedelta) -> None:
        self._clock.advance(duration)

    async def corrupt(self, namespace: str, instance_id: str) -> None:
        self._store.namespace(namespace).aggregates[instance_id].body = b"damaged"


SABOTEURS: list[Saboteur] = []


def caught_by(*check_ids: str) -> Callable[[T], T]:
    """Enlist a driver or a backend: its name, the sentence that says what is broken, its checks."""

    def enlist(broken: T) -> T:
        make = _backend_of(broken) if issubclass(broken, MemoryDriver) else broken
        saboteur = Saboteur(broken.__name__, broken.__doc__ or "", check_ids, make)
        SABOTEURS.append(saboteur)
        return broken

    return enlist


def _backend_of(driver: type[MemoryDriver]) -> Callable[..., PersistentBackend]:
    def make(store: MemoryStore, **options: Any) -> PersistentBackend:
        return StandardBackend(lambda chosen: driver(store, chosen.namespace), **options)

    return make


CONTROL = Saboteur("Control", "Nothing is broken.", (), _backend_of(SabotagedDriver))
"""What every saboteur is but for its defect."""
