"""The PostgreSQL backend passes the conformance kit: both versions, both clocks, both poolers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from conformance.postgres_subjects import postgres_subject
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from sayiir_persist.conformance.machine import backend_machine
from sayiir_persist.conformance.pytest import BackendConformance

if TYPE_CHECKING:
    from sayiir_persist.conformance import SubjectFactory


class TestPostgres(BackendConformance):
    """On the server's clock."""

    @pytest.fixture
    def subject_factory(self, postgres: Any) -> SubjectFactory:
        return postgres_subject(postgres.url)


class TestPostgresByHand(BackendConformance):
    """On a clock that the checks move."""

    @pytest.fixture
    def subject_factory(self, each_postgres: Any) -> SubjectFactory:
        return postgres_subject(each_postgres.url, manual_clock=True)


class TestPostgresPool(BackendConformance):
    """On a pool of the caller's."""

    groups = ("CANCEL", "CLAIM", "LIFECYCLE", "RACE")

    @pytest.fixture
    def subject_factory(self, postgres: Any) -> SubjectFactory:
        return postgres_subject(postgres.url, manual_clock=True, pooled=True)


class TestPgBouncer(BackendConformance):
    """Through a pooler in transaction mode that knows nothing of prepared statements."""

    @pytest.fixture
    def subject_factory(self, pgbouncer: Any, own_postgres: Any) -> SubjectFactory:
        return postgres_subject(
            pgbouncer.url, manual_clock=True, direct_url=own_postgres.url, max_size=4
        )


class TestPreparingPgBouncer(BackendConformance):
    """Through a pooler in transaction mode that keeps prepared statements."""

    @pytest.fixture
    def subject_factory(self, pgbouncer_preparing: Any, own_postgres: Any) -> SubjectFactory:
        return postgres_subject(
            pgbouncer_preparing.url,
            manual_clock=True,
            direct_url=own_postgres.url,
            max_size=4,
            statement_cache_size=100,
        )


def test_machine(postgres: Any) -> None:
    run_state_machine_as_test(
        backend_machine(postgres_subject(postgres.url, manual_clock=True)),
        settings=settings(
            max_examples=15,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
