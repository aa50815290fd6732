"""Pure pieces of a write: what it carries, what guards it, and what its refusal is called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sayiir_persist.body import encode_body
from sayiir_persist.dispatch import project
from sayiir_persist.driver import Answer, ClaimKey, Content, Guard, Presence, Refusal, Unit
from sayiir_persist.errors import (
    ClaimLostError,
    DefinitionMismatchError,
    EventQueueFullError,
    InstanceExistsError,
    InstanceNotFoundError,
    InstancePausedError,
    InvalidArgumentError,
    PersistError,
    StaleSnapshotError,
    TerminalStateError,
)
from sayiir_persist.snapshot import Completed, Failed, Status, WorkflowSnapshot, check_snapshot
from sayiir_persist.validation import check_id, check_payload

if TYPE_CHECKING:
    from sayiir_persist.claims import TaskClaim
    from sayiir_persist.codecs import Codec
    from sayiir_persist.driver import ClaimRecord
    from sayiir_persist.protocols import Limits

OPEN: Final = (Status.IN_PROGRESS, Status.PAUSED)
RUNNING: Final = (Status.IN_PROGRESS,)
PAUSED: Final = (Status.PAUSED,)


def content_of(snapshot: WorkflowSnapshot, codec: Codec, limits: Limits) -> Content:
    """Everything that a write of this snapshot stores, checked against the limits.

    Raises:
        InvalidArgumentError: A limit is broken.
        CodecError: The codec cannot write the body.
    """
    if not isinstance(snapshot, WorkflowSnapshot):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidArgumentError(f"a WorkflowSnapshot is wanted, not {type(snapshot).__name__}")

    check_snapshot(snapshot)
    gained, dropped = snapshot.results.delta()

    for node_id, output in gained.items():
        check_id("node_id", node_id)
        check_payload(f"the result of {node_id!r}", output, limits.max_payload)

    if snapshot.input is not None:
        check_payload("input", snapshot.input, limits.max_payload)

    if isinstance(snapshot.state, Completed):
        check_payload("output", snapshot.state.output, limits.max_payload)

    projection = project(snapshot)
    return Content(
        body=encode_body(snapshot, codec),
        status=projection.status,
        status_is_new=snapshot.version > 0 and snapshot.status_since is None,
        definition_hash=snapshot.definition_hash,
        priority=snapshot.priority,
        tags=snapshot.tags,
        last_completed=snapshot.last_completed_task_id,
        entries=projection.entries,
        idle=projection.idle,
        input=snapshot.input,
        gained=gained,
        dropped=dropped,
    )


def key_of(claim: TaskClaim | None) -> ClaimKey | None:
    """What a guard needs of a claim."""
    return None if claim is None else ClaimKey(claim.task_id, claim.fence)


def save_guard(snapshot: WorkflowSnapshot, claim: TaskClaim | None) -> Guard:
    """Guard a write that was made from the stored version: the rows of the status machine.

    A paused instance is ended only by a worker that holds a live claim; every other write to it
    must have seen the pause.
    """
    ends = isinstance(snapshot.state, Completed | Failed)
    return Guard(
        statuses=RUNNING if ends and claim is None else OPEN,
        claim=key_of(claim),
        version=snapshot.version,
        incarnation=snapshot.incarnation,
    )


def refusal(unit: Unit, answer: Answer) -> PersistError | None:
    """Name the error of a refused unit, in the order of checks that is the same on every store.

    No row, terminal, fence, paused, version and incarnation. `None`: only what the caller did not
    state has moved (signals, live claims, the head of a queue), so it should look again.
    """
    if answer.refused is Refusal.QUEUE_FULL and unit.push is not None:
        return EventQueueFullError(unit.instance_id, unit.push.limit)

    guard, facts = unit.guard, answer.facts

    if facts is None:
        return _gone(unit)

    if guard.definition_hash is not None and guard.definition_hash != facts.definition_hash:
        return DefinitionMismatchError(
            unit.instance_id, guard.definition_hash, facts.definition_hash
        )

    if guard.presence is Presence.ABSENT:
        return InstanceExistsError(unit.instance_id, facts.status)

    if facts.status.is_terminal and guard.statuses is not None:
        return TerminalStateError(unit.instance_id, facts.status)

    if guard.claim is not None and (lost := _lost(unit, guard.claim, answer)):
        return lost

    same_version = _same_version(guard, answer)

    if facts.status is Status.PAUSED and _needs_running(unit, same_version=same_version):
        return InstancePausedError(unit.instance_id)

    if not same_version:
        return StaleSnapshotError(unit.instance_id, guard.version or 0, facts.version)

    return None


def _gone(unit: Unit) -> PersistError:
    if unit.guard.claim is not None:
        return ClaimLostError(unit.instance_id, unit.guard.claim.task_id)

    if unit.guard.version is not None:
        return StaleSnapshotError(unit.instance_id, unit.guard.version, None)

    return InstanceNotFoundError(unit.instance_id)


def _lost(unit: Unit, key: ClaimKey, answer: Answer) -> ClaimLostError | None:
    record = answer.claim

    if record is not None and record.fence == key.fence and record.live(answer.now):
        return None

    return claim_lost(unit.instance_id, key, record)


def claim_lost(instance_id: str, key: ClaimKey, record: ClaimRecord | None) -> ClaimLostError:
    """The error of a claim that is not the valid one; its owner is whose claim is on record."""
    owner = record.worker_id if record is not None and record.fence != key.fence else None
    return ClaimLostError(instance_id, key.task_id, owner)


def _same_version(guard: Guard, answer: Answer) -> bool:
    facts = answer.facts
    return facts is not None and (
        guard.version in {None, facts.version} and guard.incarnation in {None, facts.incarnation}
    )


def _needs_running(unit: Unit, *, same_version: bool) -> bool:
    statuses = unit.guard.statuses

    if statuses is not None and Status.PAUSED not in statuses:
        return True

    return (
        unit.content is not None and unit.content.status is not Status.PAUSED and not same_version
    )
