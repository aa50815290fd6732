"""Run the checks and report, without any test framework."""

from __future__ import annotations

import traceback
from collections import Counter
from enum import StrEnum
from inspect import getmodule
from time import perf_counter
from typing import TYPE_CHECKING, Final

import anyio
import msgspec
from msgspec import Struct

from sayiir_persist import PersistError
from sayiir_persist.conformance.kit import ExpectationError, Kit, NotApplicableError
from sayiir_persist.conformance.registry import KIT_VERSION, Check, checks

if TYPE_CHECKING:
    from collections.abc import Collection

    from sayiir_persist.conformance.subject import Subject, SubjectFactory

TIME_LIMIT: Final = 60.0
"""Seconds after which a check is given up: no call may wait for ever."""


class Outcome(StrEnum):
    """How a check ended."""

    PASSED = "passed"
    FAILED = "failed"
    """The backend broke the promise."""

    ERROR = "error"
    """Something was raised that no backend raises: of the driver, or of the subject."""

    NOT_APPLICABLE = "not_applicable"
    """It cannot be made on this subject."""


class CheckResult(Struct, frozen=True):
    """How one check ended.

    Attributes:
        id: The check's.
        sentence: The check's.
        outcome: How it ended.
        message: What was expected and what was found; of an error the traceback.
        seconds: How long it took.
    """

    id: str
    sentence: str
    outcome: Outcome
    message: str
    seconds: float


class Report(Struct, frozen=True, kw_only=True):
    """How the checks ended, in the order of their ids.

    Attributes:
        results: One for each check.
        kit_version: Of the kit that made the report.
    """

    results: tuple[CheckResult, ...]
    kit_version: int = KIT_VERSION

    @property
    def ok(self) -> bool:
        """Whether no check failed, and any was made."""
        outcomes = self.counts()
        broken = outcomes[Outcome.FAILED] + outcomes[Outcome.ERROR]
        return not broken and outcomes[Outcome.PASSED] > 0

    def counts(self) -> Counter[Outcome]:
        """How many checks ended in each way."""
        return Counter(result.outcome for result in self.results)

    def to_json(self) -> str:
        """The whole report as one JSON object."""
        return msgspec.json.encode(self).decode()

    def __str__(self) -> str:
        lines: list[str] = []

        for result in self.results:
            if result.outcome is Outcome.PASSED:
                continue

            lines.append(f"{result.id}  {result.outcome}  {result.sentence}")
            lines.extend(f"    {line}" for line in result.message.splitlines())

        counts = self.counts()
        totals = ", ".join(f"{counts[each]} {each}" for each in Outcome if counts[each])
        seconds = sum(result.seconds for result in self.results)
        return "\n".join([*lines, f"{totals or 'no checks'} in {seconds:.1f} s"])


async def validate(
    subject_factory: SubjectFactory,
    *,
    ids: Collection[str] | None = None,
    groups: Collection[str] | None = None,
) -> Report:
    """Put a backend to the test, one check after the other, on one subject.

    Args:
        subject_factory: Sets the subject up and tears it down.
        ids: Only these checks.
        groups: Only checks of these groups.

    Returns:
        The report. A broken backend is no error of this call.

    Raises:
        ValueError: A group or an id is unknown.
    """
    selected = checks(groups, ids)

    async with subject_factory() as subject:
        return Report(results=tuple([await _result(each, subject) for each in selected]))


async def run_check(check: Check, subject_factory: SubjectFactory) -> None:
    """Run one check on a subject of its own, and let its failure be raised.

    Raises:
        ExpectationError: The backend broke the promise.
        NotApplicableError: The check cannot be made on this subject.
    """
    async with subject_factory() as subject:
        await _run(check, subject)


async def _run(check: Check, subject: Subject) -> None:
    # The backends are closed apart from the failure: what a check raises must not reach a task
    # group that a backend may own, which would wrap it.
    kit = Kit(subject)
    failure: Exception | None = None

    try:
        with anyio.move_on_after(TIME_LIMIT) as scope:
            await check.run(kit)

        if scope.cancelled_caught:
            failure = ExpectationError(
                f"no call waits for ever: still busy after {TIME_LIMIT:.0f} s"
            )
    except Exception as error:  # noqa: BLE001  (raised again below)
        failure = error
    finally:
        try:
            await kit.aclose()
        except Exception as error:  # noqa: BLE001  (what came first says more)
            failure = failure or error

    if failure is not None:
        failure.add_note(f"{check.id}: {check.sentence}")
        raise failure


async def _result(check: Check, subject: Subject) -> CheckResult:
    started = perf_counter()
    outcome, message = Outcome.PASSED, ""

    try:
        await _run(check, subject)
    except ExpectationError as error:
        outcome, message = Outcome.FAILED, str(error)
    except NotApplicableError as error:
        outcome, message = Outcome.NOT_APPLICABLE, str(error)
    except PersistError as error:
        outcome, message = Outcome.FAILED, _refusal(check, error)
    except Exception as error:  # noqa: BLE001  (it belongs in the report)
        outcome, message = Outcome.ERROR, "".join(traceback.format_exception(error))

    return CheckResult(check.id, check.sentence, outcome, message, perf_counter() - started)


def _refusal(check: Check, error: PersistError) -> str:
    """Say which call of the check was refused, though the contract lets it pass."""
    module = getmodule(check.run)
    frames = traceback.extract_tb(error.__traceback__)
    call = next(
        (frame.line for frame in reversed(frames) if module and frame.filename == module.__file__),
        None,
    )
    return f"expected to succeed: {call}: raised {type(error).__name__}: {error}"
