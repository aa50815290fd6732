"""CLAIM-1xx: commit_task."""

from __future__ import annotations

from functools import partial

from msgspec.structs import replace

from sayiir_persist import (
    INSTANCE_INPUT,
    AcquiredTask,
    AtDelay,
    AtFork,
    AtSignal,
    AtTask,
    Change,
    ClaimLostError,
    ClaimNotFoundError,
    InvalidArgumentError,
    InvalidTransitionError,
    PayloadTooLargeError,
    PersistentBackend,
    Position,
    ReadyReason,
    SignalKind,
    SignalRequest,
    StaleSnapshotError,
    Status,
    TaskClaim,
    TerminalStateError,
    WorkflowSnapshot,
)
from sayiir_persist.conformance.kit import (
    ExpectationError,
    Kit,
    expect,
    expect_equal,
    raises,
    succeeded,
)
from sayiir_persist.conformance.registry import check
from sayiir_persist.conformance.scenes import (
    RETRY,
    claim,
    expect_refused,
    fork,
    held,
    start,
)


def _finish(task_id: str, next: Position | None = None) -> Change:
    """The change that completes a task."""
    return lambda found: found.complete_task(task_id, task_id.encode(), next=next)


def _next(commit_next: AcquiredTask | None, expectation: str) -> AcquiredTask:
    if commit_next is None:
        raise ExpectationError(expectation)

    return commit_next


async def _expect_released(backend: PersistentBackend, done: TaskClaim) -> None:
    with raises(ClaimNotFoundError, "a commit has released its claim"):
        await backend.extend_task_claim(done, ttl=Kit.long)


@check("CLAIM-101", "commit_task saves a snapshot with its results, and releases the claim.")
async def commits(kit: Kit) -> None:
    backend, other = await kit.open(), await kit.open()
    snapshot, mine = await held(kit, backend)
    step = snapshot.complete_task("charge", b"paid", next=AtTask("ship", priority=1))

    commit = await backend.commit_task(mine, step)

    loaded = await other.load_snapshot(snapshot.instance_id)
    expect_equal(commit.snapshot, loaded, "a commit returns what is stored")
    expect_equal(commit.next, None, "nothing is claimed unless it is asked for")
    expect_equal(loaded.version, 2, "a commit takes one version")
    expect_equal(dict(loaded.results), {"charge": b"paid"}, "the results gained are stored")
    expect_equal(loaded.last_completed_task_id, "charge", "so is the last completed task")
    expect_equal([task.task_id for task in loaded.ready_tasks()], ["ship"], "and the position")
    expect_equal(snapshot.version, 1, "the caller's value stays as it was")
    await _expect_released(backend, mine)
    [offered] = await other.acquire_tasks(worker_id="other", ttl=kit.long)
    expect_equal(offered.task_id, "ship", "the next task is there for everybody")
    expect_equal(offered.input, b"paid", "with the result as its input")


@check("CLAIM-102", "commit_task of a change applies it to what is stored.")
async def commits_a_change(kit: Kit) -> None:
    backend = await kit.open()
    snapshot, mine = await held(kit, backend)
    await backend.update_snapshot(snapshot.instance_id, lambda found: found.count_iteration("x"))

    commit = await backend.commit_task(mine, _finish("charge", AtTask("ship")))

    expect_equal(commit.snapshot.version, 3, "a commit takes one version")
    expect_equal(commit.snapshot.loop_iterations, {"x": 1}, "what others wrote is kept")
    expect_equal(commit.snapshot.results.get("charge"), b"charge", "and the change is applied")
    loaded = await backend.load_snapshot(snapshot.instance_id)
    expect_equal(commit.snapshot, loaded, "a commit returns what is stored")
    await _expect_released(backend, mine)


@check("CLAIM-103", "With a base that is current, the change is applied to exactly that.")
async def commits_on_its_base(kit: Kit) -> None:
    backend = await kit.open()
    snapshot, mine = await held(kit, backend)
    seen: list[int] = []

    def change(found: WorkflowSnapshot) -> WorkflowSnapshot:
        seen.append(found.version)
        return found.complete_task("charge", b"paid", next=AtTask("ship"))

    commit = await backend.commit_task(mine, change, base=snapshot)

    expect_equal(seen, [1], "a change is tried once on a base that is current")
    expect_equal(commit.snapshot.version, 2, "and stored")
    expect_equal(dict(commit.snapshot.results), {"charge": b"paid"}, "with its results")


@check("CLAIM-104", "With a base that is stale, the change is applied again to what is stored.")
async def commits_on_a_stale_base(kit: Kit) -> None:
    backend, other = await kit.open(), await kit.open()
    snapshot, mine = await held(kit, backend)
    await other.update_snapshot(snapshot.instance_id, lambda found: found.count_iteration("x"))
    await other.save_task_result(snapshot.instance_id, "other", b"kept")
    seen: list[int] = []

    def change(found: WorkflowSnapshot) -> WorkflowSnapshot:
        seen.append(found.version)
        return found.complete_task("charge", b"paid", next=AtTask("ship"))

    commit = await backend.commit_task(mine, change, base=snapshot)

    expect_equal(seen[-1], 3, "the change that counts is applied to what is stored")
    loaded = await backend.load_snapshot(snapshot.instance_id)
    expect_equal(loaded.version, 4, "the commit takes one version")
    expect_equal(loaded.loop_iterations, {"x": 1}, "what others wrote is kept")
    expect_equal(
        dict(loaded.results), {"other": b"kept", "charge": b"paid"}, "and so are their results"
    )
    expect_equal(commit.snapshot.version, 4, "the commit returns what is stored")


@check("CLAIM-105", "A snapshot of an older version is refused, and the claim stays.")
async def stale_commit(kit: Kit) -> None:
    backend = await kit.open()
    snapshot, mine = await held(kit, backend)
    stored = await backend.update_snapshot(
        snapshot.instance_id, lambda found: found.count_iteration("loop")
    )
    step = snapshot.complete_task("charge", b"paid", next=AtTask("ship"))

    error = await expect_refused(
        backend,
        stored,
        StaleSnapshotError,
        "a commit of an older version is refused",
        lambda: backend.commit_task(mine, step),
    )

    expect_equal((error.given_version, error.stored_version), (1, 2), "the error says which")
    commit = await backend.commit_task(mine, _finish("charge"))
    expect_equal(commit.snapshot.status, Status.COMPLETED, "the claim is still good for a commit")


@check("CLAIM-106", "A change that returns its argument releases the claim and takes no version.")
async def empty_commit(kit: Kit) -> None:
    backend = await kit.open()

    for with_base in (False, True):
        snapshot, mine = await held(kit, backend)
        base = snapshot if with_base else None
        await kit.elapse(kit.short / 10)

        commit = await backend.commit_task(mine, lambda found: found, base=base)

        expect_equal(commit.snapshot.version, 1, "a commit that changes nothing takes no version")
        expect_equal(
            await backend.load_snapshot(snapshot.instance_id), snapshot, "and writes nothing"
        )
        await _expect_released(backend, mine)
        await claim(backend, snapshot.instance_id)


@check("CLAIM-107", "A change that alters id, version or incarnation is refused, the claim stays.")
async def illegal_commits(kit: Kit) -> None:
    backend = await kit.open()
    snapshot, mine = await held(kit, backend)
    changes: dict[str, Change] = {
        "id": lambda found: replace(found, instance_id="other"),
        "version": lambda found: replace(found, version=found.version + 1),
        "incarnation": lambda found: replace(found, incarnation="other"),
    }

    for what, change in changes.items():
        for base in (None, snapshot):
            await expect_refused(
                backend,
                snapshot,
                InvalidArgumentError,
                f"a commit whose change alters the {what} is refused",
                partial(backend.commit_task, mine, change, base=base),
            )

    await backend.extend_task_claim(mine, ttl=kit.long)


@check("CLAIM-108", "A commit of another instance's snapshot is refused.")
async def foreign_commit(kit: Kit) -> None:
    backend = await kit.open()
    snapshot, mine = await held(kit, backend)
    foreign = await start(kit, backend)

    await expect_refused(
        backend,
        foreign,
        InvalidArgumentError,
        "a claim commits no other instance",
        lambda: backend.commit_task(mine, foreign.count_iteration("loop")),
    )
    expect_equal(
        await backend.load_snapshot(snapshot.instance_id), snapshot, "nor is its own written"
    )


@check("CLAIM-109", "An error of the change goes to the caller as it is, and the claim stays.")
async def failing_change(kit: Kit) -> None:
    backend = await kit.open()
    snapshot, mine = await held(kit, backend)

    def change(found: WorkflowSnapshot) -> WorkflowSnapshot:
        raise ZeroDivisionError(found.instance_id)

    await expect_refused(
        backend,
        snapshot,
        ZeroDivisionError,
        "an error of the change is raised as it is",
        lambda: backend.commit_task(mine, change),
    )
    await expect_refused(
        backend,
        snapshot,
        InvalidTransitionError,
        "so is the error of a transition that the snapshot does not allow",
        lambda: backend.commit_task(mine, _finish("other")),
    )
    await backend.extend_task_claim(mine, ttl=kit.long)


@check("CLAIM-110", "A repeated commit is ClaimLostError; after the end it is TerminalStateError.")
async def repeated_commit(kit: Kit) -> None:
    backend = await kit.open()
    snapshot, mine = await held(kit, backend)
    step = snapshot.complete_task("charge", b"paid", next=AtTask("ship"))
    stored = (await backend.commit_task(mine, step)).snapshot

    await expect_refused(
        backend,
        stored,
        ClaimLostError,
        "a repeated commit is refused: its claim is gone",
        lambda: backend.commit_task(mine, step),
    )

    snapshot, mine = await held(kit, backend)
    step = snapshot.complete_task("charge", b"paid", next=None)
    stored = (await backend.commit_task(mine, step)).snapshot
    expect_equal(stored.status, Status.COMPLETED, "the last commit ends the workflow")
    await expect_refused(
        backend,
        stored,
        TerminalStateError,
        "a repeated last commit is refused: the workflow has ended",
        lambda: backend.commit_task(mine, step),
    )


@check("CLAIM-111", "The commit that ends the workflow drops the claims of all other workers.")
async def last_commit_drops_claims(kit: Kit) -> None:
    backend = await kit.open()
    instance_id = (await start(kit, backend, fork("pack", "ship"))).instance_id
    pack = await claim(backend, instance_id, "pack", "one")
    ship = await claim(backend, instance_id, "ship", "two")

    await backend.commit_task(pack, lambda found: found.fail("broken"))

    failed = await backend.load_snapshot(instance_id)
    expect_equal(failed.status, Status.FAILED, "a commit may end the workflow")

    with raises(ClaimNotFoundError, "no claim outlives the workflow"):
        await backend.release_task_claim(ship)

    await expect_refused(
        backend,
        failed,
        TerminalStateError,
        "the commit of another branch is refused",
        lambda: backend.commit_task(ship, _finish("ship")),
    )


@check("CLAIM-112", "Payloads above max_payload are refused, and the claim stays.")
async def large_commits(kit: Kit) -> None:
    backend = await kit.open(max_payload=1024)
    snapshot, mine = await held(kit, backend)

    for next_position in (None, AtTask("ship")):
        await expect_refused(
            backend,
            snapshot,
            PayloadTooLargeError,
            "a commit of a result above max_payload is refused",
            partial(
                backend.commit_task,
                mine,
                snapshot.complete_task("charge", bytes(1025), next=next_position),
            ),
        )

    step = snapshot.complete_task("charge", bytes(1024), next=None)
    commit = await backend.commit_task(mine, step)
    expect_equal(commit.snapshot.status, Status.COMPLETED, "one of exactly max_payload is stored")


# --- claim_next -----------------------------------------------------------------------------------


@check("CLAIM-121", "claim_next claims the task that this commit made ready, in the same step.")
async def claims_next(kit: Kit) -> None:
    backend, other = await kit.open(), await kit.open()
    snapshot = await start(kit, backend)
    mine = await backend.claim_task(
        snapshot.instance_id, "charge", worker_id="worker", ttl=kit.long, nonce="n-1"
    )

    if mine is None:
        raise ExpectationError("a ready task that nobody holds can be claimed")

    step = snapshot.complete_task("charge", b"paid", next=AtTask("ship"))
    commit = await backend.commit_task(mine, step, claim_next=2 * kit.long)

    task = _next(commit.next, "the task that a commit made ready is claimed with it")
    expect_equal((task.instance_id, task.task_id), (snapshot.instance_id, "ship"), "the next task")
    expect_equal(task.input, b"paid", "its input is the result of the task before it")
    expect_equal((task.reason, task.attempt), (ReadyReason.TASK, 1), "for the first time")
    expect_equal(task.definition_hash, "v1", "of the same definition")
    expect_equal(task.snapshot.version, 2, "with the snapshot that was stored")
    new = task.claim
    expect_equal(
        (new.instance_id, new.task_id, new.worker_id),
        (snapshot.instance_id, "ship", "worker"),
        "the claim is the same worker's",
    )
    expect(new.fence > mine.fence, "with a larger fence")
    expect_equal(new.nonce, "n-1", "it inherits the nonce")
    expect_equal(new.expires_at, new.claimed_at + 2 * kit.long, "it has the ttl of claim_next")
    expect_equal(
        await other.claim_task(snapshot.instance_id, "ship", worker_id="rival", ttl=kit.long),
        None,
        "nobody else can get in between",
    )
    found = await other.claim_task(
        snapshot.instance_id, "ship", worker_id="worker", ttl=kit.long, nonce="n-1"
    )
    expect_equal(found, new, "after a lost answer the nonce finds the claim")
    await _expect_released(backend, mine)
    commit = await backend.commit_task(
        new, task.snapshot.complete_task("ship", b"sent", next=None), claim_next=kit.long
    )
    expect_equal(commit.snapshot.status, Status.COMPLETED, "and so on to the end")
    expect_equal(commit.next, None, "after which nothing is claimed")


@check("CLAIM-122", "Of several tasks that a commit made ready the first that fits is claimed.")
async def claims_the_first_that_fits(kit: Kit) -> None:
    backend = await kit.open()
    branches: dict[str, Position | None] = {
        "z": AtTask("on-gpu", tags=("gpu",)),
        "m": AtTask("in-eu", tags=("eu",)),
        "a": AtTask("anywhere", tags=()),
    }
    position = AtFork("fan-out", branches, next=AtTask("join"))

    for tags, expected in (
        ((), "on-gpu"),
        (("gpu",), "on-gpu"),
        (("eu", "x"), "in-eu"),
        (("x",), "anywhere"),
    ):
        snapshot = await start(kit, backend)
        mine = await backend.claim_task(
            snapshot.instance_id, "charge", worker_id="worker", ttl=kit.long, tags=tags
        )

        if mine is None:
            raise ExpectationError("a ready task that nobody holds can be claimed")

        commit = await backend.commit_task(
            mine, snapshot.complete_task("charge", b"x", next=position), claim_next=kit.long
        )

        task = _next(commit.next, f"a worker that accepts {tags} gets a branch")
        expect_equal(task.task_id, expected, "the first in tree order whose tags it accepts")
        expect_equal(task.claim.worker_tags, tags, "the new claim records what it accepts as well")


@check("CLAIM-123", "claim_next takes what the worker said when it acquired the task.")
async def acquired_tags_count(kit: Kit) -> None:
    backend = await kit.open()
    await start(kit, backend)
    [task] = await backend.acquire_tasks(worker_id="worker", ttl=kit.long, tags=["gpu", "eu"])
    expect_equal(task.claim.worker_tags, ("gpu", "eu"), "an acquired claim records the tags")

    commit = await backend.commit_task(
        task.claim, _finish("charge", AtTask("ship", tags=("arm",))), claim_next=kit.long
    )

    expect_equal(commit.next, None, "a task that the worker does not accept is not claimed")
    [offered] = await backend.find_available_tasks(worker_id="other", tags=["arm"])
    expect_equal(offered.task_id, "ship", "it is there for others")


@check("CLAIM-124", "claim_next claims nothing that is not due yet.")
async def claims_nothing_early(kit: Kit) -> None:
    backend = await kit.open()
    positions: tuple[Position, ...] = (
        AtDelay("nap", wake_after=kit.long, next=AtTask("ship")),
        AtSignal("wait", "paid", next=AtTask("ship")),
    )

    for position in positions:
        _, mine = await held(kit, backend)
        commit = await backend.commit_task(mine, _finish("charge", position), claim_next=kit.long)
        expect_equal(commit.next, None, "what is parked is not claimed")

    snapshot, mine = await held(kit, backend)
    commit = await backend.commit_task(
        mine, snapshot.record_failure("charge", RETRY, error="declined"), claim_next=kit.long
    )
    expect_equal(commit.next, None, "a retry that backs off is not claimed")


@check("CLAIM-125", "claim_next claims a retry that is due at once, and a delay of nothing.")
async def claims_what_is_due(kit: Kit) -> None:
    backend = await kit.open()
    snapshot, mine = await held(kit, backend)
    at_once = replace(RETRY, initial_delay=RETRY.initial_delay * 0)

    commit = await backend.commit_task(
        mine, snapshot.record_failure("charge", at_once, error="declined"), claim_next=kit.long
    )

    task = _next(commit.next, "a retry without a delay is ready at once")
    expect_equal(
        (task.task_id, task.reason, task.attempt),
        ("charge", ReadyReason.RETRY, 2),
        "it is the second attempt",
    )
    expect_equal(task.input, b"order", "with the same input")
    expect(task.claim.fence > mine.fence, "under a claim of its own")

    delay = AtDelay("nap", wake_after=RETRY.initial_delay * 0, next=AtTask("ship"))
    commit = await backend.commit_task(task.claim, _finish("charge", delay), claim_next=kit.long)
    task = _next(commit.next, "a delay of nothing is over at once")
    expect_equal((task.task_id, task.reason), ("ship", ReadyReason.DELAY_ELAPSED), "its successor")


@check("CLAIM-126", "claim_next claims nothing that was ready before this commit.")
async def claims_only_its_own(kit: Kit) -> None:
    backend = await kit.open()
    snapshot = await start(kit, backend, fork("pack", "ship", next=AtTask("join")))
    pack = await claim(backend, snapshot.instance_id, "pack")

    commit = await backend.commit_task(pack, _finish("pack"), claim_next=kit.long)

    expect_equal(commit.next, None, "a branch that was ready before is left to everybody")
    ship = await claim(backend, snapshot.instance_id, "ship")
    commit = await backend.commit_task(ship, _finish("ship"), claim_next=kit.long)
    task = _next(commit.next, "the last branch makes the join ready")
    expect_equal(task.task_id, "join", "which is claimed with it")
    expect_equal(task.input, None, "after a fork nothing is wired")


@check("CLAIM-127", "claim_next is never eternal, whatever the claim before it was.")
async def next_claim_ends(kit: Kit) -> None:
    backend = await kit.open()
    _, mine = await held(kit, backend, ttl=None)

    commit = await backend.commit_task(mine, _finish("charge", AtTask("ship")), claim_next=kit.long)

    task = _next(commit.next, "an eternal claim may be followed by another claim")
    expect_equal(task.claim.expires_at, task.claim.claimed_at + kit.long, "which has an end")


@check("CLAIM-128", "The input of a claimed task is wired by its input_from.")
async def inputs_are_wired(kit: Kit) -> None:
    backend = await kit.open()

    for input_from, expected in (
        (None, b"charge"),
        ("charge", b"charge"),
        ("prepare", b"ready"),
        (INSTANCE_INPUT, b"order"),
        ("never", None),
    ):
        snapshot, mine = await held(kit, backend)
        await backend.save_task_result(snapshot.instance_id, "prepare", b"ready")

        commit = await backend.commit_task(
            mine, _finish("charge", AtTask("ship", input_from=input_from)), claim_next=kit.long
        )

        task = _next(commit.next, "a task is claimed whether or not it has an input")
        expect_equal(task.input, expected, f"input_from={input_from!r} decides the input")


# --- Signals, parks, forks ------------------------------------------------------------------------


@check(
    "CLAIM-131", "With a signal pending a commit claims nothing, and applies the signal after it."
)
async def commit_applies_signals(kit: Kit) -> None:
    backend = await kit.open()

    for kind, status in (
        (SignalKind.CANCEL, Status.CANCELLED),
        (SignalKind.PAUSE, Status.PAUSED),
    ):
        snapshot, mine = await held(kit, backend)
        request = SignalRequest(reason="enough", requested_by="ops")
        await backend.store_signal(snapshot.instance_id, kind, request)

        commit = await backend.commit_task(
            mine,
            snapshot.complete_task("charge", b"paid", next=AtTask("ship")),
            claim_next=kit.long,
        )

        expect_equal(commit.next, None, f"with a {kind} pending no next task is claimed")
        expect_equal(commit.snapshot.status, status, f"the {kind} is applied after the commit")
        loaded = await backend.load_snapshot(snapshot.instance_id)
        expect_equal(loaded, commit.snapshot, "and the commit returns what is stored")
        expect_equal(dict(loaded.results), {"charge": b"paid"}, "the commit itself is kept")
        expect_equal(loaded.version, 3, "the commit and the signal take a version each")
        expect_equal(
            await backend.get_signal(snapshot.instance_id, kind), None, "nothing stays pending"
        )


@check("CLAIM-132", "While another claim is live a commit leaves a pending signal to it.")
async def commit_leaves_signals(kit: Kit) -> None:
    backend = await kit.open()
    instance_id = (await start(kit, backend, fork("pack", "ship", "bill"))).instance_id
    pack = await claim(backend, instance_id, "pack", "one")
    ship = await claim(backend, instance_id, "ship", "two")
    await backend.store_signal(instance_id, SignalKind.CANCEL)

    commit = await backend.commit_task(pack, _finish("pack", AtTask("label")), claim_next=kit.long)

    expect_equal(commit.next, None, "with a signal pending nothing is claimed")
    expect_equal(
        commit.snapshot.status, Status.IN_PROGRESS, "a signal waits for the last live claim"
    )
    commit = await backend.commit_task(ship, _finish("ship"))
    expect_equal(commit.snapshot.status, Status.CANCELLED, "and is applied once that is gone")
    expect_equal(
        dict(commit.snapshot.results), {"pack": b"pack", "ship": b"ship"}, "with all that was done"
    )


@check("CLAIM-133", "A commit that ends the workflow wins over a pending signal.")
async def end_beats_signals(kit: Kit) -> None:
    backend = await kit.open()
    snapshot, mine = await held(kit, backend)
    await backend.store_signal(snapshot.instance_id, SignalKind.CANCEL)

    commit = await backend.commit_task(mine, _finish("charge"))

    expect_equal(commit.snapshot.status, Status.COMPLETED, "what has ended is not cancelled")
    expect_equal(
        await backend.get_signal(snapshot.instance_id, SignalKind.CANCEL),
        None,
        "and no signal stays pending",
    )


@check("CLAIM-134", "A task behind a park is committed from a base that still shows the park.")
async def commits_behind_a_park(kit: Kit) -> None:
    backend = await kit.open()
    parks: tuple[AtDelay | AtSignal, ...] = (
        AtDelay("park", wake_after=kit.short, next=AtTask("charge")),
        AtSignal("park", "paid", wake_after=kit.short, next=AtTask("charge")),
    )

    for park in parks:
        base = await start(kit, backend, park)
        await kit.elapse(2 * kit.short)
        mine = await claim(backend, base.instance_id)

        commit = await backend.commit_task(
            mine, _finish("charge", AtTask("ship")), base=base, claim_next=kit.long
        )

        task = _next(commit.next, "a virtual step is committed like any other")
        expect_equal(task.task_id, "ship", "the next task is claimed")
        loaded = await backend.load_snapshot(base.instance_id)
        expect_equal(loaded.version, 2, "what had elapsed takes no version of its own")
        timed_out = {"park"} if isinstance(park, AtSignal) else set[str]()
        expect_equal(set(loaded.timed_out), timed_out, "a time-out is written with the commit")


@check("CLAIM-135", "Branches of a fork, committed at once by several workers, all survive.")
async def concurrent_branches(kit: Kit) -> None:
    first, second = await kit.open(), await kit.open()
    names = [f"part-{number}" for number in range(8)]
    base = await start(kit, first, fork(*names, next=AtTask("join")))
    claims = [await claim(first, base.instance_id, name, f"worker-{name}") for name in names]

    outcomes = await kit.together(
        *(
            partial(store.commit_task, mine, _finish(mine.task_id), base=base, claim_next=kit.long)
            for mine, store in zip(claims, [first, second] * 4, strict=True)
        )
    )

    commits = succeeded(outcomes)
    expect_equal(len(commits), 8, f"no branch's commit is lost to another's: {outcomes!r}")
    expect_equal(
        sorted(commit.snapshot.version for commit in commits),
        list(range(2, 10)),
        "each takes exactly one version",
    )
    joined = [commit.next for commit in commits if commit.next is not None]
    expect_equal([task.task_id for task in joined], ["join"], "exactly one made the join ready")
    loaded = await first.load_snapshot(base.instance_id)
    expect_equal(
        dict(loaded.results), {name: name.encode() for name in names}, "every result is stored"
    )
    expect_equal([task.task_id for task in loaded.ready_tasks()], ["join"], "the join is ready")


@check("CLAIM-136", "A commit keeps the claims of other branches.")
async def other_branches_keep_their_claims(kit: Kit) -> None:
    backend = await kit.open()
    instance_id = (await start(kit, backend, fork("pack", "ship", next=AtTask("join")))).instance_id
    pack = await claim(backend, instance_id, "pack", "one")
    ship = await claim(backend, instance_id, "ship", "two")

    await backend.commit_task(pack, _finish("pack", AtTask("label")))
    await backend.extend_task_claim(ship, ttl=kit.long)
    commit = await backend.commit_task(ship, _finish("ship"))

    expect_equal(
        [task.task_id for task in commit.snapshot.ready_tasks()],
        ["label"],
        "each branch goes its own way",
    )
    label = await claim(backend, instance_id, "label")
    commit = await backend.commit_task(label, _finish("label"))
    expect_equal(
        [task.task_id for task in commit.snapshot.ready_tasks()], ["join"], "until they join"
    )


@check("CLAIM-137", "A fork without a next ends the workflow with b'' when its last branch ends.")
async def fork_at_the_end(kit: Kit) -> None:
    backend = await kit.open()
    instance_id = (await start(kit, backend, fork("pack", "ship"))).instance_id

    for name in ("ship", "pack"):
        mine = await claim(backend, instance_id, name)
        commit = await backend.commit_task(mine, _finish(name))

    loaded = await backend.load_snapshot(instance_id)
    expect_equal(loaded, commit.snapshot, "a commit returns what is stored")
    expect_equal(loaded.status, Status.COMPLETED, "the last branch ends the workflow")
    expect_equal(getattr(loaded.state, "output", None), b"", "with an empty output")


@check("CLAIM-138", "An acquired task is committed from its snapshot, though without its results.")
async def commits_what_was_acquired(kit: Kit) -> None:
    backend = await kit.open()
    created = await start(kit, backend)
    await backend.save_task_result(created.instance_id, "earlier", b"kept")
    [task] = await backend.acquire_tasks(worker_id="worker", ttl=kit.long)
    expect(not task.snapshot.results.loaded, "results are left out unless they are asked for")

    commit = await backend.commit_task(
        task.claim,
        task.snapshot.complete_task("charge", b"paid", next=AtTask("ship")),
        claim_next=kit.long,
    )

    task = _next(commit.next, "the next task is claimed")
    await backend.commit_task(task.claim, task.snapshot.complete_task("ship", b"sent", next=None))
    loaded = await backend.load_snapshot(created.instance_id)
    expect_equal(
        dict(loaded.results),
        {"earlier": b"kept", "charge": b"paid", "ship": b"sent"},
        "no result is lost on the way",
    )


@check("CLAIM-139", "A commit that parks where an event waits drains it, and claims nothing.")
async def commit_meets_an_event(kit: Kit) -> None:
    backend = await kit.open()
    snapshot, mine = await held(kit, backend)
    await backend.send_event(snapshot.instance_id, "paid", b"1")
    wait = AtSignal("wait", "paid", next=AtTask("ship"))

    commit = await backend.commit_task(mine, _finish("charge", wait), claim_next=kit.long)

    expect_equal(commit.next, None, "after a drain nothing is claimed")
    expect_equal(
        [task.task_id for task in commit.snapshot.ready_tasks()],
        ["ship"],
        "when the commit returns the wait is over",
    )
    expect_equal(
        await backend.load_task_result(snapshot.instance_id, "wait"), b"1", "its event is recorded"
    )
    [task] = await backend.acquire_tasks(worker_id="other", ttl=kit.long)
    expect_equal((task.task_id, task.input), ("ship", b"1"), "and is the input of what follows")


@check("CLAIM-140", "A commit that only records keeps its task ready, and frees it.")
async def commit_without_moving(kit: Kit) -> None:
    backend = await kit.open()
    snapshot, mine = await held(kit, backend)

    commit = await backend.commit_task(
        mine, lambda found: found.count_iteration("loop"), claim_next=kit.long
    )

    expect_equal(commit.next, None, "a task that was ready before is not claimed again")
    await _expect_released(backend, mine)
    await claim(backend, snapshot.instance_id, worker_id="other")
