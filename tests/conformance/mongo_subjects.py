"""What the kit runs against on MongoDB: both drivers, on the server's clock or on ours."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import anyio
from bson import ObjectId
from pymongo import MongoClient

from sayiir_persist.adapters.mongo import MongoBackend
from sayiir_persist.adapters.mongo.layout import INSTANCES, key_of
from sayiir_persist.validation import to_micros

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from datetime import timedelta

    from sayiir_persist import PersistentBackend
    from sayiir_persist.conformance import SubjectFactory

DATABASE = f"kit_{ObjectId()}"
USED: set[str] = set()
"""The servers on which the database was used."""

START = to_micros(datetime(2026, 1, 1, tzinfo=UTC))


class MongoSubject:
    """Backends with clients of their own; time is waited for."""

    def __init__(self, url: str, client: MongoClient[dict[str, Any]], database: str) -> None:
        self._url = url
        self._client = client
        self._database = database

    def backend(self, *, namespace: str, **options: Any) -> PersistentBackend:
        return MongoBackend.connect(
            self._url, database=self._database, namespace=namespace, **options
        )

    async def elapse(self, duration: timedelta) -> None:
        await anyio.sleep(duration.total_seconds())

    async def corrupt(self, namespace: str, instance_id: str) -> None:
        updated = self._client[self._database][INSTANCES].update_one(
            {"_id": key_of(namespace, instance_id)}, {"$set": {"body": b"damaged"}}
        )
        assert updated.matched_count == 1


class ClockedMongoSubject(MongoSubject):
    """The same with a clock that the tests move."""

    manual_clock = True

    def __init__(self, url: str, client: MongoClient[dict[str, Any]], database: str) -> None:
        super().__init__(url, client, database)
        self._now = START

    def backend(self, *, namespace: str, **options: Any) -> PersistentBackend:
        return super().backend(namespace=namespace, _clock=lambda: self._now, **options)

    async def elapse(self, duration: timedelta) -> None:
        self._now += to_micros(datetime(1970, 1, 1, tzinfo=UTC) + duration)


def mongo_subject(url: str, *, manual_clock: bool = False, motor: bool = False) -> SubjectFactory:
    """Make subjects on the server at `url`; `motor` picks the other driver."""
    scheme, _, rest = url.partition("://")
    chosen = f"{scheme}+motor://{rest}" if motor else url
    database = DATABASE

    USED.add(url)

    @asynccontextmanager
    async def subject() -> AsyncGenerator[MongoSubject]:
        client: MongoClient[dict[str, Any]] = MongoClient(url)
        kind = ClockedMongoSubject if manual_clock else MongoSubject

        try:
            yield kind(chosen, client, database)
        finally:
            client.close()

    return subject


def drop_databases() -> None:
    """Leave no trace on servers that somebody else runs."""
    for url in USED:
        with MongoClient[dict[str, Any]](url) as client:
            client.drop_database(DATABASE)

    USED.clear()
