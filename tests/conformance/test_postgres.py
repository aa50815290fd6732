"""The PostgreSQL backend passes the conformance kit: both versions, both clocks, both poolers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from conformance.postgres_subjects import postgres_subject

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
