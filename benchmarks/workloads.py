"""What is measured, on nothing but the public API, so on every store alike."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from anyio import create_task_group

from benchmarks.harness import Probe, Workload
from sayiir_persist import AtDelay, AtTask, WorkflowSnapshot

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Sequence

    from benchmarks.harness import Scale, Stopwatch, Store
    from sayiir_persist import AcquiredTask, PersistentBackend, TaskClaim

OUTPUT: Final = b"x" * 200
"""The result of every task."""

TTL: Final = timedelta(minutes=10)
WORKER: Final = "worker-1"
DEFINITION: Final = "v1"
ACQUIRED_AT_ONCE: Final = 50
POLLED_AT_ONCE: Final = 10

COMMIT: Final = "commit_task"
COMMIT_CLAIMING: Final = "commit_task, claim_next"
ONE_AT_A_TIME: Final = "one at a time"
ACQUIRE_ALONE: Final = "acquire, store else empty"
ACQUIRE_CROWDED: Final = "acquire, crowded store"
FIND_ALONE: Final = "find, store else empty"
FIND_CROWDED: Final = "find, crowded store"


# --- Commits ----------------------------------------------------------------------------------


@asynccontextmanager
async def _commits(store: Store, scale: Scale) -> AsyncGenerator[Sequence[Probe]]:
    yield [
        Probe(COMMIT, partial(_commit_each, store, scale, None)),
        Probe(COMMIT_CLAIMING, partial(_commit_each, store, scale, TTL)),
    ]


async def _commit_each(
    store: Store, scale: Scale, claim_next: timedelta | None, watch: Stopwatch
) -> int:
    async with store.open() as backend:
        steps = await _steps(backend, scale.commits, scale.results_before)

        with watch:
            for claim, snapshot in steps:
                await backend.commit_task(claim, snapshot, claim_next=claim_next)

    return len(steps)


async def _steps(
    backend: PersistentBackend, count: int, results_before: int
) -> list[tuple[TaskClaim, WorkflowSnapshot]]:
    """Steps that are ready to commit, each of another instance that has results already."""
    last, following = f"t{results_before}", AtTask(f"t{results_before + 1}")
    runs: list[WorkflowSnapshot] = []

    for number in range(count):
        run = WorkflowSnapshot.start(f"run-{number}", DEFINITION, start_at="t0", input=b"{}")

        for done in range(results_before):
            run = run.complete_task(f"t{done}", OUTPUT, next=AtTask(f"t{done + 1}"))

        runs.append(run)

    await _together(partial(backend.save_snapshot, run) for run in runs)
    tasks = await backend.acquire_tasks(worker_id=WORKER, ttl=TTL, limit=count, results=True)
    assert len(tasks) == count
    return [(it.claim, it.snapshot.complete_task(last, OUTPUT, next=following)) for it in tasks]


@asynccontextmanager
async def _group(store: Store, scale: Scale) -> AsyncGenerator[Sequence[Probe]]:
    yield [
        Probe(ONE_AT_A_TIME, partial(_commit_by, store, scale, 1)),
        Probe(
            f"{scale.committers} committers",
            partial(_commit_by, store, scale, scale.committers),
            ONE_AT_A_TIME,
        ),
    ]


async def _commit_by(store: Store, scale: Scale, committers: int, watch: Stopwatch) -> int:
    async with store.open() as backend:
        count = scale.committers * scale.steps_per_committer
        steps = await _steps(backend, count, scale.results_before)

        async def commit_share(first: int) -> None:
            for claim, snapshot in steps[first::committers]:
                await backend.commit_task(claim, snapshot)

        with watch:
            async with create_task_group() as group:
                for first in range(committers):
                    group.start_soon(commit_share, first)

    return count


# --- Whole workflows --------------------------------------------------------------------------


@asynccontextmanager
async def _lengths(store: Store, scale: Scale) -> AsyncGenerator[Sequence[Probe]]:
    shortest = f"{scale.lengths[0]:,} steps"
    yield [
        Probe(f"{length:,} steps", partial(_linear, store, scale, length), shortest)
        for length in scale.lengths
    ]


async def _linear(store: Store, scale: Scale, length: int, watch: Stopwatch) -> int:
    """Time the steps alone: what starts a workflow would make short ones look dear."""
    workflows = max(1, scale.steps_per_length // length)

    async with store.open() as backend:
        for number in range(workflows):
            await backend.start_instance(f"run-{number}", DEFINITION, start_at="t0", input=b"{}")
            [task] = await backend.acquire_tasks(worker_id=WORKER, ttl=TTL, results=True)

            with watch:
                await _run(backend, task, length)

    return workflows * length


async def _run(backend: PersistentBackend, task: AcquiredTask | None, length: int) -> None:
    """Run a workflow to its end, one round trip for each step."""
    for number in range(1, length + 1):
        assert task is not None
        following = AtTask(f"t{number}") if number < length else None
        step = task.snapshot.complete_task(task.task_id, OUTPUT, next=following)
        task = (await backend.commit_task(task.claim, step, claim_next=TTL)).next

    assert task is None


@asynccontextmanager
async def _workflows(store: Store, scale: Scale) -> AsyncGenerator[Sequence[Probe]]:
    yield [Probe("workflows at once", partial(_run_together, store, scale))]


async def _run_together(store: Store, scale: Scale, watch: Stopwatch) -> int:
    async with store.open() as backend:
        await _start(backend, scale.workflows)
        tasks = await backend.acquire_tasks(
            worker_id=WORKER, ttl=TTL, limit=scale.workflows, results=True
        )
        assert len(tasks) == scale.workflows

        with watch:
            async with create_task_group() as group:
                for task in tasks:
                    group.start_soon(_run, backend, task, scale.steps_per_workflow)

    return scale.workflows * scale.steps_per_workflow


# --- Loading ----------------------------------------------------------------------------------


@asynccontextmanager
async def _loads(store: Store, scale: Scale) -> AsyncGenerator[Sequence[Probe]]:
    yield [Probe("load_snapshot", partial(_load, store, scale))]


async def _load(store: Store, scale: Scale, watch: Stopwatch) -> int:
    async with store.open() as backend:
        run = WorkflowSnapshot.start("run", DEFINITION, start_at="t", input=b"{}")

        for number in range(scale.results):
            run = run.record_result(f"n{number}", OUTPUT)

        await backend.save_snapshot(run)

        with watch:
            for _ in range(scale.loads):
                assert len((await backend.load_snapshot("run")).results) == scale.results

    return scale.loads


# --- Dispatch ---------------------------------------------------------------------------------


@asynccontextmanager
async def _drains(store: Store, scale: Scale) -> AsyncGenerator[Sequence[Probe]]:
    yield [Probe(f"{scale.workers} workers", partial(_drain, store, scale))]


async def _drain(store: Store, scale: Scale, watch: Stopwatch) -> int:
    finished: list[str] = []

    async with store.open() as backend:
        await _start(backend, scale.instances)

        async def finish(task: AcquiredTask) -> None:
            done = task.snapshot.complete_task(task.task_id, OUTPUT, next=None)
            await backend.commit_task(task.claim, done)
            finished.append(task.instance_id)

        async def work(worker_id: str) -> None:
            while tasks := await backend.acquire_tasks(
                worker_id=worker_id, ttl=TTL, limit=ACQUIRED_AT_ONCE
            ):
                async with create_task_group() as group:
                    for task in tasks:
                        group.start_soon(finish, task)

        with watch:
            async with create_task_group() as workers:
                for number in range(scale.workers):
                    workers.start_soon(work, f"worker-{number}")

    assert len(finished) == len(set(finished)) == scale.instances
    return scale.instances


@asynccontextmanager
async def _crowd(store: Store, scale: Scale) -> AsyncGenerator[Sequence[Probe]]:
    async with AsyncExitStack() as stack:
        alone = await stack.enter_async_context(store.open())
        crowded = await stack.enter_async_context(store.open())
        await _fill(crowded, scale.crowd)

        for backend in (alone, crowded):
            await _start(backend, scale.ready)

        yield [
            Probe(ACQUIRE_ALONE, partial(_acquire, alone, scale)),
            Probe(ACQUIRE_CROWDED, partial(_acquire, crowded, scale), ACQUIRE_ALONE),
            Probe(FIND_ALONE, partial(_find, alone, scale)),
            Probe(FIND_CROWDED, partial(_find, crowded, scale), FIND_ALONE),
        ]


async def _fill(backend: PersistentBackend, count: int) -> None:
    """As many instances that have ended, and as many that wait for a day to come."""
    day = AtDelay("later", wake_after=timedelta(days=365), next=AtTask("t0"))

    def runs() -> Iterable[WorkflowSnapshot]:
        for number in range(count):
            ended = WorkflowSnapshot.start(f"ended-{number}", DEFINITION, start_at="t0")
            yield ended.complete(OUTPUT)
            yield WorkflowSnapshot.start(f"later-{number}", DEFINITION, start_at=day)

    await _together(partial(backend.save_snapshot, run) for run in runs())


async def _acquire(backend: PersistentBackend, scale: Scale, watch: Stopwatch) -> int:
    calls_until_empty = scale.ready // POLLED_AT_ONCE

    for _ in range(scale.polls // calls_until_empty):
        claimed: list[AcquiredTask] = []

        with watch:
            for _ in range(calls_until_empty):
                claimed += await backend.acquire_tasks(
                    worker_id=WORKER, ttl=TTL, limit=POLLED_AT_ONCE
                )

        assert len(claimed) == scale.ready
        await _together(partial(backend.release_task_claim, task.claim) for task in claimed)

    return scale.polls // calls_until_empty * calls_until_empty


async def _find(backend: PersistentBackend, scale: Scale, watch: Stopwatch) -> int:
    with watch:
        for _ in range(scale.polls):
            found = await backend.find_available_tasks(worker_id=WORKER, limit=POLLED_AT_ONCE)
            assert len(found) == POLLED_AT_ONCE

    return scale.polls


# --- Set-up -----------------------------------------------------------------------------------


async def _start(backend: PersistentBackend, count: int) -> None:
    await _together(
        partial(backend.start_instance, f"run-{number}", DEFINITION, start_at="t0", input=b"{}")
        for number in range(count)
    )


async def _together(calls: Iterable[Callable[[], Coroutine[Any, Any, object]]]) -> None:
    """Set up fast, by group commit."""
    pending = iter(calls)

    while batch := tuple(islice(pending, 256)):
        async with create_task_group() as group:
            for call in batch:
                group.start_soon(call)


WORKLOADS: Final = (
    Workload("commit", "one commit after the other, at 10 tasks", "commit", _commits, turns=4),
    Workload("group", "commits one at a time, and together", "commit", _group, turns=2),
    Workload("W1", "linear workflows, a claim_next for each step", "step", _lengths),
    Workload("W2", "64 workflows of 20 steps at once", "step", _workflows, turns=2),
    Workload("W3", "load with 1,000 results", "load", _loads, turns=4),
    Workload("W4", "eight workers drain 5,000 instances of one step", "instance", _drains),
    Workload(
        "W5",
        "dispatch of 100 ready tasks, beside 20,000 ended and 20,000 far-future instances or none",
        "call for 10",
        _crowd,
        turns=4,
    ),
)
