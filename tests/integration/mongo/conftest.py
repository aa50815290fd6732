from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from bson import ObjectId
from integration.mongo.support import Commands, client_of
from pymongo import MongoClient

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    from pymongo.database import Database
    from services.mongo import ExternalMongo, MongoServer


@pytest.fixture
def url(mongo_replica_set: ExternalMongo | MongoServer) -> str:
    return mongo_replica_set.url


@pytest.fixture
def name() -> str:
    """A database of the test's own."""
    return f"test_{ObjectId()}"


@pytest.fixture
def raw(url: str, name: str) -> Generator[Database[dict[str, Any]]]:
    """The same database as anybody sees it; it is gone afterwards."""
    with MongoClient[dict[str, Any]](url) as client:
        yield client[name]
        client.drop_database(name)


@pytest.fixture
def commands() -> Commands:
    return Commands()


@pytest.fixture(params=["pymongo", "motor"])
async def client(
    request: pytest.FixtureRequest, url: str, commands: Commands
) -> AsyncGenerator[Any]:
    """A client of either driver, whose commands are noted."""
    async with client_of(url, motor=request.param == "motor", commands=commands) as made:
        yield made
