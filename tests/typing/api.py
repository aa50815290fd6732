"""Typed usage of the public API. Checked by pyright in strict mode; it never runs."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, assert_type

from sayiir_persist import (
    AcquiredTask,
    AtDelay,
    AtFork,
    AtNode,
    AtSignal,
    AtTask,
    AvailableTask,
    BackendInfo,
    Cancelled,
    Commit,
    Completed,
    ConflictPolicy,
    Failed,
    InProgress,
    MemoryBackend,
    MemoryStore,
    MsgpackCodec,
    Paused,
    PersistentBackend,
    Position,
    ReadyReason,
    RetryPolicy,
    SignalKind,
    SignalRequest,
    SignalStore,
    SnapshotInfo,
    SnapshotStore,
    SqliteBackend,
    Status,
    SweepReport,
    TaskClaim,
    TaskClaimStore,
    WakeHint,
    WakeupSource,
    WorkflowSnapshot,
    connect,
)
from sayiir_persist.definition import definition_hash
from sayiir_persist.leases import keep_claim

if TYPE_CHECKING:
    from collections.abc import Callable

TTL = timedelta(seconds=30)


def stores(memory: MemoryBackend, sqlite: SqliteBackend) -> None:
    """Every backend is all of the protocols, and has hints."""

    def takes(
        snapshots: SnapshotStore,
        claims: TaskClaimStore,
        signals: SignalStore,
        hints: WakeupSource,
        whole: PersistentBackend,
    ) -> None: ...

    takes(memory, memory, memory, memory, memory)
    takes(sqlite, sqlite, sqlite, sqlite, sqlite)


async def entering(clock: Callable[[], datetime]) -> None:
    """`async with` gives the backend itself."""
    async with connect("sqlite:///runs.db", codec=MsgpackCodec()) as connected:
        assert_type(connected, PersistentBackend)
        assert_type(connected.info, BackendInfo)

    async with SqliteBackend.connect("runs.db", clock=clock, synchronous="NORMAL") as sqlite:
        assert_type(sqlite, SqliteBackend)
        assert_type(await sqlite.wait_for_wakeup(TTL), WakeHint | None)

    async with MemoryBackend(MemoryStore(clock=clock), namespace="tests") as memory:
        assert_type(memory, MemoryBackend)


async def snapshots(backend: PersistentBackend) -> None:
    """Snapshots and their results."""
    tree: Position = AtFork(
        "both",
        branches={"a": AtTask("bill"), "b": AtDelay("wait", wake_after=TTL), "c": None},
        next=AtSignal("approval", "approved", wake_after=TTL, next=AtNode("router")),
    )
    started = await backend.start_instance(
        "order-7",
        definition_hash("checkout", b"v1"),
        start_at=tree,
        tags=["gpu"],
        on_conflict=ConflictPolicy.USE_EXISTING,
    )
    snapshot = started.snapshot
    assert_type(snapshot, WorkflowSnapshot)
    assert_type(snapshot.results["bill"], bytes)
    assert_type(snapshot.ready_tasks(), tuple[AtTask, ...])
    assert_type(snapshot.status, Status)

    policy = RetryPolicy(3, timedelta(seconds=1), max_delay=TTL)
    assert_type(snapshot.record_failure("bill", policy, error="no"), WorkflowSnapshot)
    assert_type(await backend.save_snapshot(snapshot, overwrite=True), WorkflowSnapshot)
    assert_type(await backend.update_snapshot("order-7", lambda it: it.pause()), WorkflowSnapshot)
    assert_type(await backend.save_task_result("order-7", "bill", b""), int)
    assert_type(await backend.load_task_result("order-7", "bill"), bytes | None)
    assert_type(await backend.list_snapshots(status=Status.PAUSED), list[SnapshotInfo])

    match snapshot.state:
        case InProgress(position) | Paused(position):
            assert_type(position, Position)
        case Completed(output):
            assert_type(output, bytes)
        case Failed(error):
            assert_type(error, str)
        case Cancelled() as cancelled:
            assert_type(cancelled.interrupted_at_task, str | None)


async def claims(backend: PersistentBackend) -> None:
    """Claims, dispatch and commits in both forms."""
    for found in await backend.find_available_tasks(worker_id="w1", tags=("gpu",)):
        assert_type(found, AvailableTask)
        assert_type(found.reason, ReadyReason)

    [task] = await backend.acquire_tasks(worker_id="w1", ttl=None, definition_hashes={"v1"})
    assert_type(task, AcquiredTask)

    async with keep_claim(backend, task.claim, ttl=TTL, cancel_on_signal=True) as kept:
        assert_type(kept, TaskClaim)

    step = task.snapshot.complete_task(task.task_id, b"", next=None)
    assert_type(await backend.commit_task(task.claim, step, claim_next=TTL), Commit)
    assert_type(await backend.commit_task(task.claim, snapshot=step), Commit)

    def change(snapshot: WorkflowSnapshot) -> WorkflowSnapshot:
        return snapshot.complete_task(task.task_id, b"", next=AtTask("ship"))

    commit = await backend.commit_task(task.claim, change, base=task.snapshot, claim_next=TTL)
    assert_type(commit.next, AcquiredTask | None)
    assert_type(await backend.commit_task(task.claim, change=change), Commit)
    assert_type(await backend.extend_task_claim(task.claim, ttl=TTL), TaskClaim)
    assert_type(await backend.revoke_task_claim("order-7", "bill"), TaskClaim | None)
    assert_type(await backend.sweep(limit=10), SweepReport)


async def signals(backend: PersistentBackend) -> None:
    """Control signals and events."""
    request = SignalRequest(reason="why", requested_by="who")
    assert_type(await backend.request_signal("order-7", SignalKind.CANCEL, request), Status)
    assert_type(await backend.get_signal("order-7", SignalKind.PAUSE), SignalRequest | None)
    assert_type(await backend.check_control_signals("order-7"), SignalKind | None)
    assert_type(await backend.unpause("order-7"), WorkflowSnapshot)
    await backend.send_event("order-7", "approved", b"yes", event_id="mail-17")
    assert_type(await backend.consume_event("order-7", "approved"), bytes | None)
    assert_type(await backend.drain_signal("order-7", version=3), WorkflowSnapshot | None)
