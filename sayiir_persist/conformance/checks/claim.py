"""CLAIM-0xx: claiming, extending, releasing, revoking."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from sayiir_persist import (
    AtDelay,
    AtFork,
    AtNode,
    AtSignal,
    AtTask,
    ClaimLostError,
    ClaimNotFoundError,
    ConflictPolicy,
    InstanceNotFoundError,
    InvalidArgumentError,
    PersistentBackend,
    Position,
    SignalKind,
    Status,
    TaskClaim,
)
from sayiir_persist.conformance.kit import (
    ExpectationError,
    Kit,
    expect,
    expect_equal,
    raises,
    refused,
    succeeded,
)
from sayiir_persist.conformance.registry import check
from sayiir_persist.conformance.scenes import (
    BAD_IDS,
    RETRY,
    TERMINAL,
    claim,
    expect_refused,
    fork,
    held,
    start,
    stored,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

MICROSECOND = timedelta(microseconds=1)


async def _expect_free(backend: PersistentBackend, gone: TaskClaim, expectation: str) -> TaskClaim:
    """Fail the check unless another worker gets a claim, with a larger fence."""
    taken = await backend.claim_task(
        gone.instance_id, gone.task_id, worker_id="successor", ttl=Kit.long
    )

    if taken is None:
        raise ExpectationError(expectation)

    expect(taken.fence > gone.fence, "a later claim on an instance has a larger fence")
    return taken


async def _expect_held(backend: PersistentBackend, live: TaskClaim, expectation: str) -> None:
    """Fail the check unless a live claim keeps everybody out."""
    for worker_id in (live.worker_id, "rival"):
        rival = await backend.claim_task(
            live.instance_id, live.task_id, worker_id=worker_id, ttl=Kit.long
        )
        expect_equal(rival, None, expectation)


# --- Claiming -------------------------------------------------------------------------------------


@check("CLAIM-001", "A claim says who holds what, since when and until when, exactly.")
async def claims(kit: Kit) -> None:
    backend = await kit.open()
    instance_id = (await start(kit, backend)).instance_id
    before = await backend.now()

    granted = await backend.claim_task(
        instance_id, "charge", worker_id="worker", ttl=kit.long, tags=["gpu", "eu"], nonce="n-1"
    )

    after = await backend.now()

    if granted is None:
        raise ExpectationError("a ready task that nobody holds can be claimed")

    expect_equal(
        (granted.instance_id, granted.task_id, granted.worker_id),
        (instance_id, "charge", "worker"),
        "a claim names the instance, the task and the worker",
    )
    expect(before <= granted.claimed_at <= after, "claimed_at is the store's time of the claim")
    expect_equal(
        granted.expires_at, granted.claimed_at + kit.long, "it expires a ttl later, exactly"
    )
    expect_equal(granted.nonce, "n-1", "it has the nonce that was given")
    expect_equal(granted.worker_tags, ("gpu", "eu"), "it records what the worker accepts")
    expect_equal(granted.pending_signal, None, "no signal is pending")
    offset = granted.claimed_at.utcoffset()
    expect(offset is not None and not offset, "its instants are aware and in UTC")


@check("CLAIM-002", "Claiming a task of an unknown instance is InstanceNotFoundError.")
async def claim_of_nothing(kit: Kit) -> None:
    backend = await kit.open()

    with raises(InstanceNotFoundError, "an unknown instance has no task to claim") as caught:
        await backend.claim_task("nobody", "charge", worker_id="worker", ttl=kit.long)

    expect_equal(caught.error.instance_id, "nobody", "the error names the instance")


@check("CLAIM-003", "While a claim is live nobody else gets one, not even its own worker.")
async def claims_are_exclusive(kit: Kit) -> None:
    backend, other = await kit.open(), await kit.open()
    _, mine = await held(kit, backend)

    await _expect_held(backend, mine, "a live claim keeps everybody out")
    await _expect_held(other, mine, "a live claim keeps out whoever uses another backend object")
    await backend.extend_task_claim(mine, ttl=kit.long)


@check("CLAIM-004", "The same worker with the same nonce gets its live claim back, unchanged.")
async def nonce_finds_the_claim(kit: Kit) -> None:
    backend, other = await kit.open(), await kit.open()
    instance_id = (await start(kit, backend)).instance_id

    async def ask(worker_id: str, nonce: str, ttl: timedelta | None) -> TaskClaim | None:
        return await other.claim_task(
            instance_id, "charge", worker_id=worker_id, ttl=ttl, nonce=nonce, tags=["other"]
        )

    mine = await backend.claim_task(
        instance_id, "charge", worker_id="worker", ttl=kit.long, nonce="n-1", tags=["gpu"]
    )
    await kit.elapse(kit.short / 10)

    expect_equal(
        await ask("worker", "n-1", None), mine, "the claim that a lost answer granted comes back"
    )
    expect_equal(await ask("rival", "n-1", kit.long), None, "a nonce is no key for other workers")
    expect_equal(await ask("worker", "n-2", kit.long), None, "another nonce is another request")


@check("CLAIM-005", "A nonce does not revive a claim that has expired: that is a new one.")
async def nonce_of_an_expired_claim(kit: Kit) -> None:
    backend = await kit.open()
    instance_id = (await start(kit, backend)).instance_id

    async def ask() -> TaskClaim | None:
        return await backend.claim_task(
            instance_id, "charge", worker_id="worker", ttl=kit.short, nonce="n-1"
        )

    first = await ask()
    await kit.until(backend, first.expires_at if first else None)
    second = await ask()

    expect(
        first is not None and second is not None and second.fence > first.fence,
        "an expired claim is followed by a new one, whatever its nonce",
    )


@check("CLAIM-006", "Where no nonce is given every claim has one of its own.")
async def nonces_are_generated(kit: Kit) -> None:
    backend = await kit.open()
    nonces: set[str] = set()

    for _ in range(5):
        nonces.add((await held(kit, backend)).claim.nonce)

    expect_equal(len(nonces - {""}), 5, "a claim without a nonce gets one of its own")


@check(
    "CLAIM-007", "Only a ready task of a running instance can be claimed; else the answer is None."
)
async def only_ready_tasks(kit: Kit) -> None:
    backend = await kit.open()

    async def expect_none(instance_id: str, task_id: str, expectation: str) -> None:
        granted = await backend.claim_task(instance_id, task_id, worker_id="worker", ttl=kit.long)
        expect_equal(granted, None, expectation)

    running = await start(kit, backend)
    await expect_none(running.instance_id, "other", "a task that is not current is not granted")

    for status in (Status.PAUSED, *TERMINAL):
        snapshot = await stored(kit, backend, status)
        await expect_none(
            snapshot.instance_id, "charge", f"nothing is granted while the instance is {status}"
        )

    positions: tuple[Position, ...] = (
        AtDelay("here", wake_after=kit.long, next=AtTask("next")),
        AtSignal("here", "paid", next=AtTask("next")),
        AtSignal("here", "paid", wake_after=kit.long, next=AtTask("next")),
        AtNode("here"),
        AtFork("here", {"branch": AtNode("node")}, next=AtTask("next")),
    )

    for position in positions:
        snapshot = await start(kit, backend, position)

        for task_id in ("here", "next"):
            await expect_none(
                snapshot.instance_id, task_id, f"nothing is granted at {type(position).__name__}"
            )


@check(
    "CLAIM-008", "A claim is live until exactly its end, and from then on free to be taken over."
)
async def claims_expire(kit: Kit) -> None:
    backend = await kit.open()
    _, mine = await held(kit, backend, ttl=kit.short)
    end = mine.expires_at

    await kit.until(backend, end and end - MICROSECOND)
    rival = await backend.claim_task(mine.instance_id, "charge", worker_id="rival", ttl=kit.short)

    if end is not None and await backend.now() < end:
        expect_equal(rival, None, "a claim is live until its end")

    if rival is None:
        await kit.until(backend, end)
        await _expect_free(backend, mine, "at exactly its end a claim is free")


@check("CLAIM-009", "An expired claim is taken over in one step, by whoever comes, its worker too.")
async def takeover(kit: Kit) -> None:
    backend = await kit.open()

    for worker_id in ("worker", "rival"):
        _, old = await held(kit, backend, ttl=kit.short)
        await kit.until(backend, old.expires_at)

        new = await claim(backend, old.instance_id, worker_id=worker_id)

        expect(new.fence > old.fence, "a take-over has a larger fence")
        expect_equal(new.worker_id, worker_id, "and its own worker")
        expect(new.nonce != old.nonce, "and a nonce of its own")
        await _expect_held(backend, new, "after a take-over the new claim keeps everybody out")


@check("CLAIM-010", "A ttl of 0 is granted, and expired already.")
async def zero_ttl(kit: Kit) -> None:
    backend = await kit.open()
    snapshot, mine = await held(kit, backend, ttl=timedelta(0))

    expect_equal(mine.expires_at, mine.claimed_at, "a ttl of 0 ends when it begins")
    await expect_refused(
        backend,
        snapshot,
        ClaimLostError,
        "no write passes with a claim of ttl 0",
        lambda: backend.save_task_result(mine.instance_id, "charge", b"x", claim=mine),
    )
    await _expect_free(backend, mine, "a claim of ttl 0 keeps nobody out")


@check("CLAIM-011", "A ttl of None never expires.")
async def eternal(kit: Kit) -> None:
    backend = await kit.open()
    _, mine = await held(kit, backend, ttl=None)

    expect_equal(mine.expires_at, None, "an eternal claim has no end")
    await kit.elapse(timedelta(days=400) if kit.manual_clock else kit.short)
    await _expect_held(backend, mine, "an eternal claim keeps everybody out for ever")
    await backend.save_task_result(mine.instance_id, "charge", b"x", claim=mine)


@check("CLAIM-012", "A ttl is kept to the microsecond, tiny or huge.")
async def exact_ttls(kit: Kit) -> None:
    backend = await kit.open()

    for ttl in (
        MICROSECOND,
        timedelta(milliseconds=50),
        timedelta(seconds=1, microseconds=1),
        timedelta(days=36_500, microseconds=999_999),
    ):
        _, mine = await held(kit, backend, ttl=ttl)
        expect_equal(mine.expires_at, mine.claimed_at + ttl, f"a ttl of {ttl} is kept exactly")
        extended = await backend.claim_task(
            mine.instance_id, "charge", worker_id=mine.worker_id, ttl=ttl, nonce=mine.nonce
        )

        if extended is not None and extended.fence == mine.fence:
            expect_equal(extended, mine, "and stored as it was returned")


@check("CLAIM-013", "A ttl that is negative or beyond the calendar is refused, never eternal.")
async def invalid_ttls(kit: Kit) -> None:
    backend = await kit.open()
    snapshot, mine = await held(kit, backend)

    for ttl in (-MICROSECOND, timedelta(days=-1), timedelta.max, timedelta(days=10**7)):
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "claim_task": partial(
                backend.claim_task, mine.instance_id, "charge", worker_id="worker", ttl=ttl
            ),
            "acquire_tasks": partial(backend.acquire_tasks, worker_id="worker", ttl=ttl),
            "extend_task_claim": partial(backend.extend_task_claim, mine, ttl=ttl),
            "commit_task": partial(
                backend.commit_task, mine, snapshot.count_iteration("loop"), claim_next=ttl
            ),
        }

        for name, call in calls.items():
            await expect_refused(
                backend, snapshot, InvalidArgumentError, f"{name} refuses a ttl of {ttl}", call
            )


@check("CLAIM-014", "Where the signature demands a ttl, None is refused.")
async def ttl_is_required(kit: Kit) -> None:
    backend = await kit.open()
    snapshot, mine = await held(kit, backend)
    forever: Any = None

    await expect_refused(
        backend,
        snapshot,
        InvalidArgumentError,
        "an extension without end is refused",
        lambda: backend.extend_task_claim(mine, ttl=forever),
    )
    expect_equal(
        (await backend.extend_task_claim(mine, ttl=kit.short)).fence, mine.fence, "the claim stays"
    )


@check(
    "CLAIM-015", "A claim is granted though a signal is pending, and tells so: cancel over pause."
)
async def claims_tell_of_signals(kit: Kit) -> None:
    backend = await kit.open()

    for kinds, expected in (
        ((SignalKind.PAUSE,), SignalKind.PAUSE),
        ((SignalKind.CANCEL,), SignalKind.CANCEL),
        ((SignalKind.PAUSE, SignalKind.CANCEL), SignalKind.CANCEL),
    ):
        instance_id = (await start(kit, backend)).instance_id

        for kind in kinds:
            await backend.store_signal(instance_id, kind)

        mine = await claim(backend, instance_id)
        expect_equal(mine.pending_signal, expected, "a claim tells which signal is pending")
        mine = await backend.extend_task_claim(mine, ttl=kit.long)
        expect_equal(mine.pending_signal, expected, "and so does an extended one")

        for kind in kinds:
            await backend.clear_signal(instance_id, kind)

        mine = await backend.extend_task_claim(mine, ttl=kit.long)
        expect_equal(mine.pending_signal, None, "until none is pending any more")


@check("CLAIM-016", "A claim is granted while the task backs off.")
async def claim_while_backing_off(kit: Kit) -> None:
    backend = await kit.open()
    snapshot, mine = await held(kit, backend)
    await backend.commit_task(mine, snapshot.record_failure("charge", RETRY, error="declined"))

    expect_equal(
        await backend.find_available_tasks(worker_id="worker"),
        [],
        "a task that backs off is not offered",
    )
    await claim(backend, snapshot.instance_id)


@check("CLAIM-017", "Behind a park a task is claimed from exactly the park's end on, not before.")
async def claim_behind_a_park(kit: Kit) -> None:
    backend = await kit.open()
    parks: tuple[AtDelay | AtSignal, ...] = (
        AtDelay("park", wake_after=kit.short, next=AtTask("charge")),
        AtSignal("park", "paid", wake_after=kit.short, next=AtTask("charge")),
        AtDelay(
            "nap",
            wake_after=timedelta(0),
            next=AtDelay("park", wake_after=kit.short, next=AtTask("charge")),
        ),
    )

    for park in parks:
        snapshot = await start(kit, backend, park)
        end = snapshot.created_at and snapshot.created_at + kit.short
        await kit.until(backend, end and end - MICROSECOND)
        early = await backend.claim_task(
            snapshot.instance_id, "charge", worker_id="worker", ttl=timedelta(0)
        )

        if end is not None and await backend.now() < end:
            expect_equal(early, None, "nothing is granted before a park has ended")

        await kit.until(backend, end)
        mine = await claim(backend, snapshot.instance_id)
        commit = await backend.commit_task(
            mine, lambda found: found.complete_task("charge", b"paid", next=None)
        )
        expect_equal(
            commit.snapshot.status, Status.COMPLETED, "a task behind a park is run like any other"
        )


@check("CLAIM-018", "A task that is marked done can be claimed, so that somebody can move it on.")
async def claim_of_the_done(kit: Kit) -> None:
    backend = await kit.open()
    instance_id = (await start(kit, backend)).instance_id
    await backend.save_task_result(instance_id, "charge", b"paid")

    mine = await claim(backend, instance_id)

    commit = await backend.commit_task(
        mine,
        lambda found: found.complete_task("charge", found.results["charge"], next=AtTask("ship")),
    )
    expect_equal(
        [task.task_id for task in commit.snapshot.ready_tasks()], ["ship"], "and committed"
    )


@check("CLAIM-019", "Behind an advance that is due, the advance is carried out first.")
async def claim_behind_an_advance(kit: Kit) -> None:
    backend = await kit.open()
    delay = AtDelay("nap", wake_after=kit.short, next=fork("pack", "ship"))
    snapshot = await start(kit, backend, delay)
    ending = await start(kit, backend, AtDelay("nap", wake_after=kit.short))
    met = await start(kit, backend, AtSignal("wait", "paid", next=AtTask("ship")))
    await backend.save_snapshot(met.pause())
    await backend.send_event(met.instance_id, "paid", b"1")
    await backend.unpause(met.instance_id)
    await kit.elapse(2 * kit.short)

    await claim(backend, snapshot.instance_id, "pack")
    await claim(backend, met.instance_id, "ship")
    expect_equal(
        await backend.load_task_result(met.instance_id, "wait"),
        b"1",
        "a wait that met its event has taken it",
    )
    granted = await backend.claim_task(ending.instance_id, "nap", worker_id="worker", ttl=kit.long)

    expect_equal(granted, None, "a park is no task")
    loaded = await backend.load_snapshot(ending.instance_id)
    expect_equal(loaded.status, Status.COMPLETED, "an elapsed last park has ended the workflow")


@check("CLAIM-020", "Claims on different tasks of one instance live beside each other.")
async def claims_of_a_fork(kit: Kit) -> None:
    backend = await kit.open()
    instance_id = (await start(kit, backend, fork("pack", "ship", "bill"))).instance_id
    pack = await claim(backend, instance_id, "pack", "one")
    ship = await claim(backend, instance_id, "ship", "two")
    bill = await claim(backend, instance_id, "bill", "one")

    expect_equal(len({pack.fence, ship.fence, bill.fence}), 3, "each has a fence of its own")
    expect(pack.fence < ship.fence < bill.fence, "fences grow over the whole instance")
    await backend.release_task_claim(pack)
    await backend.revoke_task_claim(instance_id, "bill")
    await _expect_held(backend, ship, "the end of one claim does not touch another")
    await _expect_free(backend, pack, "a released branch is free")
    await _expect_free(backend, bill, "a revoked branch is free")


@check("CLAIM-021", "Of concurrent claimers of one task exactly one gets it.")
async def one_claimer_wins(kit: Kit) -> None:
    first, second = await kit.open(), await kit.open()

    for _ in range(5):
        instance_id = (await start(kit, first)).instance_id

        outcomes = await kit.together(
            *(
                partial(
                    store.claim_task,
                    instance_id,
                    "charge",
                    worker_id=f"worker-{number}",
                    ttl=kit.long,
                )
                for number, store in enumerate([first, second] * 8)
            )
        )

        winners = [granted for granted in succeeded(outcomes) if granted is not None]
        expect_equal(len(winners), 1, "exactly one concurrent claimer gets the task")
        expect_equal(len(succeeded(outcomes)), 16, "nobody else gets an error")
        await first.extend_task_claim(winners[0], ttl=kit.long)


@check("CLAIM-022", "Of concurrent requests of one worker and nonce all get the same claim.")
async def one_nonce_one_claim(kit: Kit) -> None:
    first, second = await kit.open(), await kit.open()
    instance_id = (await start(kit, first)).instance_id

    outcomes = await kit.together(
        *(
            partial(
                store.claim_task,
                instance_id,
                "charge",
                worker_id="worker",
                ttl=kit.long,
                nonce="n-1",
            )
            for store in [first, second] * 4
        )
    )

    fences = {granted and granted.fence for granted in succeeded(outcomes)}
    expect_equal(len(fences), 1, "one request repeated is one claim")
    expect(None not in fences, "which every repeat gets")


@check("CLAIM-023", "Fences grow strictly, whatever ended the claim before, deletion included.")
async def fences_grow(kit: Kit) -> None:
    backend, other = await kit.open(), await kit.open()
    instance_id = (await start(kit, backend)).instance_id
    fences: list[int] = []

    async def next_fence() -> TaskClaim:
        granted = await claim(other if len(fences) % 2 else backend, instance_id)
        fences.append(granted.fence)
        expect_equal(fences, sorted(set(fences)), "every later claim has a larger fence")
        return granted

    await backend.release_task_claim(await next_fence())
    await next_fence()
    await backend.revoke_task_claim(instance_id, "charge")
    brief = await backend.extend_task_claim(await next_fence(), ttl=kit.short)
    await kit.until(backend, brief.expires_at)
    commit = await backend.commit_task(
        await next_fence(), lambda found: found.complete_task("charge", b"x", next=AtTask("charge"))
    )
    expect_equal(commit.next, None, "nothing is claimed unless it is asked for")
    await next_fence()

    for _ in range(2):
        await backend.delete_snapshot(instance_id)
        await backend.start_instance(instance_id, "v1", start_at="charge")
        await next_fence()

    await backend.start_instance(
        instance_id, "v1", start_at="charge", on_conflict=ConflictPolicy.TERMINATE_EXISTING
    )
    await next_fence()


@check("CLAIM-024", "Worker, nonce, task and tags of a claim obey the limits of ids.")
async def invalid_arguments(kit: Kit) -> None:
    backend = await kit.open()
    instance_id = (await start(kit, backend)).instance_id

    for what, bad in BAD_IDS.items():
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "worker": partial(
                backend.claim_task, instance_id, "charge", worker_id=bad, ttl=kit.long
            ),
            "nonce": partial(
                backend.claim_task,
                instance_id,
                "charge",
                worker_id="worker",
                ttl=kit.long,
                nonce=bad,
            ),
            "task": partial(backend.claim_task, instance_id, bad, worker_id="worker", ttl=kit.long),
            "tag": partial(
                backend.claim_task,
                instance_id,
                "charge",
                worker_id="worker",
                ttl=kit.long,
                tags=[bad],
            ),
            "worker that acquires": partial(backend.acquire_tasks, worker_id=bad, ttl=kit.long),
            "worker that looks": partial(backend.find_available_tasks, worker_id=bad),
            "tag to acquire by": partial(
                backend.acquire_tasks, worker_id="worker", ttl=kit.long, tags=[bad]
            ),
            "definition to acquire by": partial(
                backend.acquire_tasks, worker_id="worker", ttl=kit.long, definition_hashes=[bad]
            ),
            "task to revoke": partial(backend.revoke_task_claim, instance_id, bad),
        }

        for where, call in calls.items():
            with raises(InvalidArgumentError, f"{what} as {where} is refused"):
                await call()

    with raises(InvalidArgumentError, "65 tags are refused"):
        await backend.claim_task(
            instance_id, "charge", worker_id="worker", ttl=kit.long, tags=["a"] * 65
        )

    with raises(InvalidArgumentError, "one str as tags is refused"):
        await backend.claim_task(instance_id, "charge", worker_id="w", ttl=kit.long, tags="gpu")

    longest = "é" * 128
    await backend.start_instance(longest, "v1", start_at=longest)
    granted = await backend.claim_task(
        longest, longest, worker_id=longest, ttl=kit.long, nonce=longest, tags=[longest] * 64
    )
    expect(granted is not None, "256 bytes are accepted everywhere")


@check("CLAIM-025", "acquire_tasks claims like claim_task does, and a repeat acquires other tasks.")
async def acquires(kit: Kit) -> None:
    backend = await kit.open()
    ids = {(await start(kit, backend, fork("pack", "ship"))).instance_id for _ in range(2)}
    before = await backend.now()

    first = await backend.acquire_tasks(worker_id="worker", ttl=kit.long, limit=3, tags=["gpu"])
    again = await backend.acquire_tasks(worker_id="worker", ttl=None, limit=3)

    after = await backend.now()
    expect_equal((len(first), len(again)), (3, 1), "each task is acquired once")
    acquired = first + again
    expect_equal(
        {(task.instance_id, task.task_id) for task in acquired},
        {(instance_id, task_id) for instance_id in ids for task_id in ("pack", "ship")},
        "all of them are",
    )
    expect_equal(len({task.claim.nonce for task in acquired}), 4, "each with its own nonce")
    expect_equal([task.claim.expires_at for task in again], [None], "a ttl of None never ends")

    for task in acquired:
        mine = task.claim
        expect_equal(
            (mine.instance_id, mine.task_id, mine.worker_id),
            (task.instance_id, task.task_id, "worker"),
            "a claim names what was acquired, and by whom",
        )
        expect(before <= mine.claimed_at <= after, "claimed_at is the store's time")
        await _expect_held(backend, mine, "what was acquired is claimed")
        await backend.save_task_result(mine.instance_id, mine.task_id, b"x", claim=mine)

    for task in first:
        end = task.claim.claimed_at + kit.long
        expect_equal(task.claim.expires_at, end, "an acquired claim expires a ttl later, exactly")
        expect_equal(task.claim.worker_tags, ("gpu",), "it records what the worker accepts")
        found = await backend.claim_task(
            task.instance_id,
            task.task_id,
            worker_id="worker",
            ttl=kit.long,
            nonce=task.claim.nonce,
        )
        expect_equal(found, task.claim, "its nonce finds it again")


# --- Releasing ------------------------------------------------------------------------------------


@check("CLAIM-031", "A released claim is gone: the task is free, a second release finds nothing.")
async def releases(kit: Kit) -> None:
    backend = await kit.open()
    _, mine = await held(kit, backend)

    await backend.release_task_claim(mine)

    with raises(ClaimNotFoundError, "a claim cannot be released twice") as caught:
        await backend.release_task_claim(mine)

    expect_equal(
        (caught.error.instance_id, caught.error.task_id),
        (mine.instance_id, "charge"),
        "the error names the instance and the task",
    )
    await _expect_free(backend, mine, "a released task is free at once")


@check("CLAIM-032", "A claim that was superseded cannot be released; the error names the owner.")
async def releases_only_its_own(kit: Kit) -> None:
    backend = await kit.open()

    for worker_id in ("rival", "worker"):
        for ttl in (kit.long, kit.short):
            _, old = await held(kit, backend, ttl=kit.short)
            await kit.until(backend, old.expires_at)
            new = await claim(backend, old.instance_id, worker_id=worker_id, ttl=ttl)

            if ttl == kit.short:
                await kit.until(backend, new.expires_at)

            with raises(ClaimLostError, "a claim that was superseded is not released") as caught:
                await backend.release_task_claim(old)

            expect_equal(caught.error.owner, worker_id, "the error names the owner of the record")
            await backend.release_task_claim(new)


@check("CLAIM-033", "A worker may release its own claim after it has expired.")
async def releases_the_expired(kit: Kit) -> None:
    backend = await kit.open()
    _, mine = await held(kit, backend, ttl=kit.short)
    await kit.until(backend, mine.expires_at)

    await backend.release_task_claim(mine)

    with raises(ClaimNotFoundError, "after which it is gone"):
        await backend.release_task_claim(mine)


@check("CLAIM-034", "A claim that was never made is not found, whatever else its worker holds.")
async def releases_nothing_else(kit: Kit) -> None:
    backend = await kit.open()
    instance_id = (await start(kit, backend, fork("pack", "ship"))).instance_id
    mine = await claim(backend, instance_id, "pack")

    with raises(ClaimNotFoundError, "a claim on another task does not count"):
        await backend.release_task_claim(replace(mine, task_id="ship"))

    with raises(ClaimNotFoundError, "nor does one on another instance"):
        await backend.release_task_claim(replace(mine, instance_id="nobody"))

    await _expect_held(backend, mine, "the claim that it holds stays")


@check("CLAIM-035", "Of concurrent releases of one claim exactly one takes effect.")
async def one_release_wins(kit: Kit) -> None:
    first, second = await kit.open(), await kit.open()
    _, mine = await held(kit, first)

    outcomes = await kit.together(
        *(partial(store.release_task_claim, mine) for store in [first, second] * 3)
    )

    expect_equal(len(succeeded(outcomes)), 1, "exactly one concurrent release takes effect")
    refused(outcomes, ClaimNotFoundError)


# --- Extending ------------------------------------------------------------------------------------


@check("CLAIM-041", "An extension is absolute: now + ttl, however often, longer or shorter.")
async def extends(kit: Kit) -> None:
    backend = await kit.open()
    _, mine = await held(kit, backend)

    for ttl in (kit.long, kit.long, kit.long, 2 * kit.long, kit.short * 20, kit.long):
        before = await backend.now()
        extended = await backend.extend_task_claim(mine, ttl=ttl)
        after = await backend.now()

        expect(
            extended.expires_at is not None and before + ttl <= extended.expires_at <= after + ttl,
            "an extended claim ends a ttl after the extension, not after its old end",
        )
        expect_equal(
            replace(extended, expires_at=mine.expires_at), mine, "nothing else of it changes"
        )
        again = await backend.claim_task(
            mine.instance_id, "charge", worker_id="worker", ttl=kit.long, nonce=mine.nonce
        )
        expect_equal(again, extended, "an extension returns what is stored")


@check("CLAIM-042", "A shortened claim ends when it was told to.")
async def shortens(kit: Kit) -> None:
    backend = await kit.open()
    _, mine = await held(kit, backend)

    shortened = await backend.extend_task_claim(mine, ttl=kit.short)

    await kit.until(backend, shortened.expires_at)
    await _expect_free(backend, mine, "a shortened claim ends at its new end")


@check("CLAIM-043", "An eternal claim stays eternal when it is extended.")
async def extends_the_eternal(kit: Kit) -> None:
    backend = await kit.open()
    _, mine = await held(kit, backend, ttl=None)

    extended = await backend.extend_task_claim(mine, ttl=kit.short)

    expect_equal(extended, mine, "an extension leaves an eternal claim as it is")
    await kit.elapse(2 * kit.short)
    await _expect_held(backend, mine, "it stays eternal")


@check("CLAIM-044", "A claim that has expired is never revived, though nobody has taken it over.")
async def never_revives(kit: Kit) -> None:
    backend = await kit.open()
    snapshot, mine = await held(kit, backend, ttl=kit.short)
    await kit.until(backend, mine.expires_at)

    error = await expect_refused(
        backend,
        snapshot,
        ClaimLostError,
        "an expired claim cannot be extended",
        lambda: backend.extend_task_claim(mine, ttl=kit.long),
    )

    expect_equal(
        (error.instance_id, error.task_id), (mine.instance_id, "charge"), "the error says which"
    )
    await _expect_free(backend, mine, "it stays free")


@check(
    "CLAIM-045", "An extension without a record is ClaimNotFoundError, of a superseded claim lost."
)
async def extends_only_its_own(kit: Kit) -> None:
    backend = await kit.open()

    for worker_id in ("rival", "worker"):
        _, old = await held(kit, backend, ttl=kit.short)
        await kit.until(backend, old.expires_at)
        new = await claim(backend, old.instance_id, worker_id=worker_id)

        with raises(ClaimLostError, "a claim that was superseded is not extended") as caught:
            await backend.extend_task_claim(old, ttl=2 * kit.long)

        expect_equal(caught.error.owner, worker_id, "the error names the owner")
        kept = await backend.claim_task(
            old.instance_id, "charge", worker_id=worker_id, ttl=kit.long, nonce=new.nonce
        )
        expect_equal(kept, new, "the claim that is live is not moved")
        await backend.release_task_claim(new)

        with raises(ClaimNotFoundError, "a released claim cannot be extended"):
            await backend.extend_task_claim(new, ttl=kit.long)


@check(
    "CLAIM-046", "A claim is known by its fence: an earlier value of it may be extended as well."
)
async def extends_by_fence(kit: Kit) -> None:
    backend = await kit.open()
    _, mine = await held(kit, backend, ttl=2 * kit.short)
    await backend.extend_task_claim(mine, ttl=kit.long)
    await kit.until(backend, mine.expires_at)

    extended = await backend.extend_task_claim(mine, ttl=kit.long)

    expect_equal(extended.fence, mine.fence, "the store's record decides, not the caller's value")


@check("CLAIM-047", "Of an extension and a take-over at the end exactly one wins.")
async def extension_against_takeover(kit: Kit) -> None:
    first, second = await kit.open(), await kit.open()

    for _ in range(5):
        _, mine = await held(kit, first, ttl=kit.short)
        end = mine.expires_at
        await kit.until(first, end and end - MICROSECOND)

        extended, taken = await kit.together(
            partial(first.extend_task_claim, mine, ttl=kit.long),
            partial(second.claim_task, mine.instance_id, "charge", worker_id="rival", ttl=kit.long),
        )

        if isinstance(extended, TaskClaim):
            expect_equal(taken, None, "a claim that was extended is not taken over")
        else:
            expect(isinstance(extended, ClaimLostError), f"else it is lost, not {extended!r}")
            taken = taken or await claim(second, mine.instance_id, worker_id="rival")
            expect(isinstance(taken, TaskClaim), f"and free, not {taken!r}")


# --- Revoking and sweeping ------------------------------------------------------------------------


@check(
    "CLAIM-051", "Revoking ends a live claim, whoever holds it, eternal ones too, and returns it."
)
async def revokes(kit: Kit) -> None:
    backend, other = await kit.open(), await kit.open()

    for ttl in (kit.long, None):
        snapshot, mine = await held(kit, backend, ttl=ttl)

        revoked = await other.revoke_task_claim(mine.instance_id, "charge")

        expect_equal(revoked, mine, "revoking returns the claim that it ended")
        await expect_refused(
            backend,
            snapshot,
            ClaimLostError,
            "the next write of its holder is refused",
            partial(backend.save_task_result, mine.instance_id, "charge", b"x", claim=mine),
        )
        await _expect_free(backend, mine, "a revoked task is free at once")


@check("CLAIM-052", "Where no claim is live there is nothing to revoke.")
async def revokes_only_the_live(kit: Kit) -> None:
    backend = await kit.open()
    snapshot, mine = await held(kit, backend, ttl=kit.short)
    await kit.until(backend, mine.expires_at)

    expect_equal(
        await backend.revoke_task_claim(snapshot.instance_id, "charge"),
        None,
        "an expired claim is no live claim",
    )
    expect_equal(
        await backend.revoke_task_claim(snapshot.instance_id, "never"),
        None,
        "nor is one that was never made",
    )

    with raises(InstanceNotFoundError, "an unknown instance has nothing to revoke") as caught:
        await backend.revoke_task_claim("nobody", "charge")

    expect_equal(caught.error.instance_id, "nobody", "the error names the instance")


@check("CLAIM-053", "A revoked claim is off the record: it is neither released nor extended.")
async def revoked_is_gone(kit: Kit) -> None:
    backend = await kit.open()
    _, mine = await held(kit, backend)
    await backend.revoke_task_claim(mine.instance_id, "charge")

    with raises(ClaimNotFoundError, "a revoked claim cannot be released"):
        await backend.release_task_claim(mine)

    with raises(ClaimNotFoundError, "a revoked claim cannot be extended"):
        await backend.extend_task_claim(mine, ttl=kit.long)


@check("CLAIM-054", "sweep forgets claims an hour after they expired, and not before.")
async def sweeps_old_claims(kit: Kit) -> None:
    backend = await kit.open()
    _, old = await held(kit, backend, ttl=kit.short)
    hour = timedelta(hours=1)

    await kit.elapse(kit.short + hour / 2)
    _, young = await held(kit, backend, ttl=kit.short)
    _, eternal = await held(kit, backend, ttl=None)
    report = await backend.sweep()
    expect_equal(report.purged_claims, 0, "an expired claim stays on record for an hour")

    await kit.elapse(hour / 2 + timedelta(seconds=1))
    report = await backend.sweep()
    expect_equal(report.purged_claims, 1, "then a sweep removes it")

    with raises(ClaimNotFoundError, "a purged claim is not found, like one never made"):
        await backend.release_task_claim(old)

    await backend.release_task_claim(young)
    await _expect_held(backend, eternal, "a live claim is never purged")
    await _expect_free(backend, old, "a purged claim leaves the fences growing")
