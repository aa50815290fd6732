"""Claims on tasks, and what dispatch hands out."""

from __future__ import annotations

from datetime import datetime

from msgspec import Struct

from sayiir_persist.positions import ReadyReason
from sayiir_persist.signals import SignalKind
from sayiir_persist.snapshot import WorkflowSnapshot


class _ClaimIdentity(Struct, frozen=True):
    instance_id: str
    task_id: str
    worker_id: str


class TaskClaim(_ClaimIdentity, frozen=True, kw_only=True):
    """The right of one worker to run one task; every write that it makes is checked against it.

    Attributes:
        instance_id: The run.
        task_id: The task.
        worker_id: Who holds it.
        fence: Strictly larger than every earlier claim's on this instance id, across deletions.
        claimed_at: On the store's clock.
        expires_at: On the store's clock, which alone decides; `None` never expires.
        nonce: Names the request that made it, so that a lost answer can be asked for again.
        worker_tags: What the worker accepts; `()` is everything.
        pending_signal: A control signal that waits, as of the last claim or extend.
    """

    fence: int
    claimed_at: datetime
    expires_at: datetime | None
    nonce: str
    worker_tags: tuple[str, ...] = ()
    pending_signal: SignalKind | None = None


class AvailableTask(Struct, frozen=True, kw_only=True):
    """A task that may be run now.

    Attributes:
        instance_id: The run.
        task_id: The task.
        definition_hash: What it runs.
        reason: Why it is offered.
        attempt: 1 and the failures so far.
        input: The result of the node that its `input_from` names, or the instance's input;
            `None` where nothing is wired or recorded.
        trace_parent: The run's.
        snapshot: The run, without its results unless they were asked for.
    """

    instance_id: str
    task_id: str
    definition_hash: str
    reason: ReadyReason
    attempt: int
    input: bytes | None
    trace_parent: str | None
    snapshot: WorkflowSnapshot


class AcquiredTask(AvailableTask, frozen=True, kw_only=True):
    """A task that was found and claimed in one step.

    Attributes:
        claim: The claim that this worker now holds.
    """

    claim: TaskClaim


class Commit(Struct, frozen=True):
    """What `commit_task` stored.

    Attributes:
        snapshot: As stored; a pending cancel or pause is applied where no live claim was left.
        next: The task that the same step claimed, if any.
    """

    snapshot: WorkflowSnapshot
    next: AcquiredTask | None


class SweepReport(Struct, frozen=True):
    """What one sweep did, as instance ids.

    Attributes:
        cancelled: A pending cancel was applied.
        paused: A pending pause was applied.
        advanced: A move that was due was written.
        purged_claims: Long-expired claims that were removed.
        more: There is more to do: call again.
    """

    cancelled: tuple[str, ...]
    paused: tuple[str, ...]
    advanced: tuple[str, ...]
    purged_claims: int
    more: bool


class WakeHint(Struct, frozen=True, kw_only=True):
    """Something became ready: acquire again. All `None`: anything may have."""

    instance_id: str | None = None
    task_id: str | None = None
    definition_hash: str | None = None
    tags: tuple[str, ...] | None = None
