"""What was measured, as JSON and as Markdown."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from benchmarks.harness import Outcome, figure

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.harness import Figure, Series, Target

_LIBRARIES: Final = ("msgspec", "anyio")

_WORDS: Final = {True: "reached", False: "missed", None: "not judged"}

_HOW_TO_READ: Final = """\
Every figure is the median of the rounds, in microseconds for one operation, with the range of the
middle half of the rounds. The probes of a workload take turns, and a ratio is the median of the
ratios of the single rounds, so it compares neighbours in time. CPU is that of the whole process,
without a server's; in microseconds for one operation, which is milliseconds for 1,000 of them.
The floor is what the same work costs in raw statements, without this library."""


class Machine(Struct):
    """What the figures depend on; nothing that tells whose machine it was."""

    cores: int
    architecture: str
    system: str
    python: str
    libraries: dict[str, str]

    @classmethod
    def this(cls) -> Machine:
        """The one that this runs on."""
        return cls(
            cores=os.cpu_count() or 1,
            architecture=platform.machine(),
            system=platform.system(),
            python=f"{platform.python_implementation()} {platform.python_version()}",
            libraries={name: version(name) for name in _LIBRARIES},
        )


class Verdict(Struct):
    """One target and what became of it.

    Attributes:
        reached: `None` where this run cannot tell.
    """

    workload: str
    target: str
    measured: str
    reached: bool | None


class VariantReport(Struct):
    """What a store did under other circumstances.

    Attributes:
        missing: Why there are no figures.
    """

    name: str
    outcomes: list[Outcome]
    verdicts: list[Verdict]
    missing: str = ""


class StoreReport(Struct):
    """Everything about one store."""

    store: str
    description: str
    outcomes: list[Outcome]
    verdicts: list[Verdict]
    variants: list[VariantReport]


class Report(Struct):
    """One run of the benchmarks."""

    machine: Machine
    rounds: int
    quick: bool
    stores: list[StoreReport]

    def to_json(self) -> bytes:
        """Every single round, for tools."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2)

    def to_markdown(self) -> str:
        """Tables, for people."""
        return "\n".join(_lines(self)) + "\n"


def judge(target: Target, outcomes: Sequence[Outcome], *, quick: bool) -> Verdict:
    """Hold a target against what was measured."""
    outcome = next((each for each in outcomes if each.workload == target.workload), None)
    over = outcome and outcome.find(target.over)
    under = outcome and target.under and outcome.find(target.under)
    wanted = _wanted(target)

    if not over or (target.under and not under):
        return Verdict(target.workload, wanted, "not measured", None)

    found = over.over(under) if under else figure(over.cpu)
    reached = found.median >= target.limit if target.at_least else found.median <= target.limit
    unit = "x" if under else "µs of CPU"
    return Verdict(
        target.workload, wanted, f"{_number(found.median)} {unit}", None if quick else reached
    )


def _wanted(target: Target) -> str:
    if target.under is None:
        return f"{target.over}: at most {target.limit:g} µs of CPU"

    if target.at_least:
        return f"{target.under}: at least {target.limit:g} x as fast as {target.over}"

    return f"{target.over}: at most {target.limit:g} x {target.under}"


def _lines(report: Report) -> Iterator[str]:
    machine = report.machine
    libraries = ", ".join(f"{name} {number}" for name, number in machine.libraries.items())
    yield (
        f"{machine.cores} cores ({machine.architecture}), {machine.system}, {machine.python}; "
        f"{libraries}; {report.rounds} rounds."
    )
    yield ""

    if report.quick:
        yield "A quick run shows that everything works; its figures mean nothing."
    else:
        yield _HOW_TO_READ

    for store in report.stores:
        yield from _store_lines(store)


def _store_lines(store: StoreReport) -> Iterator[str]:
    yield from ("", f"## {store.store}", "", f"{store.description}.", "")
    yield "| target | | measured | |"
    yield "|---|---|---:|---|"

    for verdict in store.verdicts:
        measured, word = _cells(verdict)
        yield f"| {verdict.workload} | {verdict.target} | {measured} | {word} |"

    yield ""
    yield "| workload | | µs | middle half | a second | CPU µs | time |"
    yield "|---|---|---:|---:|---:|---:|---|"

    for outcome in store.outcomes:
        yield f"| **{outcome.workload}** {outcome.title}; for each {outcome.unit}: | | | | | | |"

        for series in outcome.series:
            yield _row(series, outcome.find(series.versus))

    yield from _variant_lines(store)


def _variant_lines(store: StoreReport) -> Iterator[str]:
    for variant in store.variants:
        if variant.missing:
            yield from ("", f"Not measured: {variant.name}. {variant.missing}.")

    variants = [variant for variant in store.variants if not variant.missing]

    if not variants:
        return

    names = "".join(f" {variant.name} | |" for variant in variants)
    yield from (
        "",
        f"| target | | {store.store} | |{names}",
        "|---|---|---:|---|" + "---:|---|" * len(variants),
    )

    for verdict in store.verdicts:
        beside = [_same(verdict, variant.verdicts) for variant in variants]

        if any(beside):
            cells = [cell for each in (verdict, *beside) for cell in _cells(each)]
            yield f"| {verdict.workload} | {verdict.target} | {' | '.join(cells)} |"

    names = "".join(f" {variant.name}: µs | CPU µs |" for variant in variants)
    yield from (
        "",
        f"| workload | | µs | CPU µs |{names}",
        "|---|---|---:|---:|" + "---:|---:|" * len(variants),
    )

    for outcome in store.outcomes:
        beside = [
            next((each for each in variant.outcomes if each.workload == outcome.workload), None)
            for variant in variants
        ]

        if any(beside):
            for series in outcome.series:
                found = [series, *(each and each.find(series.probe) for each in beside)]
                cells = [cell for each in found for cell in _times(each)]
                yield f"| {outcome.workload} | {series.probe} | {' | '.join(cells)} |"


def _same(verdict: Verdict, others: Sequence[Verdict]) -> Verdict | None:
    known = (verdict.workload, verdict.target)
    return next((each for each in others if (each.workload, each.target) == known), None)


def _cells(verdict: Verdict | None) -> tuple[str, str]:
    return (verdict.measured, _WORDS[verdict.reached]) if verdict else ("", "")


def _times(series: Series | None) -> tuple[str, str]:
    if series is None:
        return "", ""

    return _number(figure(series.wall).median), _number(figure(series.cpu).median)


def _row(series: Series, other: Series | None) -> str:
    wall, cpu = figure(series.wall), figure(series.cpu)
    ratio = ""

    if other is not None and other is not series:
        ratio = f"{_number(series.over(other).median)} x {other.probe}"

    return (
        f"| | {series.probe} | {_number(wall.median)} | {_range(wall)} | {1e6 / wall.median:,.0f} "
        f"| {_number(cpu.median)} | {ratio} |"
    )


def _range(found: Figure) -> str:
    return f"{_number(found.low)} to {_number(found.high)}"


def _number(value: float) -> str:
    """Three figures; more of them would be noise."""
    if value >= 100:
        return f"{value:,.0f}"

    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
