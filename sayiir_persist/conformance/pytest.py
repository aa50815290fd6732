"""The kit as a pytest class. The only module of the kit that imports pytest; needs no plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import anyio
import pytest

from sayiir_persist.conformance.kit import NotApplicableError
from sayiir_persist.conformance.registry import Check, checks
from sayiir_persist.conformance.validate import run_check

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sayiir_persist.conformance.subject import SubjectFactory


class BackendConformance:
    """Every check of the kit as a test `test_check[CLAIM-003]`, each in an event loop of its own.

    Subclass it and override the fixture `subject_factory`.

    Attributes:
        anyio_backends: The event loops to run on; with several, test ids name theirs.
        groups: Only checks of these groups.
        ids: Only these checks.

    Example::

        class TestMyBackend(BackendConformance):
            @pytest.fixture
            def subject_factory(self):
                return my_subject
    """

    anyio_backends: ClassVar[Sequence[str]] = ("asyncio",)
    groups: ClassVar[Collection[str] | None] = None
    ids: ClassVar[Collection[str] | None] = None

    @pytest.fixture
    def subject_factory(self) -> SubjectFactory:
        """Return what sets a subject up and tears it down."""
        raise NotImplementedError(f"{type(self).__name__} overrides the fixture subject_factory")

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Parametrise `test_check` over the checks and the event loops."""
        if metafunc.function.__name__ != "test_check":
            return

        several = len(self.anyio_backends) > 1
        metafunc.parametrize(
            ("check", "anyio_backend"),
            [
                pytest.param(each, loop, id=f"{each.id}-{loop}" if several else each.id)
                for each in checks(self.groups, self.ids)
                for loop in self.anyio_backends
            ],
        )

    def test_check(self, check: Check, anyio_backend: str, subject_factory: SubjectFactory) -> None:
        """Run one check in a fresh event loop."""
        try:
            anyio.run(run_check, check, subject_factory, backend=anyio_backend)
        except NotApplicableError as reason:
            pytest.skip(f"{check.id}: {reason}")
