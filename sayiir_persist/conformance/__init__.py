"""The conformance kit: is a backend as good as its protocols promise?

A backend's whole test file, with pytest::

    @asynccontextmanager
    async def acme():
        async with acme_server() as url:
            yield AcmeSubject(url)

    class AcmeSubject(NamedTuple):
        url: str

        def backend(self, *, namespace, **options):
            return AcmeBackend.connect(self.url, namespace=namespace, **options)

        async def elapse(self, duration):
            await anyio.sleep(duration.total_seconds() + 0.02)

    class TestAcme(BackendConformance):  # from sayiir_persist.conformance.pytest
        @pytest.fixture
        def subject_factory(self):
            return acme

Without pytest, `await validate(acme)` gives a `Report` that people and machines can read.
"""

# Loading the package of that name binds it here, so it comes before the function `checks`.
import sayiir_persist.conformance.checks  # noqa: F401  # pyright: ignore[reportUnusedImport]
from sayiir_persist.conformance.kit import (
    ExpectationError,
    Kit,
    NotApplicableError,
    expect,
    expect_equal,
    raises,
    refused,
    succeeded,
)
from sayiir_persist.conformance.registry import KIT_VERSION, Check, check, checks
from sayiir_persist.conformance.subject import (
    CorruptibleSubject,
    ManualClock,
    Subject,
    SubjectFactory,
)
from sayiir_persist.conformance.validate import CheckResult, Outcome, Report, validate

__all__ = [
    "KIT_VERSION",
    "Check",
    "CheckResult",
    "CorruptibleSubject",
    "ExpectationError",
    "Kit",
    "ManualClock",
    "NotApplicableError",
    "Outcome",
    "Report",
    "Subject",
    "SubjectFactory",
    "check",
    "checks",
    "expect",
    "expect_equal",
    "raises",
    "refused",
    "succeeded",
    "validate",
]
