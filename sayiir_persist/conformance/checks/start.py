"""START: creating instances, and the policies for an id that is taken."""

from __future__ import annotations

from functools import partial
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from sayiir_persist import (
    AtDelay,
    AtFork,
    AtNode,
    AtSignal,
    AtTask,
    ClaimLostError,
    ClaimNotFoundError,
    Completed,
    ConflictPolicy,
    DefinitionMismatchError,
    InstanceExistsError,
    InstanceNotFoundError,
    InvalidArgumentError,
    PayloadTooLargeError,
    Position,
    ReadyReason,
    SignalKind,
    SignalRequest,
    StaleSnapshotError,
    Status,
    WorkflowSnapshot,
)
from sayiir_persist.conformance.kit import Kit, expect, expect_equal, raises, refused, succeeded
from sayiir_persist.conformance.registry import check
from sayiir_persist.conformance.scenes import (
    BAD_IDS,
    TERMINAL,
    claim,
    expect_missing,
    expect_refused,
    fork,
    held,
    shape,
    start,
    stored,
)

USE_EXISTING, TERMINATE_EXISTING = (
    ConflictPolicy.USE_EXISTING,
    ConflictPolicy.TERMINATE_EXISTING,
)


@check("START-001", "start_instance creates a running instance with everything it was given.")
async def creates(kit: Kit) -> None:
    backend, other = await kit.open(), await kit.open()

    outcome = await backend.start_instance(
        "run",
        "v1",
        start_at="charge",
        input=b"order",
        priority=2,
        tags=["gpu", "eu"],
        trace_parent="00-trace",
    )

    expect(outcome.created, "a new instance is created")
    snapshot = outcome.snapshot
    expect_equal(snapshot.status, Status.IN_PROGRESS, "it runs")
    expect_equal(snapshot.version, 1, "its version is 1")
    expect_equal(
        (snapshot.definition_hash, snapshot.input, snapshot.priority, snapshot.tags),
        ("v1", b"order", 2, ("gpu", "eu")),
        "it has the definition, input, priority and tags that were given",
    )
    expect_equal(snapshot.trace_parent, "00-trace", "and the trace parent")
    expect(snapshot.results.loaded, "what was just created has all its results: none")
    expect_equal(await other.load_snapshot("run"), snapshot, "start returns what is stored")


@check("START-002", "A task at the start is dispatchable at once, with the instance's input.")
async def dispatchable_at_once(kit: Kit) -> None:
    backend, other = await kit.open(), await kit.open()
    snapshot = (
        await backend.start_instance(
            "run", "v1", start_at="charge", input=b"order", trace_parent="00-trace"
        )
    ).snapshot

    [task] = await other.acquire_tasks(worker_id="worker", ttl=kit.long)

    expect_equal(
        (task.instance_id, task.task_id, task.definition_hash),
        ("run", "charge", "v1"),
        "a worker acquires the first task",
    )
    expect_equal(task.input, b"order", "its input is the instance's")
    expect_equal(task.reason, ReadyReason.TASK, "because its turn came")
    expect_equal(task.attempt, 1, "for the first time")
    expect_equal(task.trace_parent, "00-trace", "with the trace parent of the instance")
    expect_equal(task.snapshot.version, snapshot.version, "with the snapshot as it is")


@check("START-003", "An instance can start at any position; a string is a task's id.")
async def starts_anywhere(kit: Kit) -> None:
    backend = await kit.open()
    positions: tuple[Position, ...] = (
        AtTask("charge", priority=1, tags=("gpu",)),
        AtDelay("cool", wake_after=kit.long, next=AtTask("ship")),
        AtSignal("approval", "approved"),
        fork("pack", "ship", next=AtTask("join")),
        AtNode("router"),
    )

    for position in positions:
        started = await start(kit, backend, position)
        local = WorkflowSnapshot.start(started.instance_id, "v1", start_at=position)
        expect_equal(shape(started), shape(local), "an instance starts where it was told to")

    expect_equal(
        shape(await start(kit, backend, "charge")),
        shape(await start(kit, backend, AtTask("charge"))),
        "a string is a task's id",
    )


@check("START-004", "By default a taken id is InstanceExistsError, whatever the stored status.")
async def taken(kit: Kit) -> None:
    backend = await kit.open()

    for status in Status:
        before = await stored(kit, backend, status)

        error = await expect_refused(
            backend,
            before,
            InstanceExistsError,
            f"starting an id that is taken is refused while that is {status}",
            partial(backend.start_instance, before.instance_id, "v1", start_at="other"),
        )

        expect_equal(error.instance_id, before.instance_id, "the error names the instance")
        expect_equal(error.status, status, "the error says which status it has")


@check("START-005", "use_existing returns what is stored, without results, and writes nothing.")
async def use_existing(kit: Kit) -> None:
    backend = await kit.open()

    for status in Status:
        before = await stored(kit, backend, status)
        await kit.elapse(kit.short / 10)

        outcome = await backend.start_instance(
            before.instance_id, "v1", start_at="other", input=b"new", on_conflict=USE_EXISTING
        )

        expect(not outcome.created, f"what was {status} already is not created")
        expect(not outcome.snapshot.results.loaded, "an existing snapshot comes without results")
        expect_equal(
            outcome.snapshot,
            await backend.load_snapshot(before.instance_id, results=False),
            "use_existing returns what is stored",
        )
        expect_equal(
            await backend.load_snapshot(before.instance_id), before, "use_existing writes nothing"
        )


@check("START-006", "use_existing and terminate_existing create where nothing is stored.")
async def policies_create(kit: Kit) -> None:
    backend = await kit.open()

    for policy in (USE_EXISTING, TERMINATE_EXISTING):
        outcome = await backend.start_instance(
            kit.instance(), "v1", start_at="charge", input=b"order", on_conflict=policy
        )

        expect(outcome.created, f"{policy} creates where nothing is stored")
        expect_equal(outcome.snapshot.version, 1, "as version 1")
        loaded = await backend.load_snapshot(outcome.snapshot.instance_id)
        expect_equal(loaded, outcome.snapshot, "and returns what is stored")


@check("START-007", "Another definition is refused before any policy, and nothing changes.")
async def definition_mismatch(kit: Kit) -> None:
    backend = await kit.open()

    for status in Status:
        before = await stored(kit, backend, status)

        for policy in ConflictPolicy:
            error = await expect_refused(
                backend,
                before,
                DefinitionMismatchError,
                f"starting another definition with {policy} is refused",
                partial(
                    backend.start_instance,
                    before.instance_id,
                    "v2",
                    start_at="other",
                    on_conflict=policy,
                ),
            )
            expect_equal(error.expected, "v2", "the error says which definition was given")
            expect_equal(error.found, "v1", "the error says which definition is stored")
            expect_equal(error.instance_id, before.instance_id, "and names the instance")


@check("START-008", "terminate_existing replaces an instance in any status by a new incarnation.")
async def terminate_existing(kit: Kit) -> None:
    backend = await kit.open()

    for status in Status:
        old = await stored(kit, backend, status)
        await kit.elapse(kit.short / 10)

        outcome = await backend.start_instance(
            old.instance_id,
            "v1",
            start_at="other",
            input=b"new",
            priority=1,
            on_conflict=TERMINATE_EXISTING,
        )

        expect(outcome.created, f"what was {status} is replaced by a new instance")
        new = await backend.load_snapshot(old.instance_id)
        expect_equal(new, outcome.snapshot, "which is returned")
        expect_equal(new.version, 1, "the new instance begins with version 1")
        expect(new.incarnation != old.incarnation, "it has an incarnation of its own")
        expect(new.created_at != old.created_at, "it was created by the restart")
        expect_equal(new.status, Status.IN_PROGRESS, "it runs")
        expect_equal((new.input, new.priority), (b"new", 1), "with what it was given")
        expect_equal(dict(new.results), {}, "and none of the old results")
        expect_equal(
            await backend.load_task_result(old.instance_id, "prepare"),
            None,
            "not even a single one",
        )


@check("START-009", "No signal, event or done mark of the old run reaches the new one.")
async def restart_inherits_nothing(kit: Kit) -> None:
    backend = await kit.open()
    snapshot, _ = await held(kit, backend)
    instance_id = snapshot.instance_id
    await backend.save_task_result(instance_id, "charge", b"old")
    await backend.store_signal(instance_id, SignalKind.CANCEL, SignalRequest(reason="old"))
    await backend.store_signal(instance_id, SignalKind.PAUSE, SignalRequest(reason="old"))
    await backend.send_event(instance_id, "paid", b"old")

    await backend.start_instance(
        instance_id, "v1", start_at="charge", on_conflict=TERMINATE_EXISTING
    )

    for kind in SignalKind:
        expect_equal(
            await backend.get_signal(instance_id, kind), None, "no old signal reaches the new run"
        )

    expect_equal(
        await backend.consume_event(instance_id, "paid"), None, "no old event reaches the new run"
    )
    offered = await backend.find_available_tasks(worker_id="worker")
    expect_equal(
        [task.task_id for task in offered],
        ["charge"],
        "the new run's task is offered: no old claim and no old done mark is on it",
    )


@check(
    "START-010", "A worker of the old run can neither save, commit, extend nor release any more."
)
async def old_workers_are_out(kit: Kit) -> None:
    backend = await kit.open()
    old, claimed = await held(kit, backend)
    instance_id = old.instance_id
    await backend.start_instance(
        instance_id, "v1", start_at="charge", on_conflict=TERMINATE_EXISTING
    )
    new = await backend.load_snapshot(instance_id)
    step = old.complete_task("charge", b"old", next=AtTask("ship"))

    await expect_refused(
        backend,
        new,
        StaleSnapshotError,
        "a save from the old run is refused",
        lambda: backend.save_snapshot(step),
    )
    await expect_refused(
        backend,
        new,
        ClaimLostError,
        "a commit from the old run is refused",
        lambda: backend.commit_task(claimed, step),
    )
    await expect_refused(
        backend,
        new,
        ClaimLostError,
        "a change from the old run is refused",
        lambda: backend.commit_task(
            claimed, lambda found: found.complete_task("charge", b"old", next=None)
        ),
    )
    await expect_refused(
        backend,
        new,
        ClaimLostError,
        "an update from the old run is refused",
        lambda: backend.update_snapshot(
            instance_id, lambda found: found.count_iteration("loop"), claim=claimed
        ),
    )
    await expect_refused(
        backend,
        new,
        ClaimLostError,
        "a result from the old run is refused",
        lambda: backend.save_task_result(instance_id, "charge", b"old", claim=claimed),
    )
    await expect_refused(
        backend,
        new,
        ClaimNotFoundError,
        "an extension from the old run is refused",
        lambda: backend.extend_task_claim(claimed, ttl=kit.long),
    )
    await expect_refused(
        backend,
        new,
        ClaimNotFoundError,
        "a release from the old run is refused",
        lambda: backend.release_task_claim(claimed),
    )

    again = await claim(backend, instance_id, worker_id=claimed.worker_id)
    expect(again.fence > claimed.fence, "a fence of the new run is above those of the old one")

    for what, call in {
        "extension": lambda: backend.extend_task_claim(claimed, ttl=kit.long),
        "release": lambda: backend.release_task_claim(claimed),
        "result": lambda: backend.save_task_result(instance_id, "charge", b"old", claim=claimed),
    }.items():
        await expect_refused(
            backend,
            new,
            ClaimLostError,
            f"an old {what} is refused even while the same worker holds the new claim",
            call,
        )


@check("START-011", "Of concurrent starts exactly one creates, and the stored input is its.")
async def one_start_wins(kit: Kit) -> None:
    first, second = await kit.open(), await kit.open()

    for instance_id in ("run-a", "run-b", "run-c"):
        outcomes = await kit.together(
            *(
                partial(
                    store.start_instance, instance_id, "v1", start_at="charge", input=b"%d" % number
                )
                for number, store in enumerate([first, second] * 8)
            )
        )

        winners = succeeded(outcomes)
        expect_equal(len(winners), 1, "exactly one concurrent start creates the instance")
        expect(winners[0].created, "which says so")
        expect_equal(len(refused(outcomes, InstanceExistsError)), 15, "every other one is refused")
        loaded = await first.load_snapshot(instance_id)
        expect_equal(loaded, winners[0].snapshot, "what is stored is the winner's")


@check("START-012", "Of concurrent starts with use_existing exactly one creates, all see the same.")
async def one_start_creates(kit: Kit) -> None:
    first, second = await kit.open(), await kit.open()

    outcomes = await kit.together(
        *(
            partial(
                store.start_instance,
                "run",
                "v1",
                start_at="charge",
                input=b"%d" % number,
                on_conflict=USE_EXISTING,
            )
            for number, store in enumerate([first, second] * 8)
        )
    )

    found = succeeded(outcomes)
    expect_equal(len(found), 16, "no concurrent start with use_existing is refused")
    expect_equal(sum(each.created for each in found), 1, "exactly one creates the instance")
    expect_equal(
        {(each.snapshot.incarnation, each.snapshot.input) for each in found},
        {((stored := await first.load_snapshot("run")).incarnation, stored.input)},
        "all of them return the one that was created",
    )


@check(
    "START-013", "Concurrent restarts each create an incarnation of their own, one after another."
)
async def concurrent_restarts(kit: Kit) -> None:
    first, second = await kit.open(), await kit.open()
    await first.start_instance("run", "v1", start_at="charge")

    outcomes = await kit.together(
        *(
            partial(
                store.start_instance,
                "run",
                "v1",
                start_at="charge",
                input=b"%d" % number,
                on_conflict=TERMINATE_EXISTING,
            )
            for number, store in enumerate([first, second] * 4)
        )
    )

    found = succeeded(outcomes)
    expect_equal(len(found), 8, "no restart is refused because of another")
    expect(all(each.created for each in found), "each of them creates")
    incarnations = {each.snapshot.incarnation for each in found}
    expect_equal(len(incarnations), 8, "an incarnation of its own")
    loaded = await first.load_snapshot("run")
    expect_equal(loaded.version, 1, "what is stored is a new instance")
    expect(loaded.incarnation in incarnations, "and one of those that were created")


@check("START-014", "terminate_existing is one step: nobody ever sees the id free.")
async def restart_is_atomic(kit: Kit) -> None:
    first, second = await kit.open(), await kit.open()
    await first.start_instance("run", "v1", start_at="charge")
    finished = anyio.Event()

    async def restart() -> None:
        for number in range(20):
            await first.start_instance(
                "run", "v1", start_at="charge", input=b"%d" % number, on_conflict=TERMINATE_EXISTING
            )

        finished.set()

    async def watch() -> None:
        while not finished.is_set():
            expect_equal(len(await second.list_snapshots()), 1, "a restart never unlists the id")

            with raises(InstanceExistsError, "a restart never lets another start slip in"):
                await second.start_instance("run", "v1", start_at="charge")

            await second.load_snapshot("run")
            await checkpoint()

    for outcome in await kit.together(restart, watch):
        if isinstance(outcome, InstanceNotFoundError):
            expect(False, "a restart never lets the instance be missing")
        elif isinstance(outcome, Exception):
            raise outcome


@check("START-015", "A repeated start is refused, shown what is stored, or restarts, by policy.")
async def repeated_start(kit: Kit) -> None:
    backend = await kit.open()

    async def again(policy: ConflictPolicy) -> WorkflowSnapshot:
        outcome = await backend.start_instance(
            "run", "v1", start_at="charge", input=b"order", on_conflict=policy
        )
        return outcome.snapshot

    first = await again(ConflictPolicy.FAIL)

    with raises(InstanceExistsError, "a repeated start is refused by default"):
        await again(ConflictPolicy.FAIL)

    expect_equal(
        (await again(USE_EXISTING)).incarnation, first.incarnation, "use_existing shows the first"
    )
    restarted = await again(TERMINATE_EXISTING)
    expect(restarted.incarnation != first.incarnation, "terminate_existing restarts")
    twice = await again(TERMINATE_EXISTING)
    expect(twice.incarnation != restarted.incarnation, "and restarts again")


@check("START-016", "Invalid arguments are refused before anything else, and create nothing.")
async def invalid_arguments(kit: Kit) -> None:
    backend = await kit.open(max_payload=1024)
    ended = await stored(kit, backend, Status.COMPLETED)
    sound: dict[str, Any] = {"definition_hash": "v1", "start_at": "charge"}
    arguments: dict[str, dict[str, Any]] = {
        "65 tags": {"tags": ["a"] * 65},
        "one str as tags": {"tags": "gpu"},
        "a trace parent above 4 KiB": {"trace_parent": "x" * 4097},
        "a tree with one id twice": {"start_at": fork("pack", "ship", next=AtTask("pack"))},
        "priority 0": {"priority": 0},
        "priority 6": {"priority": 6},
    }

    for what, bad in BAD_IDS.items():
        arguments[f"{what} as definition"] = {"definition_hash": bad}
        arguments[f"{what} as task"] = {"start_at": bad}
        arguments[f"{what} as tag"] = {"tags": [bad]}

    for what, given in arguments.items():
        for instance_id in ("new", ended.instance_id):
            with raises(InvalidArgumentError, f"a start with {what} is refused"):
                await backend.start_instance(instance_id, **{**sound, **given})

    with raises(PayloadTooLargeError, "an input above max_payload is refused") as caught:
        await backend.start_instance("new", "v1", start_at="charge", input=bytes(1025))

    expect_equal((caught.error.size, caught.error.limit), (1025, 1024), "the error says the size")
    await expect_missing(backend, "new", "a start that was refused creates nothing")
    outcome = await backend.start_instance("new", "v1", start_at="charge", input=bytes(1024))
    expect_equal(outcome.snapshot.input, bytes(1024), "an input of exactly max_payload is stored")


@check("START-017", "The snapshot of a start is saved from like any other.")
async def started_snapshot_is_savable(kit: Kit) -> None:
    backend = await kit.open()
    created = await start(kit, backend)

    saved = await backend.save_snapshot(created.record_result("charge", b"paid"))
    expect_equal(saved.version, 2, "what a start created can be saved")

    outcome = await backend.start_instance(
        created.instance_id, "v1", start_at="charge", on_conflict=USE_EXISTING
    )
    saved = await backend.save_snapshot(outcome.snapshot.record_result("more", b"x"))
    expect_equal(saved.version, 3, "and what it found, though without its results")
    loaded = await backend.load_snapshot(created.instance_id)
    expect_equal(dict(loaded.results), {"charge": b"paid", "more": b"x"}, "none of which is lost")


@check("START-018", "An instance that has ended is started again only by terminate_existing.")
async def restart_of_the_ended(kit: Kit) -> None:
    backend = await kit.open()

    for status in TERMINAL:
        ended = await stored(kit, backend, status)

        outcome = await backend.start_instance(
            ended.instance_id, "v1", start_at="charge", on_conflict=TERMINATE_EXISTING
        )

        expect_equal(outcome.snapshot.status, Status.IN_PROGRESS, f"what was {status} runs anew")
        await claim(backend, ended.instance_id)


@check("START-019", "A start at a fork without open branches goes on to what follows it.")
async def starts_behind_a_closed_fork(kit: Kit) -> None:
    backend = await kit.open()

    joined = await start(kit, backend, AtFork("fan-out", {"a": None}, next=AtTask("join")))
    ended = await start(kit, backend, AtFork("fan-out", {"a": None}))

    expect_equal([task.task_id for task in joined.ready_tasks()], ["join"], "the join is ready")
    await claim(backend, joined.instance_id, "join")
    expect_equal(ended.state, Completed(b""), "without a join the workflow is complete")
    loaded = await backend.load_snapshot(ended.instance_id)
    expect_equal(loaded, ended, "a start returns what is stored")
