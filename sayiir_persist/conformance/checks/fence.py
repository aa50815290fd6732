"""FENCE: every write with a claim is refused once that claim is not the valid one any more."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from functools import partial
from typing import Final

from msgspec.structs import replace

from sayiir_persist import (
    AtTask,
    ClaimLostError,
    ClaimNotFoundError,
    ConflictPolicy,
    InstanceNotFoundError,
    InstancePausedError,
    PersistentBackend,
    StaleSnapshotError,
    Status,
    TaskClaim,
    TerminalStateError,
    WorkflowSnapshot,
)
from sayiir_persist.conformance.kit import Kit, expect_equal, raises
from sayiir_persist.conformance.registry import check
from sayiir_persist.conformance.scenes import (
    TERMINAL,
    Held,
    claim,
    expect_missing,
    expect_refused,
    fork,
    held,
    start,
    state_of,
)

Call = Callable[[PersistentBackend, Held], Awaitable[object]]


def _late(snapshot: WorkflowSnapshot) -> WorkflowSnapshot:
    return snapshot.record_result("late", b"write").count_iteration("late")


async def _commit_fresh(backend: PersistentBackend, old: Held) -> object:
    """Commit what is stored now, so that nothing but the fence can refuse it."""
    current = await backend.load_snapshot(old.instance_id)
    return await backend.commit_task(old.claim, _late(current))


WRITES: Final[Mapping[str, Call]] = {
    "save_task_result": lambda backend, old: backend.save_task_result(
        old.instance_id, "charge", b"late", claim=old.claim
    ),
    "update_snapshot": lambda backend, old: backend.update_snapshot(
        old.instance_id, _late, claim=old.claim
    ),
    "an update_snapshot that changes nothing": lambda backend, old: backend.update_snapshot(
        old.instance_id, lambda found: found, claim=old.claim
    ),
    "commit_task of its snapshot": lambda backend, old: backend.commit_task(
        old.claim, _late(old.snapshot)
    ),
    "commit_task of a change": lambda backend, old: backend.commit_task(old.claim, _late),
    "commit_task of a change with a base": lambda backend, old: backend.commit_task(
        old.claim, _late, base=old.snapshot
    ),
    "commit_task that only releases": lambda backend, old: backend.commit_task(
        old.claim, lambda found: found
    ),
    "commit_task that claims the next": lambda backend, old: backend.commit_task(
        old.claim,
        lambda found: found.complete_task("charge", b"late", next=AtTask("after")),
        claim_next=Kit.long,
    ),
}
"""Every write that takes a claim, by name."""

CURRENT: Final[Mapping[str, Call]] = {"commit_task of what is stored": _commit_fresh}

EXTEND: Final[Mapping[str, Call]] = {
    "extend_task_claim": lambda backend, old: backend.extend_task_claim(old.claim, ttl=Kit.long)
}
RELEASE: Final[Mapping[str, Call]] = {
    "release_task_claim": lambda backend, old: backend.release_task_claim(old.claim)
}


async def _expect_fenced(
    backend: PersistentBackend,
    old: Held,
    why: str,
    *,
    claims: type[Exception],
    owner: str | None = None,
    writes: type[Exception] = ClaimLostError,
) -> None:
    """Fail the check unless every call with the old claim is refused and changes nothing."""
    before = await backend.load_snapshot(old.instance_id)
    calls = {**WRITES, **CURRENT}

    for name, call in calls.items():
        error = await expect_refused(
            backend,
            before,
            writes,
            f"{name} with a claim {why} is refused",
            partial(call, backend, old),
        )

        if isinstance(error, ClaimLostError):
            expect_equal(error.instance_id, old.instance_id, "the error names the instance")
            expect_equal(error.owner, owner, f"{name} with a claim {why} names the owner")

    for name, call in {**EXTEND, **RELEASE}.items():
        await expect_refused(
            backend,
            before,
            claims,
            f"{name} of a claim {why} is refused",
            partial(call, backend, old),
        )


@check("FENCE-001", "A claim that has expired writes nothing, though nobody has taken it over.")
async def expired(kit: Kit) -> None:
    backend = await kit.open()
    old = await held(kit, backend, ttl=kit.short)
    await kit.until(backend, old.claim.expires_at)
    before = await backend.load_snapshot(old.instance_id)

    for name, call in {**WRITES, **CURRENT, **EXTEND}.items():
        await expect_refused(
            backend,
            before,
            ClaimLostError,
            f"{name} with a claim that has expired is refused",
            partial(call, backend, old),
        )


@check(
    "FENCE-002", "A claim that another worker took over writes nothing, and is told whose it is."
)
async def taken_over(kit: Kit) -> None:
    backend = await kit.open()
    old = await held(kit, backend, ttl=kit.short)
    await kit.until(backend, old.claim.expires_at)
    new = await claim(backend, old.instance_id, worker_id="successor")

    await _expect_fenced(
        backend, old, "that was taken over", claims=ClaimLostError, owner="successor"
    )

    kept = await backend.extend_task_claim(new, ttl=kit.long)
    expect_equal(kept.fence, new.fence, "the new claim is not touched by the old one")


@check("FENCE-003", "The same worker name does not pass an earlier claim: the fence decides.")
async def same_name(kit: Kit) -> None:
    backend = await kit.open()
    old = await held(kit, backend, ttl=kit.short)
    await kit.until(backend, old.claim.expires_at)
    new = await claim(backend, old.instance_id, worker_id=old.claim.worker_id)

    await _expect_fenced(
        backend,
        old,
        "of an earlier execution under the same name",
        claims=ClaimLostError,
        owner=old.claim.worker_id,
    )

    await backend.commit_task(new, lambda found: found.complete_task("charge", b"x", next=None))


@check("FENCE-004", "A claim that was released or revoked writes nothing any more.")
async def given_up(kit: Kit) -> None:
    backend = await kit.open()
    released, revoked = await held(kit, backend), await held(kit, backend)
    await backend.release_task_claim(released.claim)
    await backend.revoke_task_claim(revoked.instance_id, "charge")

    await _expect_fenced(backend, released, "that was released", claims=ClaimNotFoundError)
    await _expect_fenced(backend, revoked, "that was revoked", claims=ClaimNotFoundError)


@check(
    "FENCE-005", "A write with a claim never creates: on a deleted instance it is ClaimLostError."
)
async def deleted(kit: Kit) -> None:
    backend = await kit.open()
    old = await held(kit, backend)
    await backend.delete_snapshot(old.instance_id)

    for name, call in WRITES.items():
        with raises(ClaimLostError, f"{name} with a claim on a deleted instance is refused"):
            await call(backend, old)

        await expect_missing(backend, old.instance_id, f"{name} does not bring an instance back")


@check("FENCE-006", "A claim from before a deletion does not reach the instance created after it.")
async def recreated(kit: Kit) -> None:
    backend = await kit.open()
    old = await held(kit, backend)
    await backend.delete_snapshot(old.instance_id)
    await backend.start_instance(old.instance_id, "v1", start_at="charge")

    await _expect_fenced(backend, old, "from before a deletion", claims=ClaimNotFoundError)
    await claim(backend, old.instance_id, worker_id=old.claim.worker_id)
    await _expect_fenced(
        backend,
        old,
        "from before a deletion, claimed again under the same name,",
        claims=ClaimLostError,
        owner=old.claim.worker_id,
    )


@check("FENCE-007", "A claim from before a restart does not reach the new run.")
async def restarted(kit: Kit) -> None:
    backend = await kit.open()
    old = await held(kit, backend)
    await backend.start_instance(
        old.instance_id,
        "v1",
        start_at="charge",
        on_conflict=ConflictPolicy.TERMINATE_EXISTING,
    )

    await _expect_fenced(backend, old, "from before a restart", claims=ClaimNotFoundError)


@check("FENCE-008", "After the end of the workflow every write with a claim is TerminalStateError.")
async def ended(kit: Kit) -> None:
    backend = await kit.open()

    for status in TERMINAL:
        old = await held(kit, backend)
        await backend.save_snapshot(replace(old.snapshot, state=state_of(status)))
        before = await backend.load_snapshot(old.instance_id)

        for name, call in {**WRITES, **CURRENT}.items():
            error = await expect_refused(
                backend,
                before,
                TerminalStateError,
                f"{name} is refused once the instance is {status}",
                partial(call, backend, old),
            )
            expect_equal(error.status, status, "the error says how the instance ended")

        for name, call in {**EXTEND, **RELEASE}.items():
            await expect_refused(
                backend,
                before,
                ClaimNotFoundError,
                f"{name} finds no claim once the instance is {status}",
                partial(call, backend, old),
            )


@check(
    "FENCE-009", "A task that is entered again drops its old claim, unless that fences the write."
)
async def entered_again(kit: Kit) -> None:
    backend = await kit.open()
    old = await held(kit, backend)
    await backend.save_snapshot(old.snapshot.move_to(AtTask("charge")))

    await _expect_fenced(
        backend, old, "on a task that was entered again since", claims=ClaimNotFoundError
    )

    mine = await claim(backend, old.instance_id)
    await backend.update_snapshot(
        old.instance_id, lambda found: found.move_to(AtTask("charge")), claim=mine
    )
    kept = await backend.extend_task_claim(mine, ttl=kit.long)
    expect_equal(kept.fence, mine.fence, "the claim that fences the write is kept")


@check("FENCE-010", "A claim outlives the saves of others that leave its task where it is.")
async def kept_through_saves(kit: Kit) -> None:
    backend = await kit.open()
    old = await held(kit, backend)

    await backend.update_snapshot(old.instance_id, lambda found: found.count_iteration("loop"))
    await backend.save_task_result(old.instance_id, "other", b"x")
    await backend.send_event(old.instance_id, "paid", b"1")

    commit = await backend.commit_task(
        old.claim, lambda found: found.complete_task("charge", b"x", next=None)
    )
    expect_equal(commit.snapshot.status, Status.COMPLETED, "a live claim commits")


@check(
    "FENCE-011", "The store's record decides when a claim ends, not the value that a caller holds."
)
async def records_decide(kit: Kit) -> None:
    backend = await kit.open()
    old = await held(kit, backend, ttl=kit.short)
    end = old.claim.expires_at
    forged = replace(old.claim, expires_at=end and end + timedelta(days=1))
    eternal = replace(old.claim, expires_at=None)
    await kit.until(backend, end)

    for value in (forged, eternal):
        await expect_refused(
            backend,
            old.snapshot,
            ClaimLostError,
            "a claim does not live longer because its value says so",
            partial(backend.save_task_result, old.instance_id, "charge", b"x", claim=value),
        )

    live = await held(kit, backend)
    past = replace(live.claim, expires_at=live.claim.claimed_at)
    version = await backend.save_task_result(live.instance_id, "charge", b"x", claim=past)
    expect_equal(version, 2, "nor does it end earlier because its value says so")


@check("FENCE-012", "A claim with a made-up fence is refused, above or below the real one.")
async def forged(kit: Kit) -> None:
    backend = await kit.open()
    real = await held(kit, backend)

    for fence in (real.claim.fence - 1, real.claim.fence + 1, 0, 2**53 + 1):
        fake = Held(real.snapshot, replace(real.claim, fence=fence))
        await _expect_fenced(
            backend,
            fake,
            f"of fence {fence} instead of {real.claim.fence}",
            claims=ClaimLostError,
            owner=real.claim.worker_id,
        )

    await backend.release_task_claim(real.claim)


@check("FENCE-013", "An extended claim writes through, under its old value too.")
async def extended(kit: Kit) -> None:
    backend = await kit.open()
    old = await held(kit, backend, ttl=2 * kit.short)
    await backend.extend_task_claim(old.claim, ttl=kit.long)
    await kit.until(backend, old.claim.expires_at)

    await backend.save_task_result(old.instance_id, "charge", b"x", claim=old.claim)
    commit = await backend.commit_task(
        old.claim, lambda found: found.complete_task("charge", b"x", next=None)
    )

    expect_equal(commit.snapshot.status, Status.COMPLETED, "an extension counts for every write")


@check("FENCE-014", "Claims on the branches of a fork fence each by itself.")
async def branches(kit: Kit) -> None:
    backend = await kit.open()
    snapshot = await start(kit, backend, fork("charge", "ship"))
    old = Held(snapshot, await claim(backend, snapshot.instance_id, "charge"))
    other = await claim(backend, snapshot.instance_id, "ship")
    await backend.revoke_task_claim(snapshot.instance_id, "charge")

    await _expect_fenced(
        backend,
        old,
        "on one branch that was revoked",
        claims=ClaimNotFoundError,
    )

    await backend.save_task_result(snapshot.instance_id, "ship", b"x", claim=other)


# --- The order of checks --------------------------------------------------------------------------


@check(
    "FENCE-021", "Where nothing is stored: with a claim lost, with a version stale, else not found."
)
async def order_no_row(kit: Kit) -> None:
    backend = await kit.open()
    old = await held(kit, backend)
    await backend.delete_snapshot(old.instance_id)
    current = replace(old.claim, task_id="never")

    for given in (old.claim, current):
        with raises(ClaimLostError, "a commit to nothing is a claim that was lost, never stale"):
            await backend.commit_task(given, _late(old.snapshot))

    with raises(StaleSnapshotError, "a versioned save to nothing is stale, never not found"):
        await backend.save_snapshot(_late(old.snapshot))

    with raises(InstanceNotFoundError, "a write without either is not found"):
        await backend.save_task_result(old.instance_id, "charge", b"x")

    with raises(InstanceNotFoundError, "a change without a claim is not found"):
        await backend.update_snapshot(old.instance_id, _late)


@check(
    "FENCE-022", "Ended comes before fence: a lost claim on what has ended is TerminalStateError."
)
async def order_terminal_before_fence(kit: Kit) -> None:
    backend = await kit.open()
    old = await held(kit, backend)
    await backend.release_task_claim(old.claim)
    await backend.save_snapshot(old.snapshot.complete(b"done"))
    before = await backend.load_snapshot(old.instance_id)

    for name, call in WRITES.items():
        await expect_refused(
            backend,
            before,
            TerminalStateError,
            f"{name} with a released claim, of what has ended, says that it has ended",
            partial(call, backend, old),
        )


@check(
    "FENCE-023",
    "Ended comes before version: a stale save of what has ended says that it has ended.",
)
async def order_terminal_before_version(kit: Kit) -> None:
    backend = await kit.open()
    first = await start(kit, backend)
    await backend.save_snapshot(first.complete(b"done"))
    before = await backend.load_snapshot(first.instance_id)

    await expect_refused(
        backend,
        before,
        TerminalStateError,
        "a stale save of what has ended says that it has ended",
        lambda: backend.save_snapshot(_late(first)),
    )


@check("FENCE-024", "Fence comes before paused: a lost claim on what is paused is ClaimLostError.")
async def order_fence_before_paused(kit: Kit) -> None:
    backend = await kit.open()
    old = await held(kit, backend)
    await backend.release_task_claim(old.claim)
    await backend.save_snapshot(old.snapshot.pause())
    before = await backend.load_snapshot(old.instance_id)

    for name, call in WRITES.items():
        await expect_refused(
            backend,
            before,
            ClaimLostError,
            f"{name} with a released claim, of what is paused, says that the claim is lost",
            partial(call, backend, old),
        )


@check(
    "FENCE-025", "Fence comes before version: a stale commit with a lost claim is ClaimLostError."
)
async def order_fence_before_version(kit: Kit) -> None:
    backend = await kit.open()
    old = await held(kit, backend)
    await backend.release_task_claim(old.claim)
    before = await backend.update_snapshot(old.instance_id, _late)

    await expect_refused(
        backend,
        before,
        ClaimLostError,
        "a stale commit with a released claim says that the claim is lost",
        lambda: backend.commit_task(old.claim, _late(old.snapshot)),
    )


@check("FENCE-026", "Paused comes before version: a stale running save says that it is paused.")
async def order_paused_before_version(kit: Kit) -> None:
    backend = await kit.open()
    old = await held(kit, backend)
    paused = await backend.save_snapshot(old.snapshot.pause())
    before = await backend.load_snapshot(old.instance_id)

    await expect_refused(
        backend,
        before,
        InstancePausedError,
        "a stale commit to what is paused says that it is paused",
        lambda: backend.commit_task(old.claim, _late(old.snapshot)),
    )
    await expect_refused(
        backend,
        before,
        StaleSnapshotError,
        "a stale paused save of what is paused says that it is stale",
        lambda: backend.save_snapshot(replace(_late(paused), version=1)),
    )


@check("FENCE-027", "A claim that belongs to nothing stored is lost, whatever else is wrong.")
async def order_foreign_claim(kit: Kit) -> None:
    backend = await kit.open()
    snapshot = await start(kit, backend)
    made_up = TaskClaim(
        snapshot.instance_id,
        "charge",
        "worker",
        fence=1,
        claimed_at=await backend.now(),
        expires_at=None,
        nonce="n-1",
    )

    await _expect_fenced(
        backend, Held(snapshot, made_up), "that was never granted", claims=ClaimNotFoundError
    )
