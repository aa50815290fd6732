"""The SQLite backend passes the conformance kit, on both event loops."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from conformance.subjects import sqlite_subject

from sayiir_persist.conformance.pytest import BackendConformance

if TYPE_CHECKING:
    from sayiir_persist.conformance import SubjectFactory


class TestSqlite(BackendConformance):
    anyio_backends = ("asyncio", "trio")

    @pytest.fixture
    def subject_factory(self) -> SubjectFactory:
        return sqlite_subject
