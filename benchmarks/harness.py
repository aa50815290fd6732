"""Interleaved rounds and what comes out of them; knows no store and no workload by name."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from statistics import median, quantiles
from time import perf_counter, process_time
from typing import TYPE_CHECKING, NamedTuple, Protocol

from msgspec import Struct

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from sayiir_persist import PersistentBackend

FLOOR = "floor"
"""The probe that does by hand what a store cannot do without."""


class Stopwatch:
    """Adds up the wall and CPU time of the blocks that it is held over."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.cpu_seconds = 0.0
        self._began = self._cpu_began = 0.0

    def __enter__(self) -> None:
        self._cpu_began, self._began = process_time(), perf_counter()

    def __exit__(self, *exc: object) -> None:
        self.seconds += perf_counter() - self._began
        self.cpu_seconds += process_time() - self._cpu_began


class Probe(NamedTuple):
    """One thing to measure: `run` does it once and returns how many operations that were.

    Attributes:
        versus: The probe that it is compared with; `None`: the floor, if there is one.
    """

    name: str
    run: Callable[[Stopwatch], Awaitable[int]]
    versus: str | None = None


class Scale(NamedTuple):
    """How much of everything one round does."""

    rounds: int
    flushes: int
    commits: int
    results_before: int
    committers: int
    steps_per_committer: int
    lengths: tuple[int, ...]
    steps_per_length: int
    workflows: int
    steps_per_workflow: int
    results: int
    loads: int
    instances: int
    workers: int
    crowd: int
    ready: int
    polls: int


FULL = Scale(
    rounds=11,
    flushes=50,
    commits=250,
    results_before=9,
    committers=64,
    steps_per_committer=20,
    lengths=(10, 100, 1_000, 10_000),
    steps_per_length=2_000,
    workflows=64,
    steps_per_workflow=20,
    results=1_000,
    loads=50,
    instances=5_000,
    workers=8,
    crowd=20_000,
    ready=100,
    polls=50,
)

QUICK = Scale(
    rounds=1,
    flushes=5,
    commits=20,
    results_before=9,
    committers=8,
    steps_per_committer=3,
    lengths=(10, 100),
    steps_per_length=20,
    workflows=8,
    steps_per_workflow=3,
    results=50,
    loads=2,
    instances=100,
    workers=8,
    crowd=100,
    ready=20,
    polls=4,
)


class Target(NamedTuple):
    """What a store has to reach in one workload.

    Attributes:
        over: The probe that is judged.
        under: The probe that it is divided by; `None`: microseconds of CPU for each operation,
            which, unlike the time on the clock, does not depend on who else is at work.
        limit: The largest figure that reaches the target, or the smallest.
        at_least: `limit` is the smallest.
    """

    workload: str
    over: str
    under: str | None
    limit: float
    at_least: bool = False


Floor = Callable[[Scale, Stopwatch], Awaitable[int]]


class Store(Protocol):
    """A store to measure, with its floors: whoever adds one writes this and registers it."""

    @property
    def name(self) -> str:
        """What `--store` calls it."""
        ...

    @property
    def floors(self) -> Mapping[str, Mapping[str, Floor]]:
        """By the key of the workload and by the name of the probe; the main one is `FLOOR`."""
        ...

    @property
    def targets(self) -> Sequence[Target]:
        """What it has to reach."""
        ...

    def open(self) -> AbstractAsyncContextManager[PersistentBackend]:
        """A backend on an empty store of its own."""
        ...

    def describe(self) -> str:
        """Version and set-up, for the report; no host names and no paths."""
        ...


class Variant(NamedTuple):
    """A store once more, under other circumstances.

    Attributes:
        uvloop: On that event loop instead of the one of asyncio.
        workloads: The keys of those for which this is worth the time.
    """

    name: str
    store: Store
    uvloop: bool = False
    workloads: Sequence[str] = ("commit", "group", "W2", "W3", "W4")


class Workload(NamedTuple):
    """What is done to a store, as probes that are measured in turns.

    Attributes:
        key: What `--workload` calls it.
        title: What it does.
        unit: What one operation is.
        probes: Set up what the rounds share.
        turns: How often a round repeats it: more for what is short and at the mercy of the disk.
    """

    key: str
    title: str
    unit: str
    probes: Callable[[Store, Scale], AbstractAsyncContextManager[Sequence[Probe]]]
    turns: int = 1


class Figure(NamedTuple):
    """A median, and between which values the middle half of the rounds lies."""

    median: float
    low: float
    high: float


def figure(values: Sequence[float]) -> Figure:
    """Sum up what the rounds gave."""
    if len(values) == 1:
        return Figure(values[0], values[0], values[0])

    low, _, high = quantiles(values, n=4, method="inclusive")
    return Figure(median(values), low, high)


class Series(Struct):
    """What the rounds of one probe gave, in microseconds for each operation."""

    probe: str
    versus: str
    operations: int
    wall: list[float]
    cpu: list[float]

    def over(self, other: Series) -> Figure:
        """The ratio of two series, round by round: both had the same neighbours on the machine."""
        return figure([mine / theirs for mine, theirs in zip(self.wall, other.wall, strict=True)])


class Outcome(Struct):
    """What one workload gave on one store."""

    workload: str
    title: str
    unit: str
    series: list[Series]

    def find(self, probe: str) -> Series | None:
        """The series of a probe, if it was measured."""
        return next((each for each in self.series if each.probe == probe), None)


async def measure(workload: Workload, store: Store, scale: Scale) -> Outcome:
    """Run every probe once in each round, one after the other, and once before to warm up."""
    rounds = scale.rounds * workload.turns if scale.rounds > 1 else 1

    async with workload.probes(store, scale) as found:
        floors = store.floors.get(workload.key, {})
        probes = [Probe(name, partial(floor, scale)) for name, floor in floors.items()]
        probes.extend(found)
        series = [Series(probe.name, probe.versus or FLOOR, 0, [], []) for probe in probes]

        if rounds > 1:
            for probe in probes:
                await probe.run(Stopwatch())

        for _ in range(rounds):
            for probe, gained in zip(probes, series, strict=True):
                await _one_round(probe, gained)

    return Outcome(workload.key, workload.title, workload.unit, series)


async def _one_round(probe: Probe, gained: Series) -> None:
    gc.collect()  # what the last probe left behind is not this one's cost
    watch = Stopwatch()
    operations = await probe.run(watch)
    gained.operations = operations
    gained.wall.append(watch.seconds / operations * 1e6)
    gained.cpu.append(watch.cpu_seconds / operations * 1e6)
