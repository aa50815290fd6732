"""The kit sees what is broken: every saboteur fails exactly the checks that are named for it.

Whoever doubts a check may read `saboteurs/`: each of them is the memory store with one defect of
a few lines. The same store without a defect is the control, and passes all of these checks.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

import anyio
import pytest
from conformance.saboteurs import CONTROL, SABOTEURS, Saboteur

from sayiir_persist.conformance import Outcome, Report, checks, validate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection

    from sayiir_persist.conformance import Subject

NAMED = frozenset(check_id for saboteur in SABOTEURS for check_id in saboteur.caught_by)

HANGING = 1.5
"""Seconds after which a check is given up: some saboteurs leave a caller waiting for ever."""


@pytest.fixture(autouse=True)
def short_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module(validate.__module__), "TIME_LIMIT", HANGING)


def report_on(saboteur: Saboteur, check_ids: Collection[str]) -> Report:
    @asynccontextmanager
    async def subject() -> AsyncIterator[Subject]:
        yield saboteur.subject()

    return anyio.run(partial(validate, subject, ids=check_ids))


@pytest.mark.parametrize("saboteur", SABOTEURS, ids=lambda saboteur: saboteur.name)
def test_a_saboteur_fails_the_checks_that_are_named_for_it(saboteur: Saboteur) -> None:
    report = report_on(saboteur, saboteur.caught_by)

    outcomes = {result.id: result.outcome for result in report.results}
    assert outcomes == dict.fromkeys(saboteur.caught_by, Outcome.FAILED), f"{saboteur}\n{report}"


def test_the_same_store_without_a_defect_passes_all_of_these_checks() -> None:
    report = report_on(CONTROL, NAMED)

    assert report.counts() == {Outcome.PASSED: len(NAMED)}, report


def test_a_saboteur_says_what_is_broken_and_who_must_see_it() -> None:
    names = [saboteur.name for saboteur in SABOTEURS]

    assert len(set(names)) == len(names)
    assert all(saboteur.sentence.endswith(".") for saboteur in SABOTEURS)
    assert all(saboteur.caught_by for saboteur in SABOTEURS)


def test_every_group_of_checks_is_proved_by_a_saboteur() -> None:
    groups = {check.group for check in checks()}

    assert {check_id.partition("-")[0] for check_id in NAMED} == groups


def test_report_of_the_checks_that_no_saboteur_proves() -> None:
    """Run with `-rP` or `-s` to read it."""
    unproved = [check for check in checks() if check.id not in NAMED]

    print(f"{len(SABOTEURS)} saboteurs prove {len(NAMED)} checks; no saboteur proves:")

    for check in unproved:
        print(f"  {check.id}  {check.sentence}")

    assert len(unproved) < len(NAMED)
