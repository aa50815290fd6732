"""RACE: what several processes do at the same moment, and what must be true afterwards.

Every check has two backend objects on the one store, which share nothing but that, and lets their
calls start at one barrier, a few rounds of it. A store in which nothing ever suspends passes with
ease; put a driver that yields between its steps under it to see more.
"""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Final

from anyio.lowlevel import checkpoint

from sayiir_persist import (
    AtDelay,
    AtFork,
    AtSignal,
    AtTask,
    CannotCancelError,
    CannotPauseError,
    Change,
    ClaimLostError,
    Completed,
    ConflictPolicy,
    EventQueueFullError,
    InstanceExistsError,
    InstanceNotFoundError,
    InstancePausedError,
    PersistentBackend,
    Position,
    ReadyReason,
    SignalKind,
    StaleSnapshotError,
    StartOutcome,
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
    refused,
    succeeded,
)
from sayiir_persist.conformance.registry import check
from sayiir_persist.conformance.scenes import (
    Held,
    claim,
    expect_missing,
    fork,
    fresh,
    held,
    start,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ROUNDS: Final = 5
MICROSECOND: Final = timedelta(microseconds=1)
SHIP: Final = AtTask("ship")


async def _two(kit: Kit) -> tuple[PersistentBackend, PersistentBackend]:
    """Two backend objects, as of two processes."""
    return await kit.open(), await kit.open()


def _wait(next: Position | None = SHIP, *, node_id: str = "wait") -> AtSignal:
    return AtSignal(node_id, "paid", next=next)


def _moves(task_id: str, next: Position | None = None) -> Change:
    """The change that completes a task with its own id."""
    return lambda found: found.complete_task(task_id, task_id.encode(), next=next)


async def _queue(backend: PersistentBackend, instance_id: str) -> list[bytes]:
    """Take everything off a queue."""
    taken: list[bytes] = []

    while (payload := await backend.consume_event(instance_id, "paid")) is not None:
        taken.append(payload)

    return taken


def _counts(snapshot: WorkflowSnapshot) -> WorkflowSnapshot:
    return snapshot.count_iteration("loop")


def _counts_and_ships(snapshot: WorkflowSnapshot) -> WorkflowSnapshot:
    return _counts(snapshot).move_to(SHIP)


def _expect_dense(versions: list[int], first: int, expectation: str) -> None:
    expect_equal(sorted(versions), list(range(first, first + len(versions))), expectation)


# --- Claims -------------------------------------------------------------------------------------


@check("RACE-001", "Of concurrent claimers of one task exactly one gets it, the others None.")
async def claims(kit: Kit) -> None:
    first, second = await _two(kit)
    instance_id = (await start(kit, first)).instance_id
    fence = 0

    for _ in range(ROUNDS):
        outcomes = await kit.together(
            *(
                partial(store.claim_task, instance_id, "charge", worker_id=worker_id, ttl=kit.long)
                for worker_id in ("same", "same", "w3", "w4")
                for store in (first, second)
            )
        )

        granted = [each for each in succeeded(outcomes) if each is not None]
        expect_equal(len(succeeded(outcomes)), 8, "losing is None, not an error")
        expect_equal(len(granted), 1, "exactly one gets the task")
        expect(granted[0].fence > fence, "with a fence above all earlier ones")
        fence = granted[0].fence
        await second.release_task_claim(granted[0])


@check("RACE-002", "An expired claim is taken over by exactly one, and fenced off from then on.")
async def take_overs(kit: Kit) -> None:
    first, second = await _two(kit)

    for _ in range(ROUNDS):
        _, old = await held(kit, first, ttl=timedelta(0))

        *takers, late = await kit.together(
            *(
                partial(
                    store.claim_task, old.instance_id, "charge", worker_id="rival", ttl=kit.long
                )
                for store in (first, second, first, second)
            ),
            partial(first.commit_task, old, _moves("charge")),
        )

        granted = [each for each in takers if isinstance(each, TaskClaim)]
        expect_equal(len(granted), 1, "exactly one takes over")
        expect(isinstance(late, ClaimLostError), f"an expired claim never writes: {late!r}")
        await second.commit_task(granted[0], _moves("charge"))


@check("RACE-003", "Of an extension and a take-over at a claim's end exactly one wins.")
async def extension_against_take_over(kit: Kit) -> None:
    first, second = await _two(kit)

    for number in range(2 * ROUNDS):
        _, mine = await held(kit, first, ttl=kit.short)
        end = mine.expires_at
        # Just before the end on a clock that stands still, so that the extension must win there;
        # at the end in every other round, so that the take-over must.
        await kit.until(first, end if number % 2 else end and end - MICROSECOND)

        async def take_over(mine: TaskClaim = mine, number: int = number) -> object:
            # In every other round the claim ends while the extension is on its way, each time a
            # little further on.
            if number % 2 == 0:
                for _ in range(number // 2):
                    await checkpoint()

                await kit.elapse(2 * MICROSECOND)

            return await second.claim_task(
                mine.instance_id, "charge", worker_id="rival", ttl=kit.long
            )

        extended, taken = await kit.together(
            partial(first.extend_task_claim, mine, ttl=kit.long), take_over
        )

        if isinstance(extended, TaskClaim):
            expect_equal(taken, None, "a claim that was extended is not taken over")
            await second.extend_task_claim(extended, ttl=kit.long)
        else:
            expect(isinstance(extended, ClaimLostError), f"else it is lost, not {extended!r}")
            taken = taken or await claim(second, mine.instance_id, worker_id="rival")

            if not isinstance(taken, TaskClaim):
                raise ExpectationError(f"and free to be taken over, not {taken!r}")

            await second.extend_task_claim(taken, ttl=kit.long)


@check("RACE-004", "Concurrent calls of acquire_tasks get disjoint tasks, and all of them.")
async def acquires(kit: Kit) -> None:
    first, second = await _two(kit)
    wanted: set[tuple[str, str]] = set()

    for _ in range(6):
        run = await start(kit, first, fork("left", "middle", "right"))
        wanted |= {(run.instance_id, each) for each in ("left", "middle", "right")}

    taken: list[tuple[str, str]] = []

    # A poll may come away with less than there is when others win what it saw.
    while True:
        outcomes = await kit.together(
            *(
                partial(store.acquire_tasks, worker_id=f"w{number}", ttl=kit.long, limit=2)
                for number, store in enumerate([first, second] * 3)
            )
        )
        got = [task for tasks in succeeded(outcomes) for task in tasks]
        expect_equal(len(succeeded(outcomes)), 6, "concurrent polls are no error")
        taken += [(task.instance_id, task.task_id) for task in got]

        if not got:
            break

    expect_equal(Counter(taken), Counter(wanted), "every task is acquired exactly once")


@check("RACE-005", "A task goes to acquire_tasks or to claim_task, never to both.")
async def acquire_against_claim(kit: Kit) -> None:
    first, second = await _two(kit)

    for _ in range(ROUNDS):
        instance_id = (await start(kit, first)).instance_id

        acquired, claimed = await kit.together(
            partial(first.acquire_tasks, worker_id="w1", ttl=kit.long),
            partial(second.claim_task, instance_id, "charge", worker_id="w2", ttl=kit.long),
        )

        expect(
            isinstance(acquired, list) and not isinstance(claimed, Exception),
            f"neither is an error: {acquired!r}, {claimed!r}",
        )
        expect(bool(acquired) != bool(claimed), "exactly one of them gets the task")


@check("RACE-006", "Of two commits with one claim exactly one is stored.")
async def commits_of_one_claim(kit: Kit) -> None:
    first, second = await _two(kit)

    for _ in range(ROUNDS):
        snapshot, mine = await held(kit, first)

        outcomes = await kit.together(
            *(
                partial(
                    store.commit_task,
                    mine,
                    _counts_and_ships,
                )
                for store in (first, second, first, second)
            )
        )

        expect_equal(len(succeeded(outcomes)), 1, "a commit ends its claim")
        refused(outcomes, ClaimLostError)
        loaded = await first.load_snapshot(snapshot.instance_id)
        expect_equal(loaded.version, snapshot.version + 1, "and is stored once")
        expect_equal(dict(loaded.loop_iterations), {"loop": 1}, "once")


@check("RACE-007", "Of a commit and a revocation of its claim exactly one takes effect.")
async def commit_against_revocation(kit: Kit) -> None:
    first, second = await _two(kit)

    for _ in range(ROUNDS):
        snapshot, mine = await held(kit, first)

        committed, revoked = await kit.together(
            partial(first.commit_task, mine, _moves("charge", SHIP)),
            partial(second.revoke_task_claim, snapshot.instance_id, "charge"),
        )

        loaded = await first.load_snapshot(snapshot.instance_id)

        if isinstance(revoked, TaskClaim):
            expect(isinstance(committed, ClaimLostError), f"a revoked claim is lost: {committed!r}")
            expect_equal(loaded, snapshot, "and nothing was written")
        else:
            expect_equal(revoked, None, "there is nothing to revoke after a commit")
            expect_equal(loaded.version, snapshot.version + 1, "which is stored")


# --- Creating and deleting ----------------------------------------------------------------------


async def _starts(
    kit: Kit, policy: ConflictPolicy, instance_id: str
) -> list[StartOutcome | Exception]:
    first, second = await _two(kit)
    return await kit.together(
        *(
            partial(
                store.start_instance,
                instance_id,
                "v1",
                start_at="charge",
                input=b"%d" % number,
                on_conflict=policy,
            )
            for number, store in enumerate([first, second] * 4)
        )
    )


@check("RACE-008", "Of concurrent starts that fail on conflict exactly one creates.")
async def starts_that_fail(kit: Kit) -> None:
    backend = await kit.open()

    for _ in range(ROUNDS):
        instance_id = kit.instance()
        outcomes = await _starts(kit, ConflictPolicy.FAIL, instance_id)

        [winner] = succeeded(outcomes)
        expect_equal(len(refused(outcomes, InstanceExistsError)), 7, "all others are told")
        expect(winner.created, "the winner has created it")
        expect_equal(
            await backend.load_snapshot(instance_id), winner.snapshot, "what it gave is stored"
        )


@check("RACE-009", "Of concurrent starts that use what exists exactly one creates, all see it.")
async def starts_that_use(kit: Kit) -> None:
    backend = await kit.open()

    for _ in range(ROUNDS):
        instance_id = kit.instance()
        outcomes = succeeded(await _starts(kit, ConflictPolicy.USE_EXISTING, instance_id))

        expect_equal(len(outcomes), 8, "none is refused")
        expect_equal(sum(each.created for each in outcomes), 1, "exactly one creates")
        loaded = await backend.load_snapshot(instance_id)
        expect_equal(
            {(each.snapshot.incarnation, each.snapshot.input) for each in outcomes},
            {(loaded.incarnation, loaded.input)},
            "all see the winner's",
        )
        expect_equal(loaded.version, 1, "which is written once")


@check("RACE-010", "Concurrent restarts come one after another, each an incarnation of its own.")
async def starts_that_terminate(kit: Kit) -> None:
    backend = await kit.open()

    for _ in range(ROUNDS):
        instance_id = kit.instance()
        outcomes = succeeded(await _starts(kit, ConflictPolicy.TERMINATE_EXISTING, instance_id))

        expect_equal(len(outcomes), 8, "none is refused")
        expect(all(each.created for each in outcomes), "each creates")
        given = {each.snapshot.incarnation: each.snapshot.input for each in outcomes}
        expect_equal(len(given), 8, "an incarnation is never reused")
        loaded = await backend.load_snapshot(instance_id)
        expect_equal(loaded.input, given.get(loaded.incarnation), "the last one stands, whole")
        expect_equal(loaded.version, 1, "at its first version")


@check("RACE-011", "Of concurrent saves of version 0 and starts of one id exactly one creates.")
async def creations(kit: Kit) -> None:
    first, second = await _two(kit)

    for _ in range(ROUNDS):
        snapshot = fresh(kit)

        outcomes = await kit.together(
            partial(first.save_snapshot, snapshot),
            partial(second.save_snapshot, snapshot),
            partial(first.start_instance, snapshot.instance_id, "v1", start_at="other"),
            partial(second.start_instance, snapshot.instance_id, "v1", start_at="other"),
        )

        expect_equal(len(succeeded(outcomes)), 1, "exactly one creates")
        refused(outcomes, InstanceExistsError)
        loaded = await first.load_snapshot(snapshot.instance_id)
        expect_equal(loaded.version, 1, "and its write is the only one")


Write = tuple["Callable[[PersistentBackend, Held], Awaitable[object]]", type[Exception]]

WRITES: Final[dict[str, Write]] = {
    "commit_task": (
        lambda backend, it: backend.commit_task(it.claim, _moves("charge")),
        ClaimLostError,
    ),
    "commit_task of a snapshot": (
        lambda backend, it: backend.commit_task(it.claim, _moves("charge", SHIP)(it.snapshot)),
        ClaimLostError,
    ),
    "update_snapshot with a claim": (
        lambda backend, it: backend.update_snapshot(it.instance_id, _counts, claim=it.claim),
        ClaimLostError,
    ),
    "save_task_result with a claim": (
        lambda backend, it: backend.save_task_result(
            it.instance_id, "charge", b"paid", claim=it.claim
        ),
        ClaimLostError,
    ),
    "save_snapshot of its version": (
        lambda backend, it: backend.save_snapshot(_counts(it.snapshot)),
        StaleSnapshotError,
    ),
    "update_snapshot": (
        lambda backend, it: backend.update_snapshot(it.instance_id, _counts),
        InstanceNotFoundError,
    ),
    "save_task_result": (
        lambda backend, it: backend.save_task_result(it.instance_id, "charge", b"paid"),
        InstanceNotFoundError,
    ),
}
"""Writes to an instance that somebody works on, and what they raise once it is gone."""


@check("RACE-012", "A write that races with a deletion never brings the instance back.")
async def delete_against_writes(kit: Kit) -> None:
    first, second = await _two(kit)

    for name, (write, error) in WRITES.items():
        for _ in range(ROUNDS):
            run = await held(kit, first)

            deleted, written = await kit.together(
                partial(first.delete_snapshot, run.instance_id), partial(write, second, run)
            )

            expect_equal(deleted, None, f"a deletion beside {name} succeeds")
            expect(
                not isinstance(written, Exception) or isinstance(written, error),
                f"{name} is stored before the deletion, or {error.__name__}: {written!r}",
            )
            await expect_missing(first, run.instance_id, f"{name} brings nothing back")
            again = await first.start_instance(run.instance_id, "v1", start_at="charge")
            expect_equal(again.snapshot.version, 1, "the id is free, and begins anew")
            expect_equal(dict(again.snapshot.results), {}, "with nothing left over")
            newer = await claim(second, run.instance_id)
            expect(newer.fence > run.claim.fence, "fences grow across a deletion")


@check("RACE-013", "A write that races with a restart never reaches the new run.")
async def restart_against_writes(kit: Kit) -> None:
    first, second = await _two(kit)

    for name, (write, error) in WRITES.items():
        if error is InstanceNotFoundError:  # such a write names no run, and may reach the new one
            continue

        for _ in range(ROUNDS):
            run = await held(kit, first)

            started, written = await kit.together(
                partial(
                    first.start_instance,
                    run.instance_id,
                    "v1",
                    start_at="other",
                    on_conflict=ConflictPolicy.TERMINATE_EXISTING,
                ),
                partial(write, second, run),
            )

            if not isinstance(started, StartOutcome):
                raise ExpectationError(f"a restart beside {name} succeeds, not {started!r}")

            expect(
                not isinstance(written, Exception) or isinstance(written, error),
                f"{name} is stored before the restart, or {error.__name__}: {written!r}",
            )
            expect_equal(
                await first.load_snapshot(run.instance_id),
                started.snapshot,
                f"{name} of the old run does not reach the new one",
            )


# --- Saving -------------------------------------------------------------------------------------


@check(
    "RACE-014", "Of concurrent saves of one version exactly one is stored, the others are stale."
)
async def saves_of_one_version(kit: Kit) -> None:
    first, second = await _two(kit)
    snapshot = await start(kit, first)

    for _ in range(ROUNDS):
        outcomes = await kit.together(
            *(
                partial(store.save_snapshot, snapshot.record_result(f"r{number}", b"x"))
                for number, store in enumerate([first, second] * 4)
            )
        )

        [winner] = succeeded(outcomes)
        errors = refused(outcomes, StaleSnapshotError)
        expect_equal(
            {(error.given_version, error.stored_version) for error in errors},
            {(snapshot.version, snapshot.version + 1)},
            "the others are told which version is stored",
        )
        loaded = await second.load_snapshot(snapshot.instance_id)
        expect_equal(loaded, winner, "what the winner saved is stored, and nothing of the others")
        snapshot = loaded


@check("RACE-015", "Versions are dense: one for each accepted write, none lost, none twice.")
async def versions_are_dense(kit: Kit) -> None:
    first, second = await _two(kit)
    snapshot = await start(kit, first)
    instance_id = snapshot.instance_id
    accepted: list[int] = []

    async def saves(store: PersistentBackend, name: str) -> None:
        for number in range(ROUNDS):
            found = await store.load_snapshot(instance_id)

            try:
                saved = await store.save_snapshot(found.record_result(f"{name}-{number}", b"x"))
            except StaleSnapshotError:
                continue

            accepted.append(saved.version)

    async def records(store: PersistentBackend, name: str) -> None:
        for number in range(ROUNDS):
            output = b"%d" % number
            accepted.append(await store.save_task_result(instance_id, name, output))

    async def updates(store: PersistentBackend) -> None:
        for _ in range(ROUNDS):
            updated = await store.update_snapshot(instance_id, _counts)
            accepted.append(updated.version)

    outcomes = await kit.together(
        *(partial(saves, store, f"s{number}") for number, store in enumerate((first, second) * 2)),
        *(partial(records, store, f"r{number}") for number, store in enumerate((first, second))),
        *(partial(updates, store) for store in (first, second)),
    )

    expect_equal(len(succeeded(outcomes)), len(outcomes), f"no write fails: {outcomes}")
    _expect_dense(accepted, 2, "every accepted write has a version of its own, without gaps")
    loaded = await first.load_snapshot(instance_id)
    expect_equal(loaded.version, 1 + len(accepted), "the last version counts the writes")
    expect_equal(
        dict(loaded.loop_iterations), {"loop": 2 * ROUNDS}, "no update is overwritten by another"
    )
    expect_equal(
        len(loaded.results), 2 + len(accepted) - 4 * ROUNDS, "and no accepted result is lost"
    )


@check("RACE-016", "Results that are saved at the same moment all survive.")
async def results_survive(kit: Kit) -> None:
    first, second = await _two(kit)
    tasks = [f"t{number}" for number in range(12)]
    run = await start(kit, first, fork(*tasks))

    outcomes = await kit.together(
        *(
            partial(store.save_task_result, run.instance_id, task_id, task_id.encode())
            for task_id, store in zip(tasks, [first, second] * 6, strict=True)
        )
    )

    versions = succeeded(outcomes)
    expect_equal(len(versions), 12, "none is refused")
    _expect_dense(versions, 2, "each has a version of its own")
    loaded = await first.load_snapshot(run.instance_id)
    expect_equal(dict(loaded.results), {each: each.encode() for each in tasks}, "no result is lost")
    expect(all(task.done for task in loaded.ready_tasks()), "every task is marked done")


@check("RACE-017", "The same result, saved at the same moment, is one write.")
async def one_result(kit: Kit) -> None:
    first, second = await _two(kit)

    for _ in range(ROUNDS):
        run = await start(kit, first)

        outcomes = await kit.together(
            *(
                partial(store.save_task_result, run.instance_id, "charge", b"paid")
                for store in (first, second, first, second)
            )
        )

        expect_equal(outcomes, [2, 2, 2, 2], "a repeat is a no-op that returns the stored version")


@check("RACE-018", "update_snapshot loses no update, whoever else writes.")
async def updates_lose_nothing(kit: Kit) -> None:
    first, second = await _two(kit)
    run = await start(kit, first)

    outcomes = await kit.together(
        *(
            partial(store.update_snapshot, run.instance_id, _counts)
            for store in [first, second] * 5
        ),
        partial(first.save_task_result, run.instance_id, "one", b"1"),
        partial(second.save_task_result, run.instance_id, "two", b"2"),
    )

    expect_equal(len(succeeded(outcomes)), 12, f"none is refused: {outcomes}")
    loaded = await first.load_snapshot(run.instance_id)
    expect_equal(dict(loaded.loop_iterations), {"loop": 10}, "every count is there")
    expect_equal(dict(loaded.results), {"one": b"1", "two": b"2"}, "and every result")
    expect_equal(loaded.version, 13, "each write is one version")


@check("RACE-019", "A reader beside writers sees whole versions, and never an older one again.")
async def readers_see_whole_versions(kit: Kit) -> None:
    first, second = await _two(kit)
    run = await start(kit, first)
    writes = 4 * ROUNDS

    def step(found: WorkflowSnapshot) -> WorkflowSnapshot:
        count = found.loop_iterations.get("loop", 0)
        return _counts(found.record_result(f"r{count}", b"%d" % count)).move_to(
            AtTask(f"task-{count}")
        )

    async def writer() -> None:
        for _ in range(writes):
            await first.update_snapshot(run.instance_id, step)
            await checkpoint()

    async def reader(store: PersistentBackend) -> None:
        newest = 0

        while newest < 1 + writes:
            found = await store.load_snapshot(run.instance_id)
            count = found.loop_iterations.get("loop", 0)
            expect(found.version >= newest, "a reader never goes back")
            expect_equal(count, found.version - 1, "the body belongs to the version")
            expect_equal(
                dict(found.results),
                {f"r{number}": b"%d" % number for number in range(count)},
                "the results belong to the version",
            )
            newest = found.version
            await checkpoint()

    for outcome in await kit.together(writer, partial(reader, first), partial(reader, second)):
        if isinstance(outcome, Exception):
            raise outcome


# --- Branches -----------------------------------------------------------------------------------


@check("RACE-020", "Branches that are committed at the same moment all count; the join comes once.")
async def branches_join_once(kit: Kit) -> None:
    first, second = await _two(kit)
    tasks = [f"t{number}" for number in range(6)]

    for _ in range(ROUNDS):
        run = await start(kit, first, fork(*tasks, next=AtTask("join")))
        claims = [await claim(first, run.instance_id, task_id) for task_id in tasks]

        outcomes = await kit.together(
            *(
                partial(store.commit_task, mine, _moves(mine.task_id), base=run)
                for mine, store in zip(claims, [first, second] * 3, strict=True)
            )
        )

        commits = succeeded(outcomes)
        expect_equal(len(commits), 6, f"no branch is refused: {outcomes}")
        _expect_dense([each.snapshot.version for each in commits], 2, "each is one version")
        loaded = await second.load_snapshot(run.instance_id)
        expect_equal(
            dict(loaded.results), {each: each.encode() for each in tasks}, "no result is lost"
        )
        expect_equal([task.task_id for task in loaded.ready_tasks()], ["join"], "all have joined")
        expect_equal(
            sum(bool(each.snapshot.ready_tasks()[0].task_id == "join") for each in commits),
            1,
            "by exactly one of the commits",
        )
        polls = await kit.together(
            *(
                partial(store.acquire_tasks, worker_id="worker", ttl=kit.long, limit=9)
                for store in (first, second, first, second)
            )
        )
        acquired = [task.task_id for tasks in succeeded(polls) for task in tasks]
        expect_equal(acquired, ["join"], "and the join is run once")


@check("RACE-021", "Of branches that are committed with claim_next exactly one claims the join.")
async def one_claims_the_join(kit: Kit) -> None:
    first, second = await _two(kit)

    for _ in range(ROUNDS):
        run = await start(kit, first, fork("left", "right", next=AtTask("join")))
        left = await claim(first, run.instance_id, "left")
        right = await claim(second, run.instance_id, "right")

        outcomes = await kit.together(
            partial(first.commit_task, left, _moves("left"), base=run, claim_next=kit.long),
            partial(second.commit_task, right, _moves("right"), base=run, claim_next=kit.long),
        )

        following = [each.next for each in succeeded(outcomes)]
        expect_equal(len(following), 2, f"neither is refused: {outcomes}")
        [join] = [each for each in following if each is not None]
        expect_equal(join.task_id, "join", "the last one claims it")
        granted = await first.claim_task(run.instance_id, "join", worker_id="x", ttl=kit.long)
        expect_equal(granted, None, "and holds it")
        done = await first.commit_task(join.claim, _moves("join"))
        expect_equal(done.snapshot.status, Status.COMPLETED, "its claim commits")


@check("RACE-022", "A result that is saved beside a commit of another branch survives.")
async def result_beside_a_commit(kit: Kit) -> None:
    first, second = await _two(kit)

    for _ in range(ROUNDS):
        run = await start(kit, first, fork("left", "right"))
        left = await claim(first, run.instance_id, "left")
        right = await claim(second, run.instance_id, "right")

        outcomes = await kit.together(
            partial(first.commit_task, left, _moves("left", AtTask("more")), base=run),
            partial(second.save_task_result, run.instance_id, "right", b"r", claim=right),
        )

        expect_equal(len(succeeded(outcomes)), 2, f"neither is refused: {outcomes}")
        loaded = await first.load_snapshot(run.instance_id)
        expect_equal(dict(loaded.results), {"left": b"left", "right": b"r"}, "no result is lost")
        expect_equal(
            {task.task_id: task.done for task in loaded.ready_tasks()},
            {"more": False, "right": True},
            "nor a done mark",
        )


# --- Events -------------------------------------------------------------------------------------


@check("RACE-023", "Every event goes to exactly one of concurrent consumers.")
async def consumes_once(kit: Kit) -> None:
    first, second = await _two(kit)
    run = await start(kit, first)
    sent = [b"%02d" % number for number in range(16)]

    for payload in sent:
        await first.send_event(run.instance_id, "paid", payload)

    outcomes = await kit.together(
        *(partial(store.consume_event, run.instance_id, "paid") for store in [first, second] * 12)
    )

    expect_equal(len(succeeded(outcomes)), 24, f"none is refused: {outcomes}")
    got = [each for each in succeeded(outcomes) if each is not None]
    expect_equal(sorted(got), sent, "each event is consumed once, and None means empty")


@check("RACE-024", "Consumers beside senders get every event once, each sender's in its order.")
async def consumes_while_sending(kit: Kit) -> None:
    first, second = await _two(kit)
    run = await start(kit, first)
    got: list[list[bytes]] = [[], []]

    async def send(store: PersistentBackend, name: str) -> None:
        for number in range(8):
            await store.send_event(run.instance_id, "paid", b"%s-%d" % (name.encode(), number))

    async def consume(store: PersistentBackend, into: list[bytes]) -> None:
        while len(got[0]) + len(got[1]) < 16:
            if (payload := await store.consume_event(run.instance_id, "paid")) is not None:
                into.append(payload)

            await checkpoint()

    await kit.together(
        partial(send, first, "a"),
        partial(send, second, "b"),
        partial(consume, first, got[0]),
        partial(consume, second, got[1]),
    )

    sent = {b"%s-%d" % (name, number) for name in (b"a", b"b") for number in range(8)}
    expect_equal(Counter(got[0] + got[1]), Counter(sent), "every event is consumed exactly once")

    for consumed in got:
        for name in (b"a", b"b"):
            mine = [each for each in consumed if each.startswith(name)]
            expect_equal(mine, sorted(mine), "what one sender sent in order comes in order")


def _parks(found: WorkflowSnapshot) -> WorkflowSnapshot:
    return found.complete_task("charge", b"charged", next=_wait())


PARKS: Final[dict[str, Callable[[PersistentBackend, Held], Awaitable[object]]]] = {
    "save_snapshot": lambda backend, it: backend.save_snapshot(_parks(it.snapshot)),
    "update_snapshot": lambda backend, it: backend.update_snapshot(it.instance_id, _parks),
    "commit_task": lambda backend, it: backend.commit_task(
        it.claim, _parks, base=it.snapshot, claim_next=Kit.long
    ),
}


async def _expect_answered(
    backend: PersistentBackend, instance_id: str, payload: bytes, expectation: str
) -> WorkflowSnapshot:
    loaded = await backend.load_snapshot(instance_id)
    expect_equal(
        (
            loaded.results.get("wait"),
            [(task.task_id, task.reason) for task in loaded.ready_tasks()],
        ),
        (payload, [("ship", ReadyReason.EVENT)]),
        expectation,
    )
    return loaded


@check("RACE-025", "An event and the write that parks for it meet, whichever comes first.")
async def event_against_parking(kit: Kit) -> None:
    first, second = await _two(kit)

    for name, park in PARKS.items():
        for _ in range(ROUNDS):
            run = await held(kit, first)

            outcomes = await kit.together(
                partial(park, first, run),
                partial(second.send_event, run.instance_id, "paid", b"yes", event_id="e1"),
            )

            expect_equal(len(succeeded(outcomes)), 2, f"neither is refused: {outcomes}")
            loaded = await _expect_answered(
                first, run.instance_id, b"yes", f"when {name} and send_event have returned, it is"
            )
            expect_equal(loaded.version, run.snapshot.version + 2, "a park and a move, no more")
            expect_equal(await _queue(first, run.instance_id), [], "the event is taken once")


@check("RACE-026", "An event and the start of its instance meet, whichever comes first.")
async def event_against_start(kit: Kit) -> None:
    first, second = await _two(kit)

    for _ in range(ROUNDS):
        instance_id = kit.instance()

        outcomes = await kit.together(
            partial(first.start_instance, instance_id, "v1", start_at=_wait()),
            partial(second.send_event, instance_id, "paid", b"yes"),
        )

        expect_equal(len(succeeded(outcomes)), 2, f"neither is refused: {outcomes}")
        loaded = await _expect_answered(
            second, instance_id, b"yes", "when both have returned, the wait has its event"
        )
        expect_equal(loaded.version, 2, "by one move")
        expect_equal(await _queue(first, instance_id), [], "the event is taken once")


@check("RACE-027", "One event_id, sent at the same moment, is one event.")
async def one_event_id(kit: Kit) -> None:
    first, second = await _two(kit)

    for _ in range(ROUNDS):
        idle, waiting = await start(kit, first), await start(kit, first, _wait(_wait(node_id="b")))

        for run in (idle, waiting):
            outcomes = await kit.together(
                *(
                    partial(store.send_event, run.instance_id, "paid", b"yes", event_id="e1")
                    for store in [first, second] * 3
                )
            )
            expect_equal(len(succeeded(outcomes)), 6, f"none is refused: {outcomes}")

        expect_equal(await _queue(first, idle.instance_id), [b"yes"], "it is queued once")
        loaded = await first.load_snapshot(waiting.instance_id)
        expect_equal(dict(loaded.results), {"wait": b"yes"}, "it answers one wait")
        expect_equal(loaded.version, waiting.version + 1, "and moves the instance once")
        expect_equal(await _queue(first, waiting.instance_id), [], "nothing is left over")


@check("RACE-028", "Of two events for one wait one answers it, and the other stays queued.")
async def two_events_one_wait(kit: Kit) -> None:
    first, second = await _two(kit)

    for _ in range(ROUNDS):
        run = await start(kit, first, _wait())

        await kit.together(
            partial(first.send_event, run.instance_id, "paid", b"1"),
            partial(second.send_event, run.instance_id, "paid", b"2"),
        )

        loaded = await first.load_snapshot(run.instance_id)
        answer, left = loaded.results.get("wait"), await _queue(first, run.instance_id)
        expect_equal(
            sorted([answer or b"none", *left]), [b"1", b"2"], "neither is lost, or used twice"
        )
        expect_equal(len(left), 1, "one of them answers")
        expect_equal(loaded.version, run.version + 1, "and moves the instance once")


@check("RACE-029", "Events that are sent at the same moment answer a chain of waits, each one.")
async def chain_of_waits(kit: Kit) -> None:
    first, second = await _two(kit)

    for _ in range(ROUNDS):
        chain: Position = SHIP

        for number in reversed(range(6)):
            chain = _wait(chain, node_id=f"w{number}")

        run = await start(kit, first, chain)
        payloads = [b"%d" % number for number in range(6)]

        outcomes = await kit.together(
            *(
                partial(store.send_event, run.instance_id, "paid", payload)
                for payload, store in zip(payloads, [first, second] * 3, strict=True)
            )
        )

        expect_equal(len(succeeded(outcomes)), 6, f"none is refused: {outcomes}")
        loaded = await first.load_snapshot(run.instance_id)
        expect_equal(sorted(loaded.results.values()), payloads, "each event answers one wait")
        expect_equal([task.task_id for task in loaded.ready_tasks()], ["ship"], "all are answered")
        expect_equal(loaded.version, run.version + 6, "one move for each")


@check("RACE-030", "max_queued_events holds, however many send at the same moment.")
async def full_queue(kit: Kit) -> None:
    first, second = await kit.open(max_queued_events=3), await kit.open(max_queued_events=3)

    for _ in range(ROUNDS):
        run = await start(kit, first)

        outcomes = await kit.together(
            *(
                partial(store.send_event, run.instance_id, "paid", b"%d" % number)
                for number, store in enumerate([first, second] * 4)
            )
        )

        expect_equal(len(succeeded(outcomes)), 3, "as many as there is room for are queued")
        expect_equal(len(refused(outcomes, EventQueueFullError)), 5, "the others are refused")
        expect_equal(len(await _queue(first, run.instance_id)), 3, "what succeeded is there")


async def _met(kit: Kit, backend: PersistentBackend, position: Position) -> WorkflowSnapshot:
    """An instance whose wait has met the event b"yes", which nobody has drained yet."""
    run = await start(kit, backend, position)
    await backend.store_signal(run.instance_id, SignalKind.PAUSE)
    await backend.send_event(run.instance_id, "paid", b"yes")
    await backend.clear_signal(run.instance_id, SignalKind.PAUSE)
    return run


@check("RACE-031", "Of concurrent calls of drain_signal one takes the event.")
async def drains_once(kit: Kit) -> None:
    first, second = await _two(kit)

    for _ in range(ROUNDS):
        for version in (None, 1):
            run = await _met(kit, first, _wait(_wait(node_id="again")))

            outcomes = await kit.together(
                *(
                    partial(store.drain_signal, run.instance_id, version=version)
                    for store in (first, second, first, second)
                )
            )

            drained = [each for each in succeeded(outcomes) if each is not None]
            expect_equal(len(drained), 1, f"exactly one drains: {outcomes}")
            refused(outcomes, StaleSnapshotError)

            if version is None:
                expect_equal(len(succeeded(outcomes)), 4, "without a version nobody is stale")

            loaded = await first.load_snapshot(run.instance_id)
            expect_equal(dict(loaded.results), {"wait": b"yes"}, "one event answers one wait")
            expect_equal(loaded.version, run.version + 1, "and moves the instance once")


@check("RACE-032", "An event that a wait has met goes to the wait or to a consumer, never to both.")
async def drain_against_consume(kit: Kit) -> None:
    first, second = await _two(kit)

    for _ in range(ROUNDS):
        run = await _met(kit, first, _wait())

        drained, consumed = await kit.together(
            partial(first.drain_signal, run.instance_id),
            partial(second.consume_event, run.instance_id, "paid"),
        )

        loaded = await first.load_snapshot(run.instance_id)
        expect_equal(
            (drained is None, loaded.results.get("wait")),
            (True, None) if consumed == b"yes" else (False, b"yes"),
            f"exactly one of them has it: {drained!r}, {consumed!r}",
        )


@check("RACE-033", "An event and a cancel that come at the same moment: one of them ends it.")
async def event_against_cancel(kit: Kit) -> None:
    first, second = await _two(kit)

    for _ in range(4 * ROUNDS):
        run = await start(kit, first, _wait(None))

        sent, requested = await kit.together(
            partial(first.send_event, run.instance_id, "paid", b"yes"),
            partial(second.request_signal, run.instance_id, SignalKind.CANCEL),
        )

        expect_equal(sent, None, "an event is taken in any case")
        loaded = await first.load_snapshot(run.instance_id)
        left = await _queue(first, run.instance_id)

        if loaded.status is Status.COMPLETED:
            expect_equal(loaded.state, Completed(b"yes"), "the event completed it")
            expect_equal(left, [], "and is used up")
            expect(
                isinstance(requested, CannotCancelError),
                f"a cancel that comes too late is told: {requested!r}",
            )
        else:
            expect_equal(
                (requested, loaded.status),
                (Status.CANCELLED, Status.CANCELLED),
                "else the cancel ended it",
            )
            expect_equal(left, [b"yes"], "and the event stays queued")


# --- Signals ------------------------------------------------------------------------------------


@check("RACE-034", "Of concurrent calls of check_and_cancel exactly one is True.")
async def cancels_once(kit: Kit) -> None:
    first, second = await _two(kit)

    for _ in range(ROUNDS):
        run = await start(kit, first)
        await first.store_signal(run.instance_id, SignalKind.CANCEL)

        outcomes = await kit.together(
            *(
                partial(
                    store.check_and_cancel, run.instance_id, interrupted_at_task=f"task-{number}"
                )
                for number, store in enumerate([first, second] * 4)
            )
        )

        expect_equal(sorted(succeeded(outcomes)), [False] * 7 + [True], "one of them cancels it")
        loaded = await first.load_snapshot(run.instance_id)
        expect_equal(
            getattr(loaded.state, "interrupted_at_task", None),
            f"task-{outcomes.index(True)}",
            "the one that says so",
        )
        expect_equal(loaded.version, run.version + 1, "by one version")


@check("RACE-035", "Of concurrent checks for a pause exactly one applies it, whichever call it is.")
async def pauses_once(kit: Kit) -> None:
    first, second = await _two(kit)

    for _ in range(ROUNDS):
        run = await start(kit, first)
        await first.store_signal(run.instance_id, SignalKind.PAUSE)

        outcomes = await kit.together(
            *(partial(store.check_and_pause, run.instance_id) for store in (first, second)),
            *(partial(store.check_control_signals, run.instance_id) for store in (first, second)),
        )

        expect_equal(len(succeeded(outcomes)), 4, f"none is refused: {outcomes}")
        expect_equal(sum(bool(each) for each in outcomes), 1, "one of them pauses it")
        loaded = await first.load_snapshot(run.instance_id)
        expect_equal(
            (loaded.status, loaded.version), (Status.PAUSED, run.version + 1), "by one version"
        )


@check("RACE-036", "Of concurrent calls of unpause exactly one succeeds.")
async def unpauses_once(kit: Kit) -> None:
    first, second = await _two(kit)

    for _ in range(ROUNDS):
        run = await start(kit, first)
        paused = await first.save_snapshot(run.pause())

        outcomes = await kit.together(
            *(partial(store.unpause, run.instance_id) for store in (first, second, first, second))
        )

        expect_equal(len(succeeded(outcomes)), 1, "one of them sets it going")
        refused(outcomes, CannotPauseError)
        loaded = await first.load_snapshot(run.instance_id)
        expect_equal(
            (loaded.status, loaded.version),
            (Status.IN_PROGRESS, paused.version + 1),
            "by one version",
        )


@check("RACE-037", "request_signal is applied, or a claim is granted; no claim slips in between.")
async def request_against_claim(kit: Kit) -> None:
    first, second = await _two(kit)

    for kind in SignalKind:
        for _ in range(ROUNDS):
            run = await start(kit, first)

            status, granted = await kit.together(
                partial(first.request_signal, run.instance_id, kind),
                partial(second.claim_task, run.instance_id, "charge", worker_id="w", ttl=kit.long),
            )

            loaded = await first.load_snapshot(run.instance_id)
            expect_equal(status, loaded.status, "it returns the status after it")

            if isinstance(granted, TaskClaim):
                expect_equal(
                    loaded.status, Status.IN_PROGRESS, f"under a claim a {kind} is left to it"
                )
                extended = await second.extend_task_claim(granted, ttl=kit.long)
                expect_equal(extended.pending_signal, kind, "whose worker is told")
            else:
                expect_equal(granted, None, "without a claim there is no error")
                expect(loaded.status is not Status.IN_PROGRESS, f"and the {kind} is applied")


@check("RACE-038", "request_signal is applied, or a task is acquired; never both.")
async def request_against_acquire(kit: Kit) -> None:
    first, second = await _two(kit)

    for _ in range(ROUNDS):
        run = await start(kit, first)

        status, acquired = await kit.together(
            partial(first.request_signal, run.instance_id, SignalKind.PAUSE),
            partial(second.acquire_tasks, worker_id="w", ttl=kit.long),
        )

        expect(isinstance(acquired, list), f"a poll is no error: {acquired!r}")
        expect_equal(
            status,
            Status.IN_PROGRESS if acquired else Status.PAUSED,
            "a pause stops work before it begins, or waits for it",
        )


@check("RACE-039", "A commit and the request of a signal: when both are done, it is applied.")
async def commit_against_request(kit: Kit) -> None:
    first, second = await _two(kit)

    for kind, becomes in (
        (SignalKind.CANCEL, Status.CANCELLED),
        (SignalKind.PAUSE, Status.PAUSED),
    ):
        for _ in range(ROUNDS):
            snapshot, mine = await held(kit, first)

            outcomes = await kit.together(
                partial(first.commit_task, mine, _moves("charge", SHIP), base=snapshot),
                partial(second.request_signal, snapshot.instance_id, kind),
            )

            expect_equal(len(succeeded(outcomes)), 2, f"neither is refused: {outcomes}")
            loaded = await first.load_snapshot(snapshot.instance_id)
            expect_equal(loaded.status, becomes, f"one of them has applied the {kind}")
            expect_equal(loaded.results.get("charge"), b"charge", "and the commit is kept")


@check("RACE-040", "A completing commit and a cancel at the same moment: one of them ends it.")
async def commit_against_cancel(kit: Kit) -> None:
    first, second = await _two(kit)

    for _ in range(ROUNDS):
        snapshot, mine = await held(kit, first)
        await first.store_signal(snapshot.instance_id, SignalKind.CANCEL)

        committed, cancelled = await kit.together(
            partial(first.commit_task, mine, _moves("charge"), base=snapshot),
            partial(second.check_and_cancel, snapshot.instance_id),
        )

        loaded = await first.load_snapshot(snapshot.instance_id)

        if cancelled is True:
            expect_equal(loaded.status, Status.CANCELLED, "what was cancelled stays cancelled")
            expect(isinstance(committed, TerminalStateError), f"the commit is told: {committed!r}")
        else:
            expect_equal(cancelled, False, "a cancel that came too late is False")
            expect_equal(loaded.state, Completed(b"charge"), "the commit has completed it")


@check("RACE-041", "A pause is not undone by a save that was made from before it.")
async def save_against_pause(kit: Kit) -> None:
    first, second = await _two(kit)

    for _ in range(ROUNDS):
        run = await start(kit, first)
        await first.store_signal(run.instance_id, SignalKind.PAUSE)

        saved, paused = await kit.together(
            partial(first.save_snapshot, _counts(run)),
            partial(second.check_and_pause, run.instance_id),
        )

        expect_equal(paused, True, "the pause is applied")
        loaded = await first.load_snapshot(run.instance_id)
        expect_equal(loaded.status, Status.PAUSED, "and stays so")

        if isinstance(saved, WorkflowSnapshot):
            expect_equal(dict(loaded.loop_iterations), {"loop": 1}, "a save before it is kept")
        else:
            expect(isinstance(saved, InstancePausedError), f"a save after it is told: {saved!r}")


@check("RACE-042", "A signal and the write that ends the instance: nothing is pending afterwards.")
async def signal_against_the_end(kit: Kit) -> None:
    first, second = await _two(kit)

    for kind, error in (
        (SignalKind.CANCEL, CannotCancelError),
        (SignalKind.PAUSE, CannotPauseError),
    ):
        for _ in range(ROUNDS):
            run = await start(kit, first)

            saved, marked = await kit.together(
                partial(first.save_snapshot, run.complete(b"done")),
                partial(second.store_signal, run.instance_id, kind),
            )

            expect(isinstance(saved, WorkflowSnapshot), f"a {kind} does not stop it: {saved!r}")
            expect(
                marked is None or isinstance(marked, error),
                f"a {kind} is stored before the end, or refused: {marked!r}",
            )
            expect_equal(
                await first.get_signal(run.instance_id, kind), None, "the end leaves none behind"
            )


# --- Time ---------------------------------------------------------------------------------------


@check("RACE-043", "Pollers and sweeps at the same moment carry out a due move once.")
async def moves_once(kit: Kit) -> None:
    first, second = await _two(kit)
    nap = AtDelay("nap", wake_after=kit.short, next=fork("left", "right"))
    runs = [await start(kit, first, nap) for _ in range(ROUNDS)]
    ends = [await start(kit, first, AtDelay("nap", wake_after=kit.short)) for _ in range(ROUNDS)]
    await kit.elapse(kit.short)

    outcomes = await kit.together(
        partial(first.find_available_tasks, worker_id="w1", limit=99),
        partial(second.find_available_tasks, worker_id="w2", limit=99),
        partial(first.sweep),
        partial(second.sweep),
        partial(second.claim_task, runs[0].instance_id, "left", worker_id="w3", ttl=kit.long),
    )

    expect_equal(len(succeeded(outcomes)), 5, f"none is refused: {outcomes}")

    for run in runs:
        loaded = await first.load_snapshot(run.instance_id)
        expect_equal(loaded.version, run.version + 1, "a move is written once")
        expect_equal(
            [task.task_id for task in loaded.ready_tasks()], ["left", "right"], "and whole"
        )

    for run in ends:
        loaded = await first.load_snapshot(run.instance_id)
        expect_equal(loaded.state, Completed(b""), "an elapsed park ends its workflow")
        expect_equal(loaded.version, run.version + 1, "once")


@check("RACE-044", "Two sweeps at the same moment report each move once.")
async def sweeps_report_once(kit: Kit) -> None:
    first, second = await _two(kit)
    nap = AtDelay("nap", wake_after=kit.short, next=fork("left"))
    moved = [await start(kit, first, nap) for _ in range(ROUNDS)]
    cancelled = [await start(kit, first) for _ in range(ROUNDS)]

    for run in cancelled:
        await first.store_signal(run.instance_id, SignalKind.CANCEL)

    await kit.elapse(kit.short)

    reports = succeeded(await kit.together(first.sweep, second.sweep))

    expect_equal(len(reports), 2, "neither is refused")
    expect_equal(
        Counter(each for report in reports for each in report.advanced),
        Counter(run.instance_id for run in moved),
        "a move belongs to one of them",
    )
    expect_equal(
        Counter(each for report in reports for each in report.cancelled),
        Counter(run.instance_id for run in cancelled),
        "and so does a signal that was applied",
    )


@check("RACE-045", "Pollers that find a met wait at the same moment drain it once.")
async def pollers_drain_once(kit: Kit) -> None:
    first, second = await _two(kit)

    for _ in range(ROUNDS):
        run = await _met(kit, first, _wait(_wait(SHIP, node_id="again")))

        outcomes = await kit.together(
            partial(first.find_available_tasks, worker_id="w1"),
            partial(second.acquire_tasks, worker_id="w2", ttl=kit.long),
            partial(first.sweep),
            partial(second.drain_signal, run.instance_id),
        )

        expect_equal(len(succeeded(outcomes)), 4, f"none is refused: {outcomes}")
        loaded = await first.load_snapshot(run.instance_id)
        expect_equal(dict(loaded.results), {"wait": b"yes"}, "one event answers one wait")
        expect_equal(loaded.version, run.version + 1, "and moves the instance once")


@check("RACE-046", "Workers that drain a store together run every task once, joins included.")
async def workers_run_everything_once(kit: Kit) -> None:
    first, second = await _two(kit)
    ran: Counter[tuple[str, str]] = Counter()
    runs = [
        await start(kit, first, fork("a", "b", "c", next=AtFork("f2", {"x": AtTask("d")})))
        for _ in range(4)
    ]

    async def work(store: PersistentBackend, worker_id: str) -> None:
        idle = 0

        while idle < 3:
            acquired = await store.acquire_tasks(worker_id=worker_id, ttl=kit.long, limit=2)
            idle = 0 if acquired else idle + 1
            await checkpoint()

            for task in acquired:
                ran[task.instance_id, task.task_id] += 1
                await store.commit_task(task.claim, _moves(task.task_id), base=task.snapshot)

    for outcome in await kit.together(
        *(partial(work, store, f"w{number}") for number, store in enumerate([first, second] * 3))
    ):
        if isinstance(outcome, Exception):
            raise outcome

    await work(first, "last")  # what was ready only after others had given up
    expect_equal(
        ran,
        Counter((run.instance_id, task_id) for run in runs for task_id in "abcd"),
        "every task is run exactly once",
    )

    for run in runs:
        loaded = await first.load_snapshot(run.instance_id)
        expect_equal(loaded.state, Completed(b""), "every workflow is completed")
        expect_equal(
            dict(loaded.results), {each: each.encode() for each in "abcd"}, "with every result"
        )


@check("RACE-047", "A cancel that is stored while a pause is applied is not lost.")
async def cancel_beside_a_pause(kit: Kit) -> None:
    first, second = await _two(kit)

    for _ in range(2 * ROUNDS):
        run = await start(kit, first)
        await first.store_signal(run.instance_id, SignalKind.PAUSE)

        applied, marked = await kit.together(
            partial(first.check_control_signals, run.instance_id),
            partial(second.store_signal, run.instance_id, SignalKind.CANCEL),
        )

        expect_equal(marked, None, "a cancel is stored in any case")
        loaded = await first.load_snapshot(run.instance_id)

        if applied is SignalKind.CANCEL:
            expect_equal(loaded.status, Status.CANCELLED, "the cancel came first, and won")
        else:
            expect_equal(
                (applied, loaded.status),
                (SignalKind.PAUSE, Status.PAUSED),
                "else the pause came first",
            )
            expect(
                await second.get_signal(run.instance_id, SignalKind.CANCEL) is not None,
                "and the cancel is still pending",
            )


@check("RACE-048", "An event and the unpause at the same moment: the next look moves on, once.")
async def event_against_unpause(kit: Kit) -> None:
    first, second = await _two(kit)

    for _ in range(ROUNDS):
        run = await start(kit, first, _wait())
        paused = await first.save_snapshot(run.pause())

        outcomes = await kit.together(
            partial(first.send_event, run.instance_id, "paid", b"yes"),
            partial(second.unpause, run.instance_id),
        )

        expect_equal(len(succeeded(outcomes)), 2, f"neither is refused: {outcomes}")
        await first.find_available_tasks(worker_id="w")
        loaded = await _expect_answered(
            first, run.instance_id, b"yes", "an event that came beside the unpause is not lost"
        )
        expect_equal(loaded.version, paused.version + 2, "an unpause and a move, no more")
        expect_equal(await _queue(first, run.instance_id), [], "the event is taken once")
