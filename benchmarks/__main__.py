"""`python -m benchmarks`."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio

from benchmarks.harness import FULL, QUICK, Outcome, Variant, measure
from benchmarks.report import Machine, Report, StoreReport, VariantReport, judge
from benchmarks.stores import STORES, VARIANTS
from benchmarks.workloads import WORKLOADS

if TYPE_CHECKING:
    from benchmarks.harness import Scale, Store, Workload

RESULTS: Final = Path(__file__).with_name("results") / "latest.json"


def main() -> None:
    """Measure what the command line asks for, and print it as Markdown."""
    options = _options()
    scale = QUICK if options.quick else FULL

    if options.rounds:
        scale = scale._replace(rounds=options.rounds)

    stores = [each for each in STORES if each.name in (options.store or [each.name])]
    workloads = [each for each in WORKLOADS if each.key in (options.workload or [each.key])]
    found = [_report(store, workloads, scale, quick=options.quick) for store in stores]
    report = Report(Machine.this(), scale.rounds, options.quick, found)

    print(report.to_markdown(), end="")

    if options.json or not options.quick:
        _write(options.json or RESULTS, report.to_json())

    if options.markdown:
        _write(options.markdown, f"# Benchmarks\n\n{report.to_markdown()}".encode())


def _options() -> Namespace:
    parser = ArgumentParser("benchmarks", description=__doc__)
    parser.add_argument(
        "--store", action="append", choices=[each.name for each in STORES], help="default: all"
    )
    parser.add_argument(
        "--workload", action="append", choices=[each.key for each in WORKLOADS], help="default: all"
    )
    parser.add_argument("--rounds", type=_positive, help=f"default: {FULL.rounds}")
    parser.add_argument("--quick", action="store_true", help="show in seconds that it all runs")
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/latest.json")
    parser.add_argument("--markdown", type=Path, help="where to write what is printed as well")
    return parser.parse_args()


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is no number of rounds")

    return int(text)


def _report(store: Store, workloads: list[Workload], scale: Scale, *, quick: bool) -> StoreReport:
    measured = _measured(Variant(store.name, store), workloads, scale, quick=quick)
    variants = [
        _measured(variant, fitting, scale, quick=quick)
        for variant in VARIANTS.get(store.name, ())
        if (fitting := [each for each in workloads if each.key in variant.workloads])
    ]
    return StoreReport(store.name, store.describe(), measured.outcomes, measured.verdicts, variants)


def _measured(
    variant: Variant, workloads: list[Workload], scale: Scale, *, quick: bool
) -> VariantReport:
    if variant.uvloop and find_spec("uvloop") is None:
        return VariantReport(variant.name, [], [], "uvloop is not installed")

    outcomes = anyio.run(
        _measure, variant, workloads, scale, backend_options={"use_uvloop": variant.uvloop}
    )
    asked_for = {each.key for each in workloads}
    verdicts = [
        judge(target, outcomes, quick=quick)
        for target in variant.store.targets
        if target.workload in asked_for
    ]
    return VariantReport(variant.name, outcomes, verdicts)


async def _measure(variant: Variant, workloads: list[Workload], scale: Scale) -> list[Outcome]:
    outcomes: list[Outcome] = []

    for workload in workloads:
        print(f"{variant.name}: {workload.key} {workload.title} ...", file=sys.stderr, flush=True)
        outcomes.append(await measure(workload, variant.store, scale))

    return outcomes


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


if __name__ == "__main__":
    main()
