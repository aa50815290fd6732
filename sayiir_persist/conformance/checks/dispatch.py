"""DISPATCH: what is offered, when, to whom and in which order; what time moves on by itself."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, cast

import anyio

from sayiir_persist import (
    INSTANCE_INPUT,
    AtDelay,
    AtFork,
    AtNode,
    AtSignal,
    AtTask,
    BackendClosedError,
    ClaimNotFoundError,
    Completed,
    InvalidArgumentError,
    PersistentBackend,
    Position,
    ReadyReason,
    RetryPolicy,
    SignalKind,
    Status,
    WakeHint,
    WakeupSource,
    WorkflowSnapshot,
)
from sayiir_persist.conformance.kit import Kit, expect, expect_equal, raises
from sayiir_persist.conformance.registry import check
from sayiir_persist.conformance.scenes import claim, fork, start, stored

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

MICROSECOND: Final = timedelta(microseconds=1)
TICK: Final = timedelta(milliseconds=5)
"""Apart enough for every store's resolution."""

NOW_AND_THEN: Final = RetryPolicy(9, Kit.short, multiplier=1.0)
LATER: Final = RetryPolicy(9, timedelta(hours=1))
PATIENCE: Final = timedelta(seconds=5)
"""How long a hint that should come at once may take, in real time."""


async def offered(backend: PersistentBackend, worker_id: str = "worker", **query: Any) -> list[str]:
    """The tasks that this worker is offered, in order."""
    found = await backend.find_available_tasks(worker_id=worker_id, **query)
    return [task.task_id for task in found]


async def at_exactly(kit: Kit, duration: timedelta, before: Callable[[], Awaitable[None]]) -> None:
    """Let time pass; where the clock can be moved, look a microsecond before the instant too."""
    if kit.manual_clock:
        await kit.elapse(duration - MICROSECOND)
        await before()
        await kit.elapse(MICROSECOND)
    else:
        await kit.elapse(duration)


def ready_at(snapshot: WorkflowSnapshot, task_id: str) -> datetime | None:
    """Since when the task of that snapshot is ready."""
    return next((task.ready_at for task in snapshot.ready_tasks() if task.task_id == task_id), None)


async def start_as(
    backend: PersistentBackend, instance_id: str, at: str | Position, **options: Any
) -> WorkflowSnapshot:
    """A new instance under an id of one's own."""
    options = {"definition_hash": "v1", **options}
    definition_hash = options.pop("definition_hash")
    outcome = await backend.start_instance(instance_id, definition_hash, start_at=at, **options)
    return outcome.snapshot


# What is offered.


@check("DISPATCH-001", "A started task is offered at once, with all that a worker needs.")
async def started_task_is_offered(kit: Kit) -> None:
    backend = await kit.open()
    await backend.start_instance(
        "run", "v7", start_at="charge", input=b"order", trace_parent="00-ab-cd-01", tags=("gpu",)
    )

    [task] = await backend.find_available_tasks(worker_id="worker")

    expect_equal(
        (task.instance_id, task.task_id, task.definition_hash, task.reason, task.attempt),
        ("run", "charge", "v7", ReadyReason.TASK, 1),
        "an offer names instance, task, definition, reason and attempt",
    )
    expect_equal(task.input, b"order", "the first task gets the instance's input")
    expect_equal(task.trace_parent, "00-ab-cd-01", "an offer carries the trace parent")
    expect_equal(
        task.snapshot,
        await backend.load_snapshot("run", results=False),
        "an offer carries the snapshot as it is stored",
    )
    expect_equal(
        ready_at(task.snapshot, "charge"),
        task.snapshot.created_at,
        "the first task is ready since the creation",
    )


@check("DISPATCH-002", "Finding does not claim; acquiring finds and claims in one step.")
async def finding_does_not_claim(kit: Kit) -> None:
    backend, other = await kit.open(), await kit.open()
    run = await start(kit, backend)

    await backend.find_available_tasks(worker_id="worker")

    expect_equal(await offered(other, "other"), ["charge"], "finding claims nothing")

    [task] = await backend.acquire_tasks(worker_id="worker", ttl=Kit.long, tags=("gpu", "eu"))

    expect_equal(
        (task.claim.instance_id, task.claim.task_id, task.claim.worker_id, task.claim.worker_tags),
        (run.instance_id, "charge", "worker", ("gpu", "eu")),
        "the claim of an acquired task names its task and its worker",
    )
    expect_equal(
        task.claim.expires_at, task.claim.claimed_at + Kit.long, "it ends a ttl after it was made"
    )
    expect_equal(await offered(other, "other"), [], "an acquired task is not offered to others")
    expect_equal(await offered(backend), [], "nor to the worker that holds it")
    expect(
        await other.claim_task(run.instance_id, "charge", worker_id="x", ttl=None) is None,
        "an acquired task is claimed",
    )
    done = await backend.commit_task(
        task.claim, task.snapshot.complete_task("charge", b"paid", next=None)
    )
    expect_equal(done.snapshot.status, Status.COMPLETED, "the claim of an acquired task commits")


@check("DISPATCH-003", "Each acquire gets other tasks, at most `limit` of them.")
async def acquire_respects_limit(kit: Kit) -> None:
    backend = await kit.open()

    for _ in range(5):
        await start(kit, backend)

    taken: list[str] = []

    for limit, expected in ((2, 2), (1, 1), (10, 2), (10, 0)):
        tasks = await backend.acquire_tasks(worker_id="worker", ttl=Kit.long, limit=limit)
        expect_equal(len(tasks), expected, f"acquire with limit={limit} takes what is left")
        taken += [task.instance_id for task in tasks]

    expect_equal(len(set(taken)), 5, "no task is handed out twice")


@check("DISPATCH-004", "A limit of zero or less returns an empty list.")
async def no_limit_no_tasks(kit: Kit) -> None:
    backend = await kit.open()
    await start(kit, backend)

    for limit in (0, -1):
        expect_equal(await offered(backend, limit=limit), [], f"find with limit={limit} is empty")
        expect_equal(
            await backend.acquire_tasks(worker_id="w", ttl=None, limit=limit),
            [],
            f"acquire with limit={limit} is empty",
        )

    expect_equal(await offered(backend), ["charge"], "and claims nothing")


@check("DISPATCH-005", "A definition filter offers only its definitions; an empty one nothing.")
async def definition_filter(kit: Kit) -> None:
    backend = await kit.open(aging_interval=None)

    for priority, definition in enumerate(("v1", "v2", "v3"), start=1):
        await backend.start_instance(
            kit.instance(), definition, start_at=f"task-{definition}", priority=priority
        )

    for hashes, expected in (
        (None, ["task-v1", "task-v2", "task-v3"]),
        (["v3", "v2"], ["task-v2", "task-v3"]),
        ({"v2"}, ["task-v2"]),
        (["V2", "v"], []),
        ([], []),
    ):
        expect_equal(
            await offered(backend, definition_hashes=hashes),
            expected,
            f"definition_hashes={hashes!r} is matched exactly",
        )

    expect_equal(
        await backend.acquire_tasks(worker_id="w", ttl=None, limit=9, definition_hashes=[]),
        [],
        "an empty filter acquires nothing",
    )
    [task] = await backend.acquire_tasks(worker_id="w", ttl=None, limit=9, definition_hashes=["v2"])
    expect_equal(task.task_id, "task-v2", "acquire filters by definition")


@check("DISPATCH-006", "A task goes to workers whose tags include all of its own.")
async def tags_are_a_subset(kit: Kit) -> None:
    backend = await kit.open()
    tasks: dict[str, tuple[str, ...]] = {
        "none": (),
        "gpu": ("gpu",),
        "both": ("gpu", "eu"),
        "twice": ("eu", "eu"),
        "case": ("GPU",),
    }

    for task_id, tags in tasks.items():
        await backend.start_instance(kit.instance(), "v1", start_at=AtTask(task_id, tags=tags))

    for accepted, expected in (
        ((), {"none", "gpu", "both", "twice", "case"}),
        (("gpu",), {"none", "gpu"}),
        (("eu",), {"none", "twice"}),
        (("eu", "gpu"), {"none", "gpu", "both", "twice"}),
        (("gpu", "x", "eu", "gpu"), {"none", "gpu", "both", "twice"}),
        (("GPU",), {"none", "case"}),
        (("gp", "gpu "), {"none"}),
    ):
        expect_equal(
            set(await offered(backend, tags=accepted)),
            expected,
            f"a worker that accepts {accepted!r} is offered what fits",
        )

    acquired = await backend.acquire_tasks(worker_id="w", ttl=None, limit=9, tags=("gpu",))
    expect_equal({task.task_id for task in acquired}, {"none", "gpu"}, "acquire looks at tags too")


@check("DISPATCH-007", "A task's own tags and priority replace the instance's, unset ones do not.")
async def task_overrides_instance(kit: Kit) -> None:
    backend = await kit.open(aging_interval=None)

    for task in (AtTask("inherits"), AtTask("freed", tags=()), AtTask("other", tags=("eu",))):
        await backend.start_instance(kit.instance(), "v1", start_at=task, tags=("gpu",))

    expect_equal(
        set(await offered(backend, tags=("eu",))),
        {"freed", "other"},
        "tags of a task replace the instance's, also by none",
    )
    expect_equal(
        set(await offered(backend, tags=("gpu",))),
        {"freed", "inherits"},
        "a task without tags of its own has the instance's",
    )

    priorities = await kit.open(namespace=f"{kit.namespace}-p", aging_interval=None)

    for own, of_instance in ((None, 2), (1, 5), (5, 1), (None, 4)):
        await priorities.start_instance(
            kit.instance(),
            "v1",
            start_at=AtTask(f"{own}-{of_instance}", priority=own),
            priority=of_instance,
        )

    await priorities.start_instance(kit.instance(), "v1", start_at="unset")
    expect_equal(
        await offered(priorities),
        ["1-5", "None-2", "unset", "None-4", "5-1"],
        "a task's priority, else the instance's, else 3 counts",
    )


@check("DISPATCH-008", "All gates come before the limit: what is not offered takes nobody's place.")
async def gates_before_limit(kit: Kit) -> None:
    backend = await kit.open(aging_interval=None)
    first = {"priority": 1}

    for _ in range(3):
        await start_as(backend, kit.instance("foreign"), "foreign", definition_hash="v2", **first)
        await start_as(backend, kit.instance("tagged"), "tagged", tags=("gpu",), **first)
        run = await start_as(backend, kit.instance("failed"), "failed", **first)
        await backend.save_snapshot(run.record_failure("failed", LATER, error="oops"))
        run = await start_as(backend, kit.instance("held"), "held", **first)
        await claim(backend, run.instance_id, "held")
        run = await start_as(backend, kit.instance("done"), "done", **first)
        await backend.save_task_result(run.instance_id, "done", b"")
        run = await start_as(backend, kit.instance("signal"), "signal", **first)
        await backend.store_signal(run.instance_id, SignalKind.PAUSE)
        run = await start_as(backend, kit.instance("paused"), "paused", **first)
        await backend.save_snapshot(run.pause())
        later = AtDelay("later", wake_after=Kit.long, next=AtTask("parked"))
        await start_as(backend, kit.instance("parked"), later, **first)

    await start_as(backend, kit.instance("last"), "last", priority=5)
    query: dict[str, Any] = {"limit": 1, "tags": ("cpu",), "definition_hashes": ["v1"]}

    expect_equal(
        await offered(backend, **query), ["last"], "find evaluates all gates before the limit"
    )
    [task] = await backend.acquire_tasks(worker_id="worker", ttl=Kit.long, **query)
    expect_equal(task.task_id, "last", "acquire evaluates all gates before the limit")


@check("DISPATCH-009", "Results come along only where asked for, the input in any case.")
async def results_on_demand(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend)
    await backend.save_snapshot(
        run.record_result("other", b"x").complete_task("charge", b"paid", next=AtTask("ship"))
    )

    for results in (False, True):
        [task] = await backend.find_available_tasks(worker_id="w", results=results)
        expect_equal(task.input, b"paid", f"the input comes along with results={results}")
        expect_equal(task.snapshot.results.loaded, results, f"results={results} is respected")

    [task] = await backend.acquire_tasks(worker_id="w", ttl=timedelta(0), results=True)
    expect_equal(
        dict(task.snapshot.results), {"other": b"x", "charge": b"paid"}, "acquire brings results"
    )
    [task] = await backend.acquire_tasks(worker_id="w", ttl=timedelta(0))
    expect(not task.snapshot.results.loaded, "acquire leaves results out unless asked for them")
    expect_equal(task.input, b"paid", "acquire brings the input in any case")


# Inputs.


@check("DISPATCH-010", "A task's input is the result of the node that it is wired to.")
async def inputs_are_wired(kit: Kit) -> None:
    backend = await kit.open()
    following = AtFork(
        "split",
        {
            "auto": AtTask("auto"),
            "explicit": AtTask("explicit", input_from="prepare"),
            "instance": AtTask("instance", input_from=INSTANCE_INPUT),
            "nothing": AtTask("nothing", input_from="never-ran"),
            "slept": AtDelay("nap", wake_after=timedelta(0), next=AtTask("slept")),
        },
        next=AtTask("join"),
    )
    run = await start(kit, backend)
    await backend.save_snapshot(
        run.record_result("prepare", b"prepared").complete_task("charge", b"paid", next=following)
    )

    found = await backend.find_available_tasks(worker_id="w", limit=9)
    expect_equal(
        {task.task_id: task.input for task in found},
        {
            "auto": b"paid",
            "explicit": b"prepared",
            "instance": b"order",
            "nothing": None,
            "slept": b"paid",
        },
        "a task gets what input_from names, else the result of the task before",
    )

    for task in await backend.acquire_tasks(worker_id="w", ttl=Kit.long, limit=9):
        change = completes(task.task_id, b"over")
        await backend.commit_task(task.claim, change)

    [join] = await backend.find_available_tasks(worker_id="w")
    expect_equal(
        (join.task_id, join.input), ("join", None), "after a fork no input is wired, but offered"
    )


def completes(
    task_id: str, output: bytes, next: Position | None = None
) -> Callable[[WorkflowSnapshot], WorkflowSnapshot]:
    """The change by which a task is completed."""
    return lambda snapshot: snapshot.complete_task(task_id, output, next=next)


@check("DISPATCH-011", "After a wait the input is the event, or the empty time-out.")
async def input_after_wait(kit: Kit) -> None:
    backend = await kit.open()
    answered, forgotten = [
        await start(
            kit, backend, AtSignal("approval", "approved", wake_after=within, next=AtTask("ship"))
        )
        for within in (Kit.long, Kit.short)
    ]

    await backend.send_event(answered.instance_id, "approved", b"yes")
    await kit.elapse(Kit.short)

    found = await backend.find_available_tasks(worker_id="w")
    expect_equal(
        {task.instance_id: (task.input, task.reason) for task in found},
        {
            answered.instance_id: (b"yes", ReadyReason.EVENT),
            forgotten.instance_id: (b"", ReadyReason.SIGNAL_TIMEOUT),
        },
        "the task after a wait gets the event or b''",
    )


@check("DISPATCH-012", "A task without input is offered, and an empty input is no absent one.")
async def absent_and_empty_input(kit: Kit) -> None:
    backend = await kit.open()
    await start(kit, backend, "absent", input=None)
    await start(kit, backend, "empty", input=b"")

    found = await backend.find_available_tasks(worker_id="w")

    expect_equal(
        {task.task_id: task.input for task in found},
        {"absent": None, "empty": b""},
        "inputs of None and b'' are told apart, and both tasks offered",
    )


# Order.


async def start_ready_at(
    kit: Kit, backend: PersistentBackend, tasks: dict[str, tuple[int, timedelta]], at: datetime
) -> None:
    """One instance for each task, with a priority, ready at exactly `at` plus its offset."""
    for task_id, (priority, offset) in tasks.items():
        delay = AtDelay(f"until-{task_id}", wake_at=at + offset, next=AtTask(task_id))
        await backend.start_instance(task_id, "v1", start_at=delay, priority=priority)


@check("DISPATCH-013", "Lower priorities come first, whatever the order of their creation.")
async def priority_order(kit: Kit) -> None:
    backend = await kit.open()

    for priority in (4, 2, 5, 1, 3):
        await backend.start_instance(
            kit.instance(), "v1", start_at=f"p{priority}", priority=priority
        )

    expect_equal(await offered(backend), ["p1", "p2", "p3", "p4", "p5"], "1 is first, 5 is last")
    expect_equal(await offered(backend, limit=2), ["p1", "p2"], "order comes before the limit")
    acquired = await backend.acquire_tasks(worker_id="w", ttl=None, limit=3)
    expect_equal(
        [task.task_id for task in acquired], ["p1", "p2", "p3"], "acquire takes them in order"
    )


@check("DISPATCH-014", "Of the same priority the one that has been ready longest comes first.")
async def first_come_first_served(kit: Kit) -> None:
    for aging in (None, timedelta(minutes=5)):
        namespace = f"{kit.namespace}-{'aging' if aging else 'plain'}"
        backend = await kit.open(namespace=namespace, aging_interval=aging)

        for instance_id in ("c", "a", "b"):
            await start_as(backend, instance_id, f"task-{instance_id}")
            await kit.elapse(TICK)

        expect_equal(
            await offered(backend), ["task-c", "task-a", "task-b"], "first ready, first offered"
        )


@check("DISPATCH-015", "Ties are broken by the bytes of the instance id, then of the task id.")
async def ties_by_id_bytes(kit: Kit) -> None:
    backend = await kit.open()
    ids = ["Z", "a", "b", "a-", "a/b", "\u00e9", "\ufb00", "\U0001f69a"]
    at = await backend.now() + timedelta(seconds=1)

    for instance_id in reversed(ids):
        tasks = fork("y", "Y", "\u00e9")
        delay = AtDelay("d", wake_at=at, next=tasks)
        await start_as(backend, instance_id, delay)

    await kit.until(backend, at)
    found = await backend.find_available_tasks(worker_id="w", limit=99)

    expect_equal(
        [(task.instance_id, task.task_id) for task in found],
        [
            (instance_id, task_id)
            for instance_id in sorted(ids, key=str.encode)
            for task_id in ("Y", "y", "\u00e9")
        ],
        "the order is total: instance id, then task id, by UTF-8 bytes",
    )


@check("DISPATCH-016", "A write elsewhere in the instance does not make its tasks younger.")
async def saves_keep_ready_at(kit: Kit) -> None:
    backend = await kit.open()
    old = await start_as(backend, "old", "old")
    await kit.elapse(TICK)
    await start_as(backend, "new", "new")
    await kit.elapse(TICK)

    saved = await backend.save_snapshot(old.count_iteration("loop"))
    await backend.update_snapshot("old", lambda s: s.record_result("note", b"x"))
    await backend.save_task_result("old", "elsewhere", b"y")

    expect_equal(await offered(backend), ["old", "new"], "order goes by ready_at, not updated_at")
    expect_equal(ready_at(saved, "old"), old.created_at, "a leaf that stays keeps its ready_at")


@check("DISPATCH-017", "Every aging interval of waiting is worth one priority, exactly.")
async def aging_is_exact(kit: Kit) -> None:
    interval = timedelta(seconds=1)
    step = MICROSECOND if kit.manual_clock else timedelta(milliseconds=1)
    backend = await kit.open(aging_interval=interval)
    at = await backend.now() + Kit.short
    await start_ready_at(
        kit,
        backend,
        {
            "old-3": (3, timedelta(0)),
            "just-too-old-2": (2, interval - step),
            "tie-2": (2, interval),
            "too-late-2": (2, interval + step),
        },
        at,
    )
    await kit.elapse(Kit.short + interval + TICK)

    expect_equal(
        await offered(backend),
        ["just-too-old-2", "old-3", "tie-2", "too-late-2"],
        "effective priorities are compared exactly, and a tie goes to the older task",
    )

    if kit.manual_clock:
        await kit.elapse(timedelta(days=365))
        expect_equal(
            await offered(backend),
            ["just-too-old-2", "old-3", "tie-2", "too-late-2"],
            "the order of two tasks does not change with time, however much passes",
        )


@check("DISPATCH-018", "The aging interval belongs to the backend that reads; None turns it off.")
async def aging_is_the_readers(kit: Kit) -> None:
    fast, slow, off = [
        await kit.open(aging_interval=interval)
        for interval in (timedelta(seconds=1), timedelta(hours=1), None)
    ]
    await start_as(fast, "old", "old", priority=5)
    await kit.elapse(timedelta(seconds=1.2))
    await start_as(off, "new", "new", priority=4)

    expect_equal(await offered(fast), ["old", "new"], "a second of age is worth one priority")
    expect_equal(await offered(slow), ["new", "old"], "with an interval of an hour it is not")
    expect_equal(await offered(off), ["new", "old"], "without aging priority is strict")

    if kit.manual_clock:
        await kit.elapse(timedelta(days=3))
        await start_as(off, "newest", "newest", priority=1)
        expect_equal(
            await offered(off), ["newest", "new", "old"], "without aging no age is worth anything"
        )
        expect_equal(await offered(slow), ["new", "old", "newest"], "with it, it is")


@check("DISPATCH-019", "An aging interval below one second is refused.")
async def aging_has_a_minimum(kit: Kit) -> None:
    for interval in (timedelta(0), timedelta(milliseconds=999), timedelta(seconds=-5)):
        with raises(InvalidArgumentError, f"aging_interval={interval} is refused"):
            await kit.open(aging_interval=interval)

    await kit.open(aging_interval=timedelta(seconds=1))


@check("DISPATCH-020", "A task that failed on a worker comes last for it, though it is offered.")
async def bias_to_other_workers(kit: Kit) -> None:
    backend = await kit.open()
    failed = await start_as(backend, "failed", "failed", priority=1)
    policy = RetryPolicy(9, timedelta(0))
    await backend.save_snapshot(
        failed.record_failure("failed", policy, error="oops", worker_id="unlucky")
    )
    await start_as(backend, "fresh", "fresh", priority=5)

    expect_equal(
        await offered(backend, "unlucky"), ["fresh", "failed"], "it yields to everything else"
    )
    expect_equal(
        await offered(backend, "other"), ["failed", "fresh"], "another worker gets it in its order"
    )
    acquired = await backend.acquire_tasks(worker_id="unlucky", ttl=Kit.long, limit=9)
    expect_equal(
        [task.task_id for task in acquired],
        ["fresh", "failed"],
        "it is a preference: the worker gets the task if nobody else is there",
    )


@check("DISPATCH-021", "The preference for other workers ends after one aging interval.")
async def bias_ends(kit: Kit) -> None:
    interval = timedelta(seconds=1)
    backend = await kit.open(aging_interval=interval)
    failed = await start_as(backend, "failed", "failed", priority=1)
    failed = await backend.save_snapshot(
        failed.record_failure("failed", NOW_AND_THEN, error="oops", worker_id="unlucky")
    )
    expect_equal(
        ready_at(failed, "failed"),
        failed.retries["failed"].retry_at,
        "a retry is ready since its retry_at",
    )
    await kit.elapse(Kit.short)
    await start_as(backend, "fresh", "fresh", priority=5)

    async def still_yields() -> None:
        expect_equal(await offered(backend, "unlucky"), ["fresh", "failed"], "it yields until then")

    await at_exactly(kit, interval, still_yields)
    expect_equal(
        await offered(backend, "unlucky"), ["failed", "fresh"], "a lone worker is not starved"
    )


@check("DISPATCH-022", "Without aging the preference for other workers ends after five minutes.")
async def bias_ends_without_aging(kit: Kit) -> None:
    backend = await kit.open(aging_interval=None)
    failed = await start_as(backend, "failed", "failed", priority=1)
    policy = RetryPolicy(9, timedelta(0))
    await backend.save_snapshot(
        failed.record_failure("failed", policy, error="oops", worker_id="unlucky")
    )
    await start_as(backend, "fresh", "fresh", priority=5)

    async def still_yields() -> None:
        expect_equal(await offered(backend, "unlucky"), ["fresh", "failed"], "it yields until then")

    await at_exactly(kit, timedelta(minutes=5), still_yields)
    expect_equal(await offered(backend, "unlucky"), ["failed", "fresh"], "then it does not")


@check(
    "DISPATCH-023", "A task whose claim expired queues from that expiry, a released one does not."
)
async def expired_claim_queues_anew(kit: Kit) -> None:
    backend = await kit.open()

    for instance_id in ("expired", "released", "waiting"):
        await start_as(backend, instance_id, instance_id)
        await kit.elapse(TICK)

    crashed = await claim(backend, "expired", "expired", ttl=Kit.short)
    given_back = await claim(backend, "released", "released")
    await backend.release_task_claim(given_back)
    await kit.elapse(Kit.short)

    expect_equal(
        await offered(backend),
        ["released", "waiting", "expired"],
        "a task that a worker crashed on counts from the expiry of its claim",
    )
    expect(crashed.expires_at is not None, "a claim with a ttl has an end")


# Claims and dispatch.


@check("DISPATCH-024", "A claimed task is offered again from exactly the end of its claim.")
async def expiry_offers_again(kit: Kit) -> None:
    backend = await kit.open()
    await start(kit, backend)
    [first] = await backend.acquire_tasks(worker_id="worker", ttl=Kit.short)

    async def held() -> None:
        expect_equal(await offered(backend), [], "a live claim hides its task")

    if kit.manual_clock:
        await held()

    await at_exactly(kit, Kit.short, held)
    [second] = await backend.acquire_tasks(worker_id="worker", ttl=Kit.long)

    expect(second.claim.fence > first.claim.fence, "the next claim has a larger fence")
    expect_equal(second.attempt, 1, "an expired claim is no failure")
    expect_equal(await offered(backend), [], "the second claim hides the task again")


@check("DISPATCH-025", "A ttl of zero is granted and already expired.")
async def zero_ttl(kit: Kit) -> None:
    backend = await kit.open()
    await start(kit, backend)

    [first] = await backend.acquire_tasks(worker_id="worker", ttl=timedelta(0))
    [again] = await backend.acquire_tasks(worker_id="worker", ttl=timedelta(0))

    expect(again.claim.fence > first.claim.fence, "fences grow with every claim")
    expect_equal(first.claim.expires_at, first.claim.claimed_at, "it ends as it begins")


@check("DISPATCH-026", "A task marked done is not offered, yet it can be claimed.")
async def done_tasks(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend)

    await backend.save_task_result(run.instance_id, "charge", b"paid")

    expect_equal(await offered(backend), [], "a task whose result is recorded is not offered")
    expect_equal(await backend.acquire_tasks(worker_id="w", ttl=Kit.long), [], "nor acquired")
    recovered = await claim(backend, run.instance_id)
    commit = await backend.commit_task(recovered, completes("charge", b"paid", AtTask("ship")))
    expect_equal(await offered(backend), ["ship"], "recovery moves on")
    expect_equal(commit.snapshot.results["charge"], b"paid", "and keeps the result")


@check("DISPATCH-027", "A task that backs off is offered from exactly its retry on.")
async def backing_off(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend)
    saved = await backend.save_snapshot(
        run.record_failure("charge", NOW_AND_THEN, error="card declined", worker_id="w1")
    )
    retry = saved.retries["charge"]
    expect(saved.updated_at is not None, "a stored snapshot has updated_at")
    expect_equal(
        retry.retry_at,
        cast("datetime", saved.updated_at) + Kit.short,
        "a retry is due its delay after the save that recorded the failure",
    )

    async def backs_off() -> None:
        expect_equal(await offered(backend), [], "a task that backs off is not offered")

    if kit.manual_clock:
        await backs_off()

    await at_exactly(kit, Kit.short, backs_off)
    [task] = await backend.find_available_tasks(worker_id="w2")
    expect_equal(
        (task.reason, task.attempt, ready_at(task.snapshot, "charge")),
        (ReadyReason.RETRY, 2, retry.retry_at),
        "a retry says so, counts its attempt, and is ready since its retry_at",
    )


@check("DISPATCH-028", "A task that backs off can be claimed by its id before its retry.")
async def claim_while_backing_off(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend)
    await backend.save_snapshot(run.record_failure("charge", LATER, error="oops"))

    early = await claim(backend, run.instance_id)
    commit = await backend.commit_task(early, completes("charge", b"paid"))

    expect_equal(commit.snapshot.status, Status.COMPLETED, "a backing-off task can be run early")
    expect_equal(dict(commit.snapshot.retries), {}, "success clears the retry state")


@check("DISPATCH-029", "Nothing of an instance with a pending control signal is offered.")
async def pending_signal_hides(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend)

    for kind in SignalKind:
        await backend.store_signal(run.instance_id, kind)
        expect_equal(await offered(backend), [], f"a pending {kind} hides the instance")
        expect_equal(
            await backend.acquire_tasks(worker_id="w", ttl=Kit.long), [], f"a {kind} stops acquire"
        )
        await backend.clear_signal(run.instance_id, kind)
        expect_equal(await offered(backend), ["charge"], f"clearing the {kind} shows it again")


@check("DISPATCH-030", "Nothing of a paused or ended instance is offered.")
async def only_what_is_in_progress(kit: Kit) -> None:
    backend = await kit.open()

    for status in Status:
        if status is not Status.IN_PROGRESS:
            await stored(kit, backend, status)

    expect_equal(await offered(backend, limit=99), [], "only instances in progress are offered")
    expect_equal(
        await backend.acquire_tasks(worker_id="w", ttl=Kit.long, limit=99), [], "or acquired"
    )


# Parks.


@check("DISPATCH-031", "A task behind a delay is offered from exactly the delay's end on.")
async def delay_ends(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend, AtDelay("nap", wake_after=Kit.short, next=AtTask("ship")))
    ends_at = cast("datetime", run.created_at) + Kit.short

    async def parked() -> None:
        expect_equal(await offered(backend), [], "a delay that runs hides what is behind it")
        early = await backend.claim_task(run.instance_id, "ship", worker_id="w", ttl=Kit.long)
        expect(early is None, "a task behind a delay cannot be claimed before its end")

    if kit.manual_clock:
        await parked()

    await at_exactly(kit, Kit.short, parked)
    [task] = await backend.acquire_tasks(worker_id="w", ttl=Kit.long)

    expect_equal(task.reason, ReadyReason.DELAY_ELAPSED, "the offer says why")
    expect_equal(ready_at(task.snapshot, "ship"), ends_at, "ready since exactly the delay's end")
    expect_equal(task.snapshot.version, run.version, "elapsed time needs no write")
    expect_equal(task.claim.task_id, "ship", "the claim is on the task behind the delay")
    commit = await backend.commit_task(task.claim, completes("ship", b"sent"), base=task.snapshot)
    expect_equal(commit.snapshot.state, Completed(b"sent"), "the commit writes what was virtual")
    expect_equal(commit.snapshot.version, run.version + 1, "in one version")


@check("DISPATCH-032", "A delay until an instant ends then, but not before it is entered.")
async def delay_until(kit: Kit) -> None:
    backend = await kit.open()
    wake_at = await backend.now() + Kit.short
    run = await start(kit, backend, AtDelay("nap", wake_at=wake_at, next=AtTask("ship")))
    past = AtDelay("past", wake_at=wake_at - Kit.long, next=AtTask("at-once"))
    late = await start(kit, backend, past)

    expect("at-once" in await offered(backend), "a delay until the past hides nothing")
    expect_equal(
        ready_at(await backend.load_snapshot(late.instance_id), "at-once"),
        late.created_at,
        "a delay whose instant has passed ends as it is entered",
    )
    await kit.until(backend, wake_at)
    loaded = await backend.load_snapshot(run.instance_id)
    expect_equal(ready_at(loaded, "ship"), wake_at, "a delay until an instant ends then")


@check("DISPATCH-033", "A chain of delays adds up, whoever polled when.")
async def chain_of_delays(kit: Kit) -> None:
    backend = await kit.open()

    def chain() -> Position:
        last = AtDelay("last", wake_after=Kit.short / 3, next=AtTask("ship"))
        middle = AtDelay("middle", wake_after=Kit.short / 3, next=last)
        return AtDelay("first", wake_after=Kit.short / 3, next=middle)

    polled, left_alone = await start(kit, backend, chain()), await start(kit, backend, chain())

    for _ in range(4):
        await kit.elapse(Kit.short / 4)
        await backend.load_snapshot(polled.instance_id)
        await backend.find_available_tasks(worker_id="w")

    found = await backend.find_available_tasks(worker_id="w")
    expect_equal(
        {task.instance_id: ready_at(task.snapshot, "ship") for task in found},
        {
            run.instance_id: cast("datetime", run.created_at) + 3 * (Kit.short / 3)
            for run in (polled, left_alone)
        },
        "each delay is entered at exactly the end of the one before",
    )
    expect_equal({task.reason for task in found}, {ReadyReason.DELAY_ELAPSED}, "the reason is why")
    expect_equal({task.snapshot.version for task in found}, {1}, "and nothing was written")


@check("DISPATCH-034", "A wait that nobody answers ends at exactly its deadline.")
async def wait_times_out(kit: Kit) -> None:
    backend = await kit.open()
    wait = AtSignal("approval", "approved", wake_after=Kit.short, next=AtTask("ship"))
    run = await start(kit, backend, wait)
    ends_at = cast("datetime", run.created_at) + Kit.short

    async def waits() -> None:
        expect_equal(await offered(backend), [], "a wait hides what is behind it")
        loaded = await backend.load_snapshot(run.instance_id)
        expect_equal(loaded.timed_out, frozenset[str](), "and has not timed out")

    await at_exactly(kit, Kit.short, waits)
    loaded = await backend.load_snapshot(run.instance_id)
    expect_equal(loaded.timed_out, frozenset({"approval"}), "the wait is marked as timed out")
    expect_equal(loaded.results.get("approval"), b"", "and its node recorded as b''")
    [task] = await backend.acquire_tasks(worker_id="w", ttl=Kit.long)
    expect_equal(
        (task.task_id, task.reason, ready_at(task.snapshot, "ship"), task.snapshot.version),
        ("ship", ReadyReason.SIGNAL_TIMEOUT, ends_at, run.version),
        "what follows is offered since exactly the deadline, without a write",
    )
    commit = await backend.commit_task(task.claim, completes("ship", b"sent"))
    expect_equal(
        await backend.load_task_result(run.instance_id, "approval"),
        b"",
        "the next commit writes the time-out",
    )
    expect_equal(commit.snapshot.timed_out, frozenset({"approval"}), "and its mark")


@check("DISPATCH-035", "An elapsed delay that leads to a fork, a wait or a node is moved on.")
async def advance_to_anything(kit: Kit) -> None:
    backend = await kit.open()
    to_fork = await start(kit, backend, nap(fork("left", "right")))
    to_wait = await start(kit, backend, nap(AtSignal("wait", "go", wake_after=Kit.long)))
    to_node = await start(kit, backend, nap(AtNode("child")))
    await kit.elapse(Kit.short)

    loaded = await backend.load_snapshot(to_wait.instance_id)
    wait = loaded.position
    expect(isinstance(wait, AtSignal), "a load shows elapsed time as it is")
    expect_equal(loaded.version, to_wait.version, "without a write")

    found = await backend.find_available_tasks(worker_id="w", limit=9)
    ends_at = cast("datetime", to_fork.created_at) + Kit.short
    expect_equal(
        [(task.task_id, task.reason, ready_at(task.snapshot, task.task_id)) for task in found],
        [(each, ReadyReason.DELAY_ELAPSED, ends_at) for each in ("left", "right")],
        "every branch of a fork behind a delay is ready since exactly its end",
    )

    for run in (to_fork, to_wait, to_node):
        loaded = await backend.load_snapshot(run.instance_id)
        expect(loaded.version > run.version, "dispatch writes a move that is due")

    moved = (await backend.load_snapshot(to_wait.instance_id)).position
    expect(isinstance(moved, AtSignal), "the wait is entered")
    expect_equal(
        getattr(moved, "entered_at", None),
        cast("datetime", to_wait.created_at) + Kit.short,
        "at exactly the delay's end",
    )
    node = (await backend.load_snapshot(to_node.instance_id)).position
    expect_equal(node, AtNode("child"), "the node is entered")


def nap(next: Position | None = None) -> AtDelay:
    """A short delay."""
    return AtDelay("nap", wake_after=Kit.short, next=next)


@check("DISPATCH-036", "An elapsed delay at the root without `next` completes the workflow.")
async def delay_completes(kit: Kit) -> None:
    backend = await kit.open()

    for name, dispatch in DISPATCHERS.items():
        plain = await start(kit, backend, nap())
        run = await start(kit, backend)
        recorded = await backend.save_snapshot(run.record_result("nap", b"slept").move_to(nap()))
        await kit.elapse(Kit.short)

        loaded = await backend.load_snapshot(plain.instance_id)
        expect_equal(loaded.status, Status.IN_PROGRESS, "a load never ends a workflow")
        expect(isinstance(loaded.position, AtDelay), "it stays parked until it is moved on")

        await dispatch(backend, plain.instance_id)
        await dispatch(backend, recorded.instance_id)

        states = [(await backend.load_snapshot(r.instance_id)).state for r in (plain, recorded)]
        expect_equal(
            states,
            [Completed(b""), Completed(b"slept")],
            f"{name} completes with the result of the delay's node, else b''",
        )


async def _acquire(backend: PersistentBackend, _instance_id: str) -> None:
    await backend.acquire_tasks(worker_id="w", ttl=Kit.long)


async def _find(backend: PersistentBackend, _instance_id: str) -> None:
    await backend.find_available_tasks(worker_id="w")


async def _claim(backend: PersistentBackend, instance_id: str) -> None:
    granted = await backend.claim_task(instance_id, "hidden", worker_id="w", ttl=Kit.long)
    expect(granted is None, "a task that is not there cannot be claimed")


async def _sweep(backend: PersistentBackend, _instance_id: str) -> None:
    await backend.sweep()


DISPATCHERS: Final[dict[str, Callable[[PersistentBackend, str], Awaitable[None]]]] = {
    "acquire_tasks": _acquire,
    "find_available_tasks": _find,
    "claim_task": _claim,
    "sweep": _sweep,
}


@check("DISPATCH-037", "A wait at the root without `next` completes with b'' when it times out.")
async def wait_completes(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend, AtSignal("approval", "approved", wake_after=Kit.short))
    await kit.elapse(Kit.short)

    await backend.find_available_tasks(worker_id="w")

    loaded = await backend.load_snapshot(run.instance_id)
    expect_equal(loaded.state, Completed(b""), "a time-out gives an empty output")
    expect_equal(loaded.timed_out, frozenset({"approval"}), "and leaves its mark")
    expect_equal(loaded.results.get("approval"), b"", "and a result of the wait's node")


@check("DISPATCH-038", "Claiming a task behind a move that is due carries it out first.")
async def claim_behind_advance(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend, nap(fork("left", "right")))

    async def not_yet() -> None:
        early = await backend.claim_task(run.instance_id, "left", worker_id="w", ttl=Kit.long)
        expect(early is None, "not before the park's instant has come")

    await at_exactly(kit, Kit.short, not_yet)
    left = await claim(backend, run.instance_id, "left")
    right = await claim(backend, run.instance_id, "right")

    await backend.commit_task(left, completes("left", b""))
    commit = await backend.commit_task(right, completes("right", b""))
    expect_equal(commit.snapshot.state, Completed(b""), "both branches were entered once")


@check("DISPATCH-039", "Moves that are due are made for the definitions asked for, whatever tags.")
async def advances_respect_definitions(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend, nap(fork("left")))
    await kit.elapse(Kit.short)

    expect_equal(
        await offered(backend, definition_hashes=["v2"]), [], "another definition gets nothing"
    )
    loaded = await backend.load_snapshot(run.instance_id)
    expect_equal(loaded.version, run.version, "and moves nothing on")

    await backend.start_instance("tagged", "v3", start_at=nap(fork("right")), tags=("gpu",))
    await kit.elapse(Kit.short)
    await offered(backend, definition_hashes=["v3"], tags=("cpu",))
    loaded = await backend.load_snapshot("tagged")
    expect(loaded.version > 1, "tags do not matter to a move that is due")


@check("DISPATCH-040", "A wait behind a delay ends its own time after the delay's end.")
async def wait_behind_delay(kit: Kit) -> None:
    backend = await kit.open()
    third = Kit.short / 3
    wait = AtSignal("wait", "go", wake_after=third, next=AtTask("ship"))
    run = await start(kit, backend, AtDelay("nap", wake_after=third, next=wait))
    await kit.elapse(Kit.short)

    [task] = await backend.acquire_tasks(worker_id="w", ttl=Kit.long)

    expect_equal(
        (task.task_id, task.reason, ready_at(task.snapshot, "ship")),
        ("ship", ReadyReason.SIGNAL_TIMEOUT, cast("datetime", run.created_at) + 2 * third),
        "instants add up exactly",
    )
    await backend.commit_task(task.claim, completes("ship", b""))
    expect_equal(
        (await backend.load_snapshot(run.instance_id)).timed_out,
        frozenset({"wait"}),
        "the wait timed out",
    )


# Forks.


@check(
    "DISPATCH-041", "Branches of a fork run side by side, each once, and join when all are done."
)
async def fork_and_join(kit: Kit) -> None:
    one, two = await kit.open(), await kit.open()
    run = await start(kit, one, fork("a", "b", "c", next=AtTask("join")))

    first = await one.acquire_tasks(worker_id="w1", ttl=Kit.long, limit=2)
    second = await two.acquire_tasks(worker_id="w2", ttl=Kit.long, limit=2)

    expect_equal([task.task_id for task in first], ["a", "b"], "branches are claimed one by one")
    expect_equal([task.task_id for task in second], ["c"], "by different workers")

    for task in (second[0], first[1]):
        commit = await one.commit_task(task.claim, completes(task.task_id, b"x"))
        expect_equal(commit.snapshot.status, Status.IN_PROGRESS, "the fork waits for all branches")
        expect_equal(await offered(one), [], "a branch that is done is not offered again")

    commit = await two.commit_task(first[0].claim, completes("a", b"y"))
    [join] = await one.find_available_tasks(worker_id="w1")
    expect_equal((join.task_id, join.input), ("join", None), "the last branch enters the join")
    expect_equal(
        ready_at(join.snapshot, "join"), commit.snapshot.updated_at, "at the instant it ended"
    )
    expect_equal(
        dict((await one.load_snapshot(run.instance_id)).results),
        {"a": b"y", "b": b"x", "c": b"x"},
        "no branch loses its result",
    )


@check("DISPATCH-042", "A branch is a sequence of its own, with parks and retries of its own.")
async def sequences_in_branches(kit: Kit) -> None:
    backend = await kit.open()
    slow = AtDelay("nap", wake_after=Kit.short, next=AtTask("slow"))
    wait = AtSignal("wait", "go", next=AtTask("told"))
    branches: dict[str, Position | None] = {"fast": AtTask("fast"), "slow": slow, "wait": wait}
    run = await start(kit, backend, AtFork("split", branches, next=AtTask("join")))

    if kit.manual_clock:
        expect_equal(await offered(backend), ["fast"], "parked branches are not offered")

    fast = await claim(backend, run.instance_id, "fast")
    await backend.commit_task(fast, completes("fast", b"1", AtTask("fast-2")))
    fast_2 = await claim(backend, run.instance_id, "fast-2")
    failed = await backend.commit_task(
        fast_2, lambda s: s.record_failure("fast-2", LATER, error="oops")
    )
    expect_equal(
        set(failed.snapshot.retries), {"fast-2"}, "a branch backs off without stopping the others"
    )
    await kit.elapse(Kit.short)
    await backend.send_event(run.instance_id, "go", b"event")

    found = await backend.find_available_tasks(worker_id="w")
    expect_equal(
        {task.task_id: (task.reason, task.input) for task in found},
        {
            "slow": (ReadyReason.DELAY_ELAPSED, b"order"),
            "told": (ReadyReason.EVENT, b"event"),
        },
        "each branch goes on when its own time has come",
    )

    for task_id in ("slow", "told", "fast-2"):
        held = await claim(backend, run.instance_id, task_id)
        await backend.commit_task(held, completes(task_id, b""))

    expect_equal(await offered(backend), ["join"], "all branches done, the join is ready")


@check("DISPATCH-043", "A join is ready since the latest end of its branches, also by time alone.")
async def join_by_time(kit: Kit) -> None:
    backend = await kit.open()
    third = Kit.short / 3
    branches: dict[str, Position | None] = {
        "late": AtDelay("late", wake_after=2 * third),
        "early": AtDelay("early", wake_after=third),
        "over": None,
    }
    run = await start(kit, backend, AtFork("split", branches, next=AtTask("join")))
    await kit.elapse(Kit.short)

    [join] = await backend.acquire_tasks(worker_id="w", ttl=Kit.long)

    expect_equal(
        (join.task_id, ready_at(join.snapshot, "join")),
        ("join", cast("datetime", run.created_at) + 2 * third),
        "the join is entered at the end of the branch that took longest",
    )


@check("DISPATCH-044", "A fork at the root without `next` completes with b''.")
async def fork_completes(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend, fork("a", "b"))

    for task in await backend.acquire_tasks(worker_id="w", ttl=Kit.long, limit=2):
        await backend.commit_task(task.claim, completes(task.task_id, b"x"))

    loaded = await backend.load_snapshot(run.instance_id)
    expect_equal(loaded.state, Completed(b""), "the last branch completes the workflow")

    parked: dict[str, Position | None] = {"a": nap(), "b": AtDelay("doze", wake_after=Kit.short)}
    by_time = await start(kit, backend, AtFork("split", parked))
    await kit.elapse(Kit.short)
    await backend.find_available_tasks(worker_id="w")
    loaded = await backend.load_snapshot(by_time.instance_id)
    expect_equal(loaded.state, Completed(b""), "also if time ends the last branch")


@check("DISPATCH-045", "Forks nest: an inner join ends the branch of the outer one.")
async def nested_forks(kit: Kit) -> None:
    backend = await kit.open()
    inner = AtFork("inner", {"x": AtTask("x"), "y": AtTask("y")}, next=AtTask("inner-join"))
    outer = AtFork("outer", {"in": inner, "z": AtTask("z")}, next=AtTask("outer-join"))
    run = await start(kit, backend, outer)
    order: list[set[str]] = []

    while tasks := await backend.acquire_tasks(worker_id="w", ttl=Kit.long, limit=9):
        order.append({task.task_id for task in tasks})

        for task in tasks:
            await backend.commit_task(task.claim, completes(task.task_id, b""))

    expect_equal(
        order,
        [{"x", "y", "z"}, {"inner-join"}, {"outer-join"}],
        "inner branches, the inner join, the outer join",
    )
    loaded = await backend.load_snapshot(run.instance_id)
    expect_equal(loaded.status, Status.COMPLETED, "and the end")


# Pauses.


@check("DISPATCH-046", "A pause does not move the end of a park, nor let it come.")
async def pause_freezes_parks(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend, nap(AtTask("ship")))
    stuck = await start(kit, backend, AtDelay("doze", wake_after=Kit.short, next=fork("left")))

    for each in (run, stuck):
        await backend.save_snapshot(each.pause())

    paused = [await backend.load_snapshot(each.instance_id) for each in (run, stuck)]
    await kit.elapse(Kit.short)
    await backend.find_available_tasks(worker_id="w")
    await backend.sweep()

    for before in paused:
        after = await backend.load_snapshot(before.instance_id)
        expect_equal(after, before, "a paused instance stays exactly where it is")

    await kit.elapse(TICK)
    resumed = await backend.unpause(run.instance_id)
    expect_equal(
        ready_at(resumed, "ship"),
        resumed.status_since,
        "a park that ended meanwhile lets go at the unpause, and paused time does not age",
    )
    expect_equal(await offered(backend), ["ship"], "what follows is offered at once")


@check("DISPATCH-047", "A pause writes what had elapsed before it.")
async def pause_writes_elapsed(kit: Kit) -> None:
    backend = await kit.open()
    wait = AtSignal("wait", "go", wake_after=Kit.short, next=AtTask("ship"))
    run = await start(kit, backend, wait)
    await kit.elapse(Kit.short)

    status = await backend.request_signal(run.instance_id, SignalKind.PAUSE)

    expect_equal(status, Status.PAUSED, "an idle instance is paused at once")
    loaded = await backend.load_snapshot(run.instance_id)
    expect_equal(
        [task.task_id for task in loaded.ready_tasks()], ["ship"], "it is paused past the wait"
    )
    expect_equal(
        await backend.load_task_result(run.instance_id, "wait"), b"", "the time-out is written"
    )


@check("DISPATCH-048", "Paused time does not age a task.")
async def unpause_resets_ready_at(kit: Kit) -> None:
    backend = await kit.open()
    run = await start_as(backend, "paused", "paused")
    await backend.save_snapshot(run.pause())
    await kit.elapse(TICK)
    await start_as(backend, "other", "other")
    await kit.elapse(TICK)

    resumed = await backend.unpause("paused")

    expect_equal(ready_at(resumed, "paused"), resumed.status_since, "ready since the unpause")
    expect_equal(await offered(backend), ["other", "paused"], "it queues from there")


@check("DISPATCH-049", "A pending signal stops moves that are due, not the view of elapsed time.")
async def signal_stops_advances(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend, nap(fork("left", "right")))
    await backend.store_signal(run.instance_id, SignalKind.PAUSE)
    await kit.elapse(Kit.short)

    expect_equal(await offered(backend), [], "nothing is offered")
    refused = await backend.claim_task(run.instance_id, "left", worker_id="w", ttl=Kit.long)
    expect(refused is None, "nothing is moved on by a claim")
    loaded = await backend.load_snapshot(run.instance_id)
    expect_equal(loaded.version, run.version, "nothing is written")
    expect_equal(
        [task.task_id for task in loaded.ready_tasks()], ["left", "right"], "time shows as it is"
    )

    await backend.clear_signal(run.instance_id, SignalKind.PAUSE)
    expect_equal(await offered(backend), ["left", "right"], "without the signal it goes on")


# Stalled instances.


@check("DISPATCH-050", "find_stalled lists what dispatch can never offer anything of.")
async def find_stalled(kit: Kit) -> None:
    backend = await kit.open()
    node = await start(kit, backend, AtNode("router"))
    done = await start(kit, backend)
    await backend.save_task_result(done.instance_id, "charge", b"paid")
    both: dict[str, Position | None] = {"node": AtNode("child"), "task": AtTask("pay"), "x": None}
    mixed = await start(kit, backend, AtFork("split", both))
    await backend.save_task_result(mixed.instance_id, "pay", b"paid")
    signalled = await start(kit, backend, AtNode("router"))
    await backend.store_signal(signalled.instance_id, SignalKind.CANCEL)

    one_open: dict[str, Position | None] = {"node": AtNode("child"), "task": AtTask("pay")}
    await start(kit, backend, AtFork("split", one_open))
    await start(kit, backend)
    await start(kit, backend, AtDelay("nap", wake_after=Kit.long))
    await start(kit, backend, AtSignal("wait", "go"))
    backing_off = await start(kit, backend)
    await backend.save_snapshot(backing_off.record_failure("charge", LATER, error="oops"))
    held = await start(kit, backend)
    await claim(backend, held.instance_id)
    await backend.save_task_result(held.instance_id, "charge", b"paid")

    for status in Status:
        if status is not Status.IN_PROGRESS:
            await stored(kit, backend, status, AtNode("router"))

    stalled = await backend.find_stalled(idle_for=timedelta(0))
    expect_equal(
        {info.instance_id for info in stalled},
        {run.instance_id for run in (node, done, mixed, signalled)},
        "nodes and tasks marked done only, without a live claim, pending signal or not",
    )
    page = await backend.list_snapshots()
    expect(all(info in page for info in stalled), "it answers what a listing shows")
    expect_equal(
        len(await backend.find_stalled(idle_for=timedelta(0), limit=3)), 3, "at most so many"
    )
    expect_equal(await backend.find_stalled(idle_for=timedelta(0), limit=0), [], "or none")


@check("DISPATCH-051", "find_stalled waits until an instance has been idle for that long.")
async def find_stalled_idle(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend, AtNode("router"))
    await kit.elapse(Kit.short)

    expect_equal(await backend.find_stalled(idle_for=Kit.long), [], "not idle for long enough")
    found = await backend.find_stalled(idle_for=Kit.short)
    expect_equal([info.instance_id for info in found], [run.instance_id], "idle for long enough")

    await backend.save_snapshot(run.count_iteration("loop"))
    expect_equal(await backend.find_stalled(idle_for=Kit.long), [], "a write is a sign of life")

    if kit.manual_clock:
        expect_equal(await backend.find_stalled(idle_for=Kit.short), [], "every write is")


@check("DISPATCH-052", "A task that is done is stalled once its worker's claim has ended.")
async def crashed_before_moving_on(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend)
    held = await claim(backend, run.instance_id, ttl=Kit.short)
    await backend.save_task_result(run.instance_id, "charge", b"paid", claim=held)
    await kit.elapse(Kit.short)

    stalled = await backend.find_stalled(idle_for=timedelta(0))

    expect_equal(
        [info.instance_id for info in stalled], [run.instance_id], "find_stalled reports a crash"
    )


# Sweep.


@check("DISPATCH-053", "sweep applies pending signals where nobody works, and says what it did.")
async def sweep_applies_signals(kit: Kit) -> None:
    backend = await kit.open()
    names = ("cancel", "pause", "both", "held", "paused")
    runs = {name: await start(kit, backend) for name in names}
    await backend.save_snapshot(runs["paused"].pause())
    held = await claim(backend, runs["held"].instance_id)

    for name, kind in (
        ("cancel", SignalKind.CANCEL),
        ("pause", SignalKind.PAUSE),
        ("both", SignalKind.PAUSE),
        ("both", SignalKind.CANCEL),
        ("held", SignalKind.CANCEL),
        ("paused", SignalKind.CANCEL),
    ):
        await backend.store_signal(runs[name].instance_id, kind)

    report = await backend.sweep()

    expect_equal(
        (set(report.cancelled), set(report.paused), report.more),
        (
            {runs[name].instance_id for name in ("cancel", "both", "paused")},
            {runs["pause"].instance_id},
            False,
        ),
        "a cancel wins, a paused instance is cancelled too, a live claim is left alone",
    )
    statuses = {
        name: (await backend.load_snapshot(run.instance_id)).status for name, run in runs.items()
    }
    expect_equal(
        statuses,
        {
            "cancel": Status.CANCELLED,
            "pause": Status.PAUSED,
            "both": Status.CANCELLED,
            "held": Status.IN_PROGRESS,
            "paused": Status.CANCELLED,
        },
        "what the report says is so",
    )
    await backend.release_task_claim(held)
    report = await backend.sweep()
    expect_equal(
        report.cancelled, (runs["held"].instance_id,), "once the claim is gone, it is next"
    )
    report = await backend.sweep()
    expect_equal(
        (report.cancelled, report.paused, report.advanced, report.purged_claims, report.more),
        ((), (), (), 0, False),
        "a repeat has no further effect",
    )


@check("DISPATCH-054", "sweep carries out the moves that are due.")
async def sweep_advances(kit: Kit) -> None:
    backend = await kit.open()
    ends = await start(kit, backend, nap())
    moves = await start(kit, backend, nap(fork("left", "right")))
    await start(kit, backend, nap(AtTask("ship")))
    await start(kit, backend, AtDelay("later", wake_after=Kit.long))
    await kit.elapse(Kit.short)

    report = await backend.sweep()

    expect_equal(
        set(report.advanced),
        {ends.instance_id, moves.instance_id},
        "it moves on what needs a write, and nothing else",
    )
    loaded = await backend.load_snapshot(ends.instance_id)
    expect_equal(loaded.state, Completed(b""), "an elapsed delay ends the workflow")
    expect_equal((await backend.sweep()).advanced, (), "a repeat has no further effect")


@check("DISPATCH-055", "sweep does at most `limit` instances at a time, the oldest first.")
async def sweep_is_bounded(kit: Kit) -> None:
    backend = await kit.open()
    runs = [await start(kit, backend) for _ in range(5)]

    for run in runs:
        await backend.store_signal(run.instance_id, SignalKind.CANCEL)
        await kit.elapse(TICK)

    cancelled: list[str] = []

    for expected, more in ((2, True), (2, True), (1, False)):
        report = await backend.sweep(limit=2)
        expect_equal(len(report.cancelled), expected, "a sweep with limit=2 does two at most")
        expect_equal(report.more, more, "`more` says whether there is more to do")
        cancelled += report.cancelled

    expect_equal(cancelled, [run.instance_id for run in runs], "the oldest come first")


@check("DISPATCH-056", "sweep purges claims that expired more than an hour ago, and no others.")
async def sweep_purges(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend, fork("a", "b", "c"))
    old = await claim(backend, run.instance_id, "a", ttl=timedelta(0))
    await kit.elapse(timedelta(minutes=30))
    young = await claim(backend, run.instance_id, "b", ttl=timedelta(0))
    eternal = await claim(backend, run.instance_id, "c", ttl=None)
    await backend.release_task_claim(eternal)
    eternal = await claim(backend, run.instance_id, "c", ttl=None)
    await kit.elapse(timedelta(minutes=31))
    other = await start(kit, backend)

    expect_equal((await backend.sweep()).purged_claims, 1, "one claim expired over an hour ago")
    with raises(ClaimNotFoundError, "a purged claim is like one that was never there"):
        await backend.release_task_claim(old)

    await backend.release_task_claim(young)
    await backend.release_task_claim(eternal)
    expect_equal(len(await offered(backend)), 4, "purging changes nothing that is offered")
    expect_equal(other.version, 1, "nor any snapshot")


@check("DISPATCH-057", "sweep leaves an event and its wait moved on, if a crash left them.")
async def sweep_drains(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend, AtSignal("wait", "go", next=AtTask("ship")))
    await backend.save_snapshot(run.pause())
    await backend.send_event(run.instance_id, "go", b"event")
    await backend.unpause(run.instance_id)

    report = await backend.sweep()

    expect_equal(report.advanced, (run.instance_id,), "sweep carries out a meeting that is due")
    loaded = await backend.load_snapshot(run.instance_id)
    expect_equal(loaded.results.get("wait"), b"event", "the event is recorded")


# Wake hints.


def wakeups(kit: Kit, backend: PersistentBackend) -> WakeupSource:
    """The backend as a source of hints; they are optional."""
    if not hasattr(backend, "wait_for_wakeup"):
        kit.skip("needs a backend with wait_for_wakeup")

    return cast("WakeupSource", backend)


async def hinted(source: WakeupSource, timeout: timedelta = PATIENCE) -> WakeHint | None:
    """The next hint."""
    return await source.wait_for_wakeup(timeout)


async def forget_hints(source: WakeupSource) -> None:
    """Take every hint that is there."""
    while await hinted(source, Kit.short) is not None:
        pass


def names(hint: WakeHint | None, instance_id: str, task_id: str) -> bool:
    """Whether a hint points at a task; one that names nothing points at everything."""
    return hint is not None and (
        hint.instance_id in (None, instance_id) and hint.task_id in (None, task_id)
    )


@check("DISPATCH-058", "What becomes ready is hinted at, and there when the hint is seen.")
async def hints_come(kit: Kit) -> None:
    backend = await kit.open()
    source = wakeups(kit, backend)
    await forget_hints(source)

    async def expect_hint(instance_id: str, task_id: str, after: str) -> None:
        hint = await hinted(source)
        expect(names(hint, instance_id, task_id), f"a hint comes after {after}, found {hint}")
        expect(task_id in await offered(backend), f"what a hint after {after} points at is there")
        await forget_hints(source)

    run = await start_as(backend, "run", "charge", tags=("gpu",))
    await expect_hint("run", "charge", "start_instance")

    held = await claim(backend, "run", "charge")
    await backend.commit_task(held, completes("charge", b"", AtTask("ship")))
    await expect_hint("run", "ship", "commit_task")

    await backend.update_snapshot("run", lambda s: s.pause())
    await backend.unpause("run")
    await expect_hint("run", "ship", "unpause")

    wait = AtSignal("wait", "go", next=AtTask("told"))
    await backend.update_snapshot("run", lambda s: s.move_to(wait))
    await forget_hints(source)
    await backend.send_event("run", "go", b"")
    await expect_hint("run", "told", "an event that was waited for")
    expect_equal(run.tags, ("gpu",), "tags are kept")


@check("DISPATCH-059", "A hint names instance, task, definition and tags, or nothing at all.")
async def hints_name(kit: Kit) -> None:
    backend = await kit.open()
    source = wakeups(kit, backend)
    await forget_hints(source)

    await start_as(backend, "run", AtTask("charge", tags=("gpu",)), definition_hash="v7")

    expect(
        await hinted(source)
        in (
            WakeHint(instance_id="run", task_id="charge", definition_hash="v7", tags=("gpu",)),
            WakeHint(),
        ),
        "a hint says what became ready",
    )


@check("DISPATCH-060", "Nothing is hinted at that cannot run now.")
async def no_false_hints(kit: Kit) -> None:
    backend = await kit.open()
    source = wakeups(kit, backend)
    later = AtDelay("later", wake_after=Kit.long, next=AtTask("parked"))
    await start_as(backend, "parked", later)
    await start_as(backend, "waits", AtSignal("wait", "go", next=AtTask("told")))
    await start_as(backend, "node", AtNode("child"))
    paused = WorkflowSnapshot.start("paused", "v1", start_at="charge").pause()
    await backend.save_snapshot(paused)
    ended = WorkflowSnapshot.start("ended", "v1", start_at="charge").complete(b"")
    await backend.save_snapshot(ended)
    silent = {"parked", "waits", "node", "paused", "ended"}

    while (hint := await hinted(source, Kit.short)) is not None:
        expect(
            hint.instance_id not in silent, f"no hint for what is parked, paused or ended: {hint}"
        )

    run = await start_as(backend, "backs-off", "charge")
    await start_as(backend, "done", "charge")
    await forget_hints(source)
    await backend.save_snapshot(run.record_failure("charge", LATER, error="oops"))
    await backend.save_task_result("done", "charge", b"")

    while (hint := await hinted(source, Kit.short)) is not None:
        expect(
            hint.instance_id not in {"backs-off", "done"},
            f"no hint for a retry that backs off, nor for a result: {hint}",
        )


@check("DISPATCH-061", "A hint that comes between an empty poll and the wait is not missed.")
async def no_missed_hint(kit: Kit) -> None:
    backend, other = await kit.open(), await kit.open()
    source = wakeups(kit, backend)
    await forget_hints(source)

    for _ in range(5):
        expect_equal(await offered(backend), [], "the poll is empty")
        run = await start(kit, other)
        hint = await hinted(source)
        expect(
            names(hint, run.instance_id, "charge"),
            "what came since the previous wait is returned at once",
        )
        expect_equal(await offered(backend), ["charge"], "and is there")
        await backend.delete_snapshot(run.instance_id)
        await forget_hints(source)


@check("DISPATCH-062", "A waiting worker is woken by a start elsewhere; without one it times out.")
async def waiting_worker_is_woken(kit: Kit) -> None:
    backend, other = await kit.open(), await kit.open()
    source = wakeups(kit, backend)
    expect(await hinted(source, timedelta(0)) is None, "without work there is no hint")
    woken: list[WakeHint | None] = []

    async def wait() -> None:
        await forget_hints(source)
        waiting.set()
        woken.append(await hinted(source))

    waiting = anyio.Event()
    started: list[WorkflowSnapshot] = []

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await waiting.wait()
        started.append(await start(kit, other))

    expect(names(woken[0], started[0].instance_id, "charge"), "the waiting worker is woken")


@check("DISPATCH-063", "Closing the backend ends a wait with BackendClosedError.")
async def closing_ends_waits(kit: Kit) -> None:
    backend = await kit.open()
    source = wakeups(kit, backend)
    ended: list[BaseException | None] = []

    async def wait() -> None:
        waiting.set()

        try:
            await hinted(source, timedelta(minutes=1))
        except BackendClosedError as error:
            ended.append(error)

    waiting = anyio.Event()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await waiting.wait()
        await anyio.lowlevel.checkpoint()
        await backend.aclose()

    expect(len(ended) == 1, "a wait ends with BackendClosedError when the backend is closed")


# Entering.


@check("DISPATCH-064", "A task that is entered anew starts anew: ready now, not done, unclaimed.")
async def entered_anew(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend)
    old = await claim(backend, run.instance_id)
    await backend.save_task_result(run.instance_id, "charge", b"first")
    await kit.elapse(TICK)

    entered = await backend.update_snapshot(
        run.instance_id, lambda s: s.forget("charge").move_to(AtTask("charge"))
    )

    expect_equal(ready_at(entered, "charge"), entered.updated_at, "it is ready since this write")
    expect(not entered.ready_tasks()[0].done, "it is not done")
    expect_equal(await offered(backend), ["charge"], "the old claim does not hide it")
    with raises(ClaimNotFoundError, "the old claim is dropped"):
        await backend.release_task_claim(old)


@check("DISPATCH-065", "A claim survives the re-entering of its task by the write that it fences.")
async def fencing_claim_survives(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend)
    held = await claim(backend, run.instance_id)

    await backend.update_snapshot(
        run.instance_id, lambda s: s.move_to(AtTask("charge")), claim=held
    )

    expect_equal(await offered(backend), [], "the claim that fenced the write stays")
    commit = await backend.commit_task(held, completes("charge", b"paid"))
    expect_equal(commit.snapshot.status, Status.COMPLETED, "and still commits")


@check("DISPATCH-066", "After a blind overwrite a task queues since the instant that it shows.")
async def overwrite_queues_as_shown(kit: Kit) -> None:
    backend = await kit.open()
    old = await start_as(backend, "paused", "paused")
    await backend.save_snapshot(old.pause())
    await kit.elapse(TICK)
    await start_as(backend, "other", "other")
    await kit.elapse(TICK)
    resumed = await backend.unpause("paused")

    saved = await backend.save_snapshot(old, overwrite=True)

    expect_equal(
        ready_at(saved, "paused"), resumed.status_since, "nothing is ready before status_since"
    )
    expect_equal(await offered(backend), ["other", "paused"], "and the order of dispatch says so")
