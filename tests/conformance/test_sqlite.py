"""The SQLite backend passes the conformance kit, on both event loops."""

from __future__ import annotations

import sqlite3
from contextlib import asynccontextmanager, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest

from sayiir_persist.adapters.sqlite import SqliteBackend
from sayiir_persist.conformance import ManualClock, Subject, SubjectFactory
from sayiir_persist.conformance.pytest import BackendConformance

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from datetime import timedelta

    from sayiir_persist import PersistentBackend


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


class TestSqlite(BackendConformance):
    anyio_backends = ("asyncio", "trio")

    @pytest.fixture
    def subject_factory(self) -> SubjectFactory:
        return sqlite_subject
