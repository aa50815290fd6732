"""SNAPSHOT-6xx: how time shows: parks that have ended, retries, and when a task became ready."""

from __future__ import annotations

from datetime import datetime, timedelta

from sayiir_persist import (
    AtDelay,
    AtFork,
    AtSignal,
    AtTask,
    ConflictPolicy,
    Failed,
    ReadyReason,
    RetryPolicy,
    SignalKind,
    WorkflowSnapshot,
)
from sayiir_persist.conformance.kit import ExpectationError, Kit, expect, expect_equal
from sayiir_persist.conformance.registry import check
from sayiir_persist.conformance.scenes import RETRY, claim, held, start


def _park(snapshot: WorkflowSnapshot) -> AtDelay | AtSignal:
    """The park at which the whole instance stands."""
    if isinstance(snapshot.position, AtDelay | AtSignal):
        return snapshot.position

    raise ExpectationError(f"the instance stands at a park, not at {snapshot.position!r}")


def _task(snapshot: WorkflowSnapshot) -> AtTask:
    """The task at which the whole instance stands."""
    if isinstance(snapshot.position, AtTask):
        return snapshot.position

    raise ExpectationError(f"the instance stands at a task, not at {snapshot.position!r}")


def _ends_at(snapshot: WorkflowSnapshot) -> datetime:
    """When the park ends at which the whole instance stands."""
    return _instant(_park(snapshot).ends_at)


def _instant(stamp: datetime | None) -> datetime:
    if stamp is None:
        raise ExpectationError("the store stamps an instant here, not None")

    return stamp


@check("SNAPSHOT-601", "A delay is entered by its write, and counts from there.")
async def delay_counts_from_entering(kit: Kit) -> None:
    backend = await kit.open()
    started = await start(kit, backend, AtDelay("cool", wake_after=kit.long, next=AtTask("ship")))
    park = _park(started)
    expect_equal(park.entered_at, started.created_at, "a delay is entered by the write that has it")
    expect_equal(_ends_at(started), _instant(park.entered_at) + kit.long, "and ends so much later")

    await kit.elapse(kit.short / 10)
    saved = await backend.save_snapshot(started.count_iteration("loop"))
    expect_equal(_park(saved), park, "a save that leaves it where it is does not enter it again")

    saved = await backend.save_snapshot(saved.move_to(AtDelay("cool", wake_after=kit.long)))
    expect_equal(_park(saved).entered_at, saved.updated_at, "one that is handed in anew is entered")


@check(
    "SNAPSHOT-602", "At exactly its end a delay shows as what follows it, entered at that instant."
)
async def elapsed_delay(kit: Kit) -> None:
    backend = await kit.open()
    started = await start(kit, backend, AtDelay("cool", wake_after=kit.short, next=AtTask("ship")))
    end = _ends_at(started)

    await kit.until(backend, end - timedelta(microseconds=1))
    loaded = await backend.load_snapshot(started.instance_id)

    if await backend.now() < end:
        expect_equal(loaded, started, "before its end a delay shows as it is")

    await kit.until(backend, end)
    loaded = await backend.load_snapshot(started.instance_id)
    task = _task(loaded)
    expect_equal(task.task_id, "ship", "an elapsed delay shows as what follows it")
    expect_equal(task.ready_at, end, "which was entered at exactly its end")
    expect_equal(task.reason, ReadyReason.DELAY_ELAPSED, "because the delay elapsed")
    expect_equal(loaded.version, started.version, "time passes without a write")
    expect_equal(loaded.updated_at, started.updated_at, "and without an update")


@check("SNAPSHOT-603", "A chain of delays adds up, whoever looks when.")
async def chain_of_delays(kit: Kit) -> None:
    backend = await kit.open()
    step = kit.short / 2
    chain = AtDelay(
        "one", wake_after=step, next=AtDelay("two", wake_after=step, next=AtTask("ship"))
    )
    watched = await start(kit, backend, chain)
    unwatched = await start(kit, backend, chain)
    first_end = _ends_at(watched)

    await kit.until(backend, first_end)
    loaded = await backend.load_snapshot(watched.instance_id)

    if await backend.now() < first_end + step:
        expect_equal(_park(loaded).node_id, "two", "the second delay follows the first")
        expect_equal(_park(loaded).entered_at, first_end, "entered when the first one ended")

    for snapshot in (watched, unwatched):
        end = _ends_at(snapshot) + step
        await kit.until(backend, end)
        loaded = await backend.load_snapshot(snapshot.instance_id)
        expect_equal(_task(loaded).ready_at, end, "the delays of a chain add up exactly")


@check("SNAPSHOT-604", "A wait that nobody answered shows as timed out, recorded as empty.")
async def timed_out_wait(kit: Kit) -> None:
    backend = await kit.open()
    wait = AtSignal("approval", "approved", wake_after=kit.short, next=AtTask("ship"))
    started = await start(kit, backend, wait)
    end = _ends_at(started)

    await kit.until(backend, end)

    loaded = await backend.load_snapshot(started.instance_id)
    task = _task(loaded)
    expect_equal(task.ready_at, end, "what follows a wait that timed out is entered at its end")
    expect_equal(task.reason, ReadyReason.SIGNAL_TIMEOUT, "because of the time-out")
    expect_equal(loaded.timed_out, frozenset({"approval"}), "the wait is marked as timed out")
    expect_equal(loaded.results.get("approval"), b"", "and recorded as b''")
    expect_equal(loaded.last_completed_task_id, "approval", "as what completed last")
    expect_equal(loaded.version, started.version, "all that without a write")
    expect_equal(
        await backend.load_task_result(started.instance_id, "approval"),
        None,
        "a single result is what is written, not what has elapsed",
    )

    saved = await backend.save_snapshot(loaded.count_iteration("loop"))
    expect_equal(saved.version, started.version + 1, "what has elapsed goes with the next write")
    expect_equal(
        await backend.load_task_result(started.instance_id, "approval"),
        b"",
        "and then a single result is there",
    )
    expect_equal(_task(saved), task, "with the same instants")


@check("SNAPSHOT-605", "A park that would end the workflow shows as it is until that is written.")
async def last_park_stays(kit: Kit) -> None:
    backend = await kit.open()

    for position in (
        AtDelay("cool", wake_after=kit.short),
        AtSignal("approval", "approved", wake_after=kit.short),
    ):
        started = await start(kit, backend, position)
        await kit.until(backend, _ends_at(started))

        loaded = await backend.load_snapshot(started.instance_id)

        expect_equal(loaded, started, "no view ends a workflow")


@check("SNAPSHOT-606", "A paused instance shows only the time before its pause.")
async def paused_time_stands_still(kit: Kit) -> None:
    backend = await kit.open()
    delay = AtDelay("cool", wake_after=2 * kit.short, next=AtTask("ship"))
    started = await start(kit, backend, delay)
    end = _ends_at(started)
    await backend.save_snapshot(started.pause())
    paused = await backend.load_snapshot(started.instance_id)
    await kit.until(backend, end)

    loaded = await backend.load_snapshot(started.instance_id)
    expect_equal(loaded, paused, "what elapses during a pause does not show")

    await backend.unpause(started.instance_id)
    loaded = await backend.load_snapshot(started.instance_id)
    task = _task(loaded)
    expect_equal(task.task_id, "ship", "after it, it does: the delay has not moved")
    expect_equal(task.ready_at, loaded.status_since, "but the pause does not age the task")


@check("SNAPSHOT-607", "A pause writes what had elapsed before it.")
async def pause_after_the_end(kit: Kit) -> None:
    backend = await kit.open()

    for how in ("save_snapshot", "update_snapshot"):
        delay = AtDelay("cool", wake_after=kit.short, next=AtTask("ship"))
        started = await start(kit, backend, delay)
        await kit.until(backend, _ends_at(started))

        if how == "save_snapshot":
            paused = await backend.save_snapshot(started.pause())
        else:
            paused = await backend.update_snapshot(started.instance_id, lambda found: found.pause())

        expect_equal(_task(paused).task_id, "ship", "what elapsed before a pause shows in it")
        loaded = await backend.load_snapshot(started.instance_id)
        expect_equal(_task(loaded).ready_at, _ends_at(started), "with its own instant")


@check("SNAPSHOT-608", "Delays in the branches of a fork elapse each by itself, and join exactly.")
async def delays_in_branches(kit: Kit) -> None:
    backend = await kit.open()
    fork = AtFork(
        "fan-out",
        {
            "short": AtDelay("nap", wake_after=kit.short / 2),
            "long": AtDelay("sleep", wake_after=kit.short),
        },
        next=AtTask("join"),
    )
    started = await start(kit, backend, fork)
    end = _instant(started.created_at) + kit.short

    await kit.until(backend, _instant(started.created_at) + kit.short / 2)
    loaded = await backend.load_snapshot(started.instance_id)

    if await backend.now() < end:
        expect(
            isinstance(loaded.position, AtFork) and loaded.position.branches["short"] is None,
            "an elapsed delay without a successor ends its branch",
        )

    await kit.until(backend, end)
    loaded = await backend.load_snapshot(started.instance_id)
    task = _task(loaded)
    expect_equal(task.task_id, "join", "when the last branch has ended the join is entered")
    expect_equal(task.ready_at, end, "at the instant at which the last branch ended")
    expect_equal(loaded.version, started.version, "without a write")


@check("SNAPSHOT-609", "A task that stays where it is keeps its ready_at through every save.")
async def ready_at_stays(kit: Kit) -> None:
    backend = await kit.open()
    started = await start(kit, backend)
    before = _task(started)

    await kit.elapse(kit.short / 10)
    saved = await backend.save_snapshot(started.count_iteration("loop"))
    expect_equal(_task(saved), before, "a save that leaves a task where it is keeps its stamps")

    await kit.elapse(kit.short / 10)
    saved = await backend.save_snapshot(saved.move_to(AtTask("charge")))
    expect_equal(_task(saved).ready_at, saved.updated_at, "a task handed in anew is entered anew")


@check("SNAPSHOT-610", "A task is ready since the commit of the task before it.")
async def ready_since_the_commit(kit: Kit) -> None:
    backend = await kit.open()
    snapshot, mine = await held(kit, backend)
    await kit.elapse(kit.short / 10)

    commit = await backend.commit_task(
        mine, snapshot.complete_task("charge", b"paid", next=AtTask("ship"))
    )

    task = _task(commit.snapshot)
    expect_equal(task.ready_at, commit.snapshot.updated_at, "a task is ready since that commit")
    expect_equal(task.reason, ReadyReason.TASK, "because its turn came")
    expect_equal(task.input_from, "charge", "its input is the result of the task before it")

    await kit.elapse(kit.short / 10)
    loaded = await backend.load_snapshot(snapshot.instance_id)
    expect_equal(_task(loaded), task, "and it is loaded as it was stamped")


@check("SNAPSHOT-611", "A retry is due a delay after the save that recorded the failure.")
async def retry_is_scheduled(kit: Kit) -> None:
    backend = await kit.open()
    snapshot, mine = await held(kit, backend)
    await kit.elapse(kit.short / 10)
    failed = snapshot.record_failure("charge", RETRY, error="declined", worker_id="worker")

    saved = (await backend.commit_task(mine, failed)).snapshot

    retry = saved.retries["charge"]
    due = _instant(saved.updated_at) + RETRY.initial_delay
    expect_equal(retry.attempts, 1, "a failure is counted")
    expect_equal(retry.last_error, "declined", "its error is kept")
    expect_equal(retry.last_worker, "worker", "so is its worker")
    expect_equal(retry.retry_at, due, "the retry is due a delay after the save, by its clock")
    expect_equal(_task(saved).ready_at, due, "which is when the task is ready again")
    expect_equal(_task(saved).reason, ReadyReason.RETRY, "because of the retry")

    await kit.elapse(kit.short / 10)
    later = await backend.save_snapshot(saved.count_iteration("loop"))
    expect_equal(later.retries["charge"], retry, "another save does not move the retry")
    loaded = await backend.load_snapshot(saved.instance_id)
    expect_equal(loaded.retries["charge"], retry, "it is loaded as it was stamped")


@check("SNAPSHOT-612", "Retries grow up to max_delay, saturate, end in failure, go with success.")
async def retries_go_their_way(kit: Kit) -> None:
    backend = await kit.open()
    policy = RetryPolicy(3, timedelta(minutes=1), multiplier=1e300, max_delay=timedelta(days=1000))
    snapshot = await start(kit, backend)
    seconds: list[float] = []

    for _ in range(3):
        snapshot = await backend.save_snapshot(
            snapshot.record_failure("charge", policy, error="declined")
        )
        retry = snapshot.retries["charge"]
        waits = _instant(retry.retry_at) - _instant(snapshot.updated_at)
        seconds.append(waits.total_seconds())

    expect_equal(seconds, [60, 86_400_000, 86_400_000], "delays grow up to max_delay, and no more")
    ended = await backend.save_snapshot(
        snapshot.record_failure("charge", policy, error="declined for good")
    )
    expect_equal(ended.state, Failed("declined for good"), "one failure more ends the workflow")

    snapshot = await start(kit, backend)
    failed = await backend.save_snapshot(snapshot.record_failure("charge", policy, error="x"))
    done = await backend.save_snapshot(failed.complete_task("charge", b"paid", next=AtTask("ship")))
    expect_equal(dict(done.retries), {}, "success clears the retries of a task")

    forever = RetryPolicy(3, timedelta.max)
    snapshot = await start(kit, backend)
    saved = await backend.save_snapshot(snapshot.record_failure("charge", forever, error="x"))
    loaded = await backend.load_snapshot(saved.instance_id)
    expect_equal(loaded, saved, "a delay beyond the calendar ends with it, and is stored")


@check(
    "SNAPSHOT-613",
    "The whole view of a snapshot is what the store returns, not only what it loads.",
)
async def returned_values_are_settled(kit: Kit) -> None:
    backend = await kit.open()
    fork = AtFork(
        "fan-out",
        {
            "left": AtDelay("nap", wake_after=kit.short, next=AtTask("ship")),
            "right": AtTask("pack"),
        },
    )
    started = await start(kit, backend, fork)
    mine = await claim(backend, started.instance_id, "pack")
    await kit.elapse(2 * kit.short)

    saved = await backend.save_snapshot(started.count_iteration("loop"))
    expect_equal(
        [task.task_id for task in saved.ready_tasks()],
        ["ship", "pack"],
        "what a save returns shows time as it is",
    )
    updated = await backend.update_snapshot(
        started.instance_id, lambda found: found.count_iteration("loop"), claim=mine
    )
    expect_equal(
        [task.task_id for task in updated.ready_tasks()],
        ["ship", "pack"],
        "and so does what an update returns",
    )
    existing = await backend.start_instance(
        started.instance_id, "v1", start_at="other", on_conflict=ConflictPolicy.USE_EXISTING
    )
    expect_equal(
        [task.task_id for task in existing.snapshot.ready_tasks()],
        ["ship", "pack"],
        "and the existing snapshot that a start returns",
    )


@check("SNAPSHOT-614", "Several time-outs are recorded in the order of their instants.")
async def timeouts_in_order(kit: Kit) -> None:
    backend = await kit.open()
    fork = AtFork(
        "fan-out",
        {
            "later": AtSignal("later", "paid", wake_after=kit.short),
            "sooner": AtSignal("sooner", "paid", wake_after=kit.short / 2),
        },
        next=AtTask("join"),
    )
    started = await start(kit, backend, fork)

    await kit.elapse(2 * kit.short)

    loaded = await backend.load_snapshot(started.instance_id)
    expect_equal(_task(loaded).task_id, "join", "both waits have ended")
    expect_equal(loaded.timed_out, frozenset({"later", "sooner"}), "both have timed out")
    expect_equal(loaded.last_completed_task_id, "later", "and the later one was the last")


@check("SNAPSHOT-615", "A pending signal stops offers, not the view: time shows all the same.")
async def signals_do_not_stop_time(kit: Kit) -> None:
    backend = await kit.open()
    delay = AtDelay("cool", wake_after=kit.short, next=AtTask("ship"))
    started = await start(kit, backend, delay)
    await backend.store_signal(started.instance_id, SignalKind.PAUSE)
    await kit.until(backend, _ends_at(started))

    loaded = await backend.load_snapshot(started.instance_id)

    expect_equal(_task(loaded).ready_at, _ends_at(started), "an elapsed delay shows as elapsed")
    offered = await backend.find_available_tasks(worker_id="worker")
    expect_equal(offered, [], "but what follows it is not offered while a signal is pending")


@check(
    "SNAPSHOT-616", "A deadline is the runtime's: the store keeps it, and does nothing about it."
)
async def deadlines_are_data(kit: Kit) -> None:
    backend = await kit.open()
    started = await start(kit, backend)
    past = _instant(started.created_at) - kit.long

    saved = await backend.save_snapshot(started.with_deadline(past))

    expect_equal(saved.status, started.status, "a deadline in the past ends nothing")
    await backend.sweep()
    [task] = await backend.acquire_tasks(worker_id="worker", ttl=kit.long)
    expect_equal(task.snapshot.deadline, past, "a worker sees the deadline as it was stored")
