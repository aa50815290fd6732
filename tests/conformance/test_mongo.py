"""The MongoDB backend passes the conformance kit: both drivers, both kinds of deployment."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from conformance.mongo_subjects import drop_databases, mongo_subject
from hypothesis import HealthCheck, settings

from sayiir_persist.conformance.machine import backend_machine
from sayiir_persist.conformance.pytest import BackendConformance

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    from services.mongo import ExternalMongo, MongoServer

    from sayiir_persist.conformance import Subject, SubjectFactory


@pytest.fixture(scope="module", autouse=True)
def _leave_no_trace() -> Generator[None]:
    yield
    drop_databases()


class TestMongo(BackendConformance):
    """PyMongo Async on a replica set, with the server's clock."""

    @pytest.fixture
    def subject_factory(self, mongo_replica_set: ExternalMongo | MongoServer) -> SubjectFactory:
        return mongo_subject(mongo_replica_set.url)


class TestMongoByHand(BackendConformance):
    """The same on a clock that the checks move."""

    @pytest.fixture
    def subject_factory(self, mongo_replica_set: ExternalMongo | MongoServer) -> SubjectFactory:
        return mongo_subject(mongo_replica_set.url, manual_clock=True)


class TestMotor(BackendConformance):
    """The other driver, with the server's clock."""

    @pytest.fixture
    def subject_factory(self, mongo_replica_set: ExternalMongo | MongoServer) -> SubjectFactory:
        return mongo_subject(mongo_replica_set.url, motor=True)


class TestStandalone(BackendConformance):
    """A server on its own."""

    @pytest.fixture
    def subject_factory(self, mongo_standalone: MongoServer) -> SubjectFactory:
        return mongo_subject(mongo_standalone.url, manual_clock=True)


_machine_url: list[str] = []


@pytest.fixture(autouse=True)
def _server_of_the_machine(request: pytest.FixtureRequest) -> None:
    if request.cls is TestMongoMachine:
        _machine_url[:] = [request.getfixturevalue("mongo_replica_set").url]


@asynccontextmanager
async def _machine_subject() -> AsyncGenerator[Subject]:
    async with mongo_subject(_machine_url[0], manual_clock=True)() as subject:
        yield subject


TestMongoMachine = backend_machine(_machine_subject).TestCase
TestMongoMachine.settings = settings(
    deadline=None,
    stateful_step_count=40,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
