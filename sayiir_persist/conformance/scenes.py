"""Scenes: the instances, claims and values that checks start from."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar, assert_never

from msgspec.structs import replace

from sayiir_persist import (
    AtDelay,
    AtFork,
    AtNode,
    AtSignal,
    AtTask,
    Cancelled,
    Change,
    Completed,
    Failed,
    InProgress,
    InstanceNotFoundError,
    Paused,
    PersistentBackend,
    Position,
    RetryPolicy,
    State,
    Status,
    TaskClaim,
    WorkflowSnapshot,
)
from sayiir_persist.conformance.kit import ExpectationError, Kit, expect_equal, raises

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

E = TypeVar("E", bound=Exception)

OPEN: Final = (Status.IN_PROGRESS, Status.PAUSED)
TERMINAL: Final = (Status.COMPLETED, Status.FAILED, Status.CANCELLED)

RETRY: Final = RetryPolicy(3, timedelta(minutes=1))
"""Retries three times, so late that no check sees one by accident."""

BAD_IDS: Final[Mapping[str, str]] = {
    "an empty one": "",
    "257 bytes": "x" * 257,
    "258 bytes in 129 characters": "é" * 129,
    "U+0000": "a\0b",
    "a lone surrogate": "a\ud800b",
}
"""Ids that break a limit, by what is wrong with them."""


class Held(NamedTuple):
    """An instance, and the claim on its task."""

    snapshot: WorkflowSnapshot
    claim: TaskClaim

    @property
    def instance_id(self) -> str:
        """The instance's id."""
        return self.snapshot.instance_id


def state_of(status: Status, position: Position | None = None) -> State:
    """A state with that status, at `position` (the task "charge") if it has one."""
    position = position or AtTask("charge")

    match status:
        case Status.IN_PROGRESS:
            return InProgress(position)
        case Status.PAUSED:
            return Paused(position, reason="stocktaking", requested_by="ops")
        case Status.COMPLETED:
            return Completed(b"receipt")
        case Status.FAILED:
            return Failed("card declined")
        case Status.CANCELLED:
            return Cancelled(
                reason="customer called", requested_by="support", interrupted_at_task="charge"
            )
        case _:
            assert_never(status)


def turned(status: Status) -> Change:
    """The change that puts a snapshot into that status."""
    return lambda found: replace(found, state=state_of(status))


def fresh(
    kit: Kit, at: str | Position = "charge", *, input: bytes | None = b"order"
) -> WorkflowSnapshot:
    """A snapshot that was never stored."""
    return WorkflowSnapshot.start(kit.instance(), "v1", start_at=at, input=input)


async def start(
    kit: Kit,
    backend: PersistentBackend,
    at: str | Position = "charge",
    *,
    input: bytes | None = b"order",
) -> WorkflowSnapshot:
    """A new instance in progress at `at`."""
    outcome = await backend.start_instance(kit.instance(), "v1", start_at=at, input=input)
    return outcome.snapshot


async def stored(
    kit: Kit, backend: PersistentBackend, status: Status, at: Position | None = None
) -> WorkflowSnapshot:
    """A new instance in that status, with a result and, as long as it is open, more to it."""
    snapshot = fresh(kit).record_result("prepare", b"ready")
    await backend.save_snapshot(replace(snapshot, state=state_of(status, at)))
    return await backend.load_snapshot(snapshot.instance_id)


async def held(
    kit: Kit,
    backend: PersistentBackend,
    at: str | Position = "charge",
    *,
    task_id: str = "charge",
    worker_id: str = "worker",
    ttl: timedelta | None = Kit.long,
) -> Held:
    """A new instance, and a claim on its task."""
    snapshot = await start(kit, backend, at)
    return Held(snapshot, await claim(backend, snapshot.instance_id, task_id, worker_id, ttl))


async def claim(
    backend: PersistentBackend,
    instance_id: str,
    task_id: str = "charge",
    worker_id: str = "worker",
    ttl: timedelta | None = Kit.long,
) -> TaskClaim:
    """A claim on a task that is free.

    Raises:
        ExpectationError: It is not granted.
    """
    granted = await backend.claim_task(instance_id, task_id, worker_id=worker_id, ttl=ttl)

    if granted is None:
        raise ExpectationError(f"a ready task that nobody holds can be claimed: {task_id!r}")

    return granted


def fork(*task_ids: str, next: Position | None = None) -> AtFork:
    """A fork with a branch for each task."""
    branches = {f"branch-{task_id}": AtTask(task_id) for task_id in task_ids}
    return AtFork("fan-out", branches, next=next)


def rich(instance_id: str) -> WorkflowSnapshot:
    """A snapshot, never stored, in which everything is set."""
    position = AtFork(
        "fan-out",
        {
            "left": AtTask("pack", priority=1, tags=("gpu", "eu"), input_from="prepare"),
            "middle": AtDelay(
                "cool",
                wake_at=datetime(2100, 2, 3, 4, 5, 6, 1, tzinfo=UTC),
                next=AtTask("ship", priority=5),
            ),
            "right": AtSignal(
                "approval", "approved", wake_after=timedelta(days=30_000, microseconds=1)
            ),
            "$.inner": AtFork("inner", {"é": AtNode("child"), "over": None}),
            "over": None,
        },
        next=AtTask("join", tags=()),
    )
    snapshot = WorkflowSnapshot.start(
        instance_id,
        "hash: ünï",
        start_at=position,
        input=bytes(range(256)),
        priority=2,
        tags=("zebra", "ant", "Zebra"),
        trace_parent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )
    snapshot = (
        snapshot.record_result("prepare", bytes(reversed(range(256))))
        .record_result("empty", b"")
        .record_result("a.$b", b"null")
        .record_failure("pack", RETRY, error="\u2028 'no' \"stock\" \\ 🚚", worker_id="wörker")
        .count_iteration("outer")
        .count_iteration("outer")
        .count_iteration("inner.$loop")
        .with_deadline(
            datetime(2099, 12, 31, 23, 59, 59, 999_999, tzinfo=timezone(timedelta(hours=5.5)))
        )
    )
    return replace(snapshot, timed_out=frozenset({"earlier", "wait-1"}))


def shape(snapshot: WorkflowSnapshot) -> Position | None:
    """Where a snapshot stands, without stamps."""
    return _bare(snapshot.position)


def _bare(position: Position | None) -> Position | None:
    match position:
        case AtTask():
            return replace(position, ready_at=None, reason=None, done=False)
        case AtDelay() | AtSignal():
            return replace(position, entered_at=None, next=_bare(position.next))
        case AtFork():
            branches = {key: _bare(branch) for key, branch in position.branches.items()}
            return replace(position, branches=branches, next=_bare(position.next), joined_at=None)
        case AtNode() | None:
            return position
        case _:
            assert_never(position)


async def expect_refused(
    backend: PersistentBackend,
    before: WorkflowSnapshot,
    error: type[E] | tuple[type[E], ...],
    expectation: str,
    call: Callable[[], Awaitable[object]],
) -> E:
    """Fail the check unless the call raises, and leaves the instance exactly as it was.

    Args:
        backend: Where to look.
        before: The instance as it was loaded before.
        error: What the call raises.
        expectation: What the contract promises, as a sentence.
        call: The refused call.

    Returns:
        The error.
    """
    with raises(error, expectation) as caught:
        await call()

    expect_equal(
        await backend.load_snapshot(before.instance_id),
        before,
        f"{expectation}, and nothing is written",
    )
    return caught.error


async def expect_missing(backend: PersistentBackend, instance_id: str, expectation: str) -> None:
    """Fail the check unless nothing is stored under the id."""
    with raises(InstanceNotFoundError, expectation):
        await backend.load_snapshot(instance_id)
