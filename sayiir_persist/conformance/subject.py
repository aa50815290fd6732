"""What a backend author hands to the kit: a store under test, and a way to let its time pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from sayiir_persist import PersistentBackend


class Subject(Protocol):
    """One store under test. A subject lives as long as the context manager that made it.

    Two members may be added: `manual_clock = True` says that `elapse` takes no real time, so that
    the kit may let hours pass; a method `corrupt` makes it a `CorruptibleSubject`.
    """

    def backend(self, *, namespace: str, **options: Any) -> PersistentBackend:
        """Make another backend object on the store, not entered yet.

        All of them share that one storage and nothing else: no pool, no connection, no cache. A
        check may enter one in an event loop of another thread.

        Args:
            namespace: Its namespace.
            **options: What every store takes: `codec`, `aging_interval`, `max_payload`, ...
        """
        ...

    async def elapse(self, duration: timedelta) -> None:
        """Let at least that much of the store's time pass: move its clock, or sleep."""
        ...


class CorruptibleSubject(Subject, Protocol):
    """A subject that can also damage what it stored."""

    async def corrupt(self, namespace: str, instance_id: str) -> None:
        """Overwrite the stored body of an instance with bytes that no codec reads."""
        ...


SubjectFactory = Callable[[], AbstractAsyncContextManager[Subject]]
"""Sets a subject up and tears it down again."""


class ManualClock:
    """A clock that stands still until it is moved; every store with an injectable clock takes it.

    Example:
        >>> from sayiir_persist.conformance import ManualClock
        >>> clock = ManualClock()
        >>> before = clock()
        >>> clock.advance(timedelta(hours=1))
        >>> clock() - before
        datetime.timedelta(seconds=3600)
    """

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._now = start

    def __call__(self) -> datetime:
        """What the time is."""
        return self._now

    def advance(self, duration: timedelta) -> None:
        """Move the clock forward."""
        self._now += duration
