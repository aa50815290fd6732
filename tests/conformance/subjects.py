"""What the kit runs against: each store that exists, with a clock that the tests move."""

from __future__ import annotations

import sqlite3
from contextlib import asynccontextmanager, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from anyio.lowlevel import checkpoint

from sayiir_persist import MemoryBackend, MemoryStore, PersistentBackend, SqliteBackend
from sayiir_persist.adapters.memory import MemoryDriver
from sayiir_persist.backend import StandardBackend
from sayiir_persist.conformance import ManualClock, Subject

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from datetime import timedelta

    from sayiir_persist.driver import Driver


class MemorySubject:
    """Backends on one memory store, whose clock the test moves."""

    manual_clock = True

    def __init__(self) -> None:
        self._clock = ManualClock()
        self._store = MemoryStore(clock=self._clock)

    def backend(self, *, namespace: str, **options: Any) -> PersistentBackend:
        return MemoryBackend(self._store, namespace=namespace, **options)

    async def elapse(self, duration: timedelta) -> None:
        self._clock.advance(duration)

    async def corrupt(self, namespace: str, instance_id: str) -> None:
        self._store.namespace(namespace).aggregates[instance_id].body = b"damaged"


class HesitantDriver:
    """Lets others run before and after each step, as a driver of a server does.

    In memory nothing else ever comes between two steps of an operation, so without it neither
    races nor cancellations would be put to the test.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def __getattr__(self, name: str) -> Any:
        found: Any = getattr(self._driver, name)

        if not callable(found):
            return found

        step: Any = found

        async def hesitate(*args: Any) -> Any:
            await checkpoint()
            answer = await step(*args)
            await checkpoint()
            return answer

        return hesitate


class HesitantSubject(MemorySubject):
    def backend(self, *, namespace: str, **options: Any) -> PersistentBackend:
        def driver(chosen: Any) -> Any:
            return HesitantDriver(MemoryDriver(self._store, chosen.namespace))

        return StandardBackend(driver, namespace=namespace, **options)


@asynccontextmanager
async def memory_subject() -> AsyncGenerator[Subject]:
    yield MemorySubject()


@asynccontextmanager
async def hesitant_subject() -> AsyncGenerator[Subject]:
    yield HesitantSubject()


class SqliteSubject:
    """Backends on one file, whose clock the test moves."""

    manual_clock = True

    def __init__(self, path: Path) -> None:
        self._path = path
        self._clock = ManualClock()

    def backend(self, *, namespace: str, **options: Any) -> PersistentBackend:
        return SqliteBackend.connect(
            str(self._path), clock=self._clock, namespace=namespace, **options
        )

    async def elapse(self, duration: timedelta) -> None:
        self._clock.advance(duration)

    async def corrupt(self, namespace: str, instance_id: str) -> None:
        with closing(sqlite3.connect(self._path, isolation_level=None)) as connection:
            updated = connection.execute(
                "UPDATE instances SET body = ? WHERE namespace = ? AND instance_id = ?",
                (b"damaged", namespace, instance_id),
            )
            assert updated.rowcount == 1


@asynccontextmanager
async def sqlite_subject() -> AsyncGenerator[Subject]:
    with TemporaryDirectory() as directory:
        yield SqliteSubject(Path(directory, "runs.db"))
