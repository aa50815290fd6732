"""The memory backend passes the conformance kit, on both event loops, at once and hesitantly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from conformance.subjects import hesitant_subject, memory_subject

from sayiir_persist.conformance.pytest import BackendConformance

if TYPE_CHECKING:
    from sayiir_persist.conformance import SubjectFactory


class TestMemory(BackendConformance):
    anyio_backends = ("asyncio", "trio")

    @pytest.fixture
    def subject_factory(self) -> SubjectFactory:
        return memory_subject


class TestHesitantMemory(BackendConformance):
    anyio_backends = ("asyncio", "trio")

    @pytest.fixture
    def subject_factory(self) -> SubjectFactory:
        return hesitant_subject
